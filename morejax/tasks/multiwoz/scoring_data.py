"""What predictions are scored against: read from a data folder, or derived from a parsed corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morejax.tasks.multiwoz import jsonfiles
from morejax.tasks.multiwoz.metrics import ScoringError
from morejax.tasks.multiwoz.normalise import normalise_response

if TYPE_CHECKING:
    from morejax.tasks.multiwoz.records import Corpus, Goal, State


@dataclass(frozen=True)
class ScoringData:
    """What predictions are scored against; every mapping is by dialogue id.

    Attributes:
        goals: user goals in scorer form.
        booked: per turn, the domains booked by then.
        gold_states: per turn, the normalised gold state.
        references: per turn, the normalised delexicalised reference.
    """

    goals: Mapping[str, Goal]
    booked: Mapping[str, Sequence[Sequence[str]]]
    gold_states: Mapping[str, Sequence[State]]
    references: Mapping[str, Sequence[str]]

    def only(self, ids: Iterable[str]) -> ScoringData:
        """The same data for some dialogues.

        Raises:
            ScoringError: a dialogue is not there.
        """
        ids = tuple(ids)
        absent = [i for i in ids if not self.has(i)]
        if absent:
            raise ScoringError(f"dialogue {absent[0]!r} has no scoring data ({len(absent)} such dialogues)")
        return ScoringData(*({i: part[i] for i in ids} for part in self._parts()))

    def has(self, dialogue: str) -> bool:
        """Whether the dialogue can be scored."""
        return all(dialogue in part for part in self._parts())

    def _parts(self) -> tuple[Mapping[str, Any], ...]:
        return self.goals, self.booked, self.gold_states, self.references


def load_scoring_data(data_dir: Path | str, split: str) -> ScoringData:
    """Read ``scoring/SPLIT/`` of a data folder; a part of dev named in ``dev_splits.json`` is cut out of
    ``scoring/dev``.

    Args:
        data_dir: corpus folder.
        split: ``dev``, ``test``, or a part of dev such as ``select``.

    Raises:
        ScoringError: the folder has no such scoring data.
        CorpusError: a file is missing or broken.
    """
    data_dir = Path(data_dir)
    folder = data_dir / "scoring" / split
    if folder.is_dir():
        parts = ("goals", "booked_domains", "gold_states", "references")
        return ScoringData(*(jsonfiles.read_json(folder / f"{part}.json", dict) for part in parts))
    if (data_dir / "scoring" / "dev").is_dir() and split in (splits := named_parts(data_dir)):
        return load_scoring_data(data_dir, "dev").only(splits[split])
    raise ScoringError(f"{folder}: no such folder, and no part of scoring/dev is called {split!r}")


def has_scoring_data(data_dir: Path | str, split: str) -> bool:
    """Whether `load_scoring_data` finds the split; otherwise it is derived from the corpus."""
    scoring = Path(data_dir) / "scoring"
    return (scoring / split).is_dir() or ((scoring / "dev").is_dir() and split in named_parts(data_dir))


def named_parts(data_dir: Path | str) -> dict[str, list[str]]:
    """Parts of dev: name -> dialogue ids, from ``dev_splits.json``; empty if there is no such file."""
    path = Path(data_dir) / "dev_splits.json"
    return jsonfiles.read_json(path, dict) if path.exists() else {}


def derive_scoring_data(corpus: Corpus, split: str) -> ScoringData:
    """The same data from a parsed corpus.

    Args:
        corpus: a corpus with gold states, spans, goals and booked domains.
        split: e.g. ``dev`` or ``gold_fit+select``.
    """
    dialogues = corpus.dialogues(split)
    return ScoringData(
        goals={d.id: d.goal for d in dialogues},
        booked={d.id: [turn.booked for turn in d.turns] for d in dialogues},
        gold_states={d.id: [turn.state for turn in d.turns] for d in dialogues},
        references={d.id: [normalise_response(turn.delex) for turn in d.turns] for d in dialogues},
    )
