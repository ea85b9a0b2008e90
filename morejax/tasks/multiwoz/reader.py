"""Read a corpus in the original MultiWOZ 2.2 layout into typed records.

What the standard scorer's own reader derives is derived in the same way. The state of a system turn is that
after the user turn before it: the first listed value of every slot (Zang et al. 2020), without ``dontcare``
slots, in the scorer's normal form. The delexicalised reply comes from annotated character spans (Nekvinda
and Dusek 2021).
"""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morejax.tasks.multiwoz import annotations
from morejax.tasks.multiwoz.annotations import brief, dialogue_key, read_schema
from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.delexicalise import delexicalise
from morejax.tasks.multiwoz.errors import CorpusError
from morejax.tasks.multiwoz.jsonfiles import DOWNLOAD_COMMAND, read_json
from morejax.tasks.multiwoz.layout import BASE_SPLITS, Layout, find_layout
from morejax.tasks.multiwoz.records import Corpus, Dialogue, Schema, Turn, split_names

READER_VERSION = 1
"""Raised when the records change for the same files, so that caches of older readers are not used."""

logger = logging.getLogger(__name__)


def read_corpus(root: str | Path, splits: str | Iterable[str] | None = None) -> Corpus:
    """Read and check a corpus folder.

    A train dialogue that cannot be scored (no goal, or booked domains that do not fit its turns) is left
    out, counted in ``Corpus.skipped`` and logged; in every other split it is an error. Turns without acts
    and requested slots outside the schema do occur: the former are kept without acts, the latter dropped,
    both are counted.

    Args:
        root: folder in the release's layout (see `morejax.tasks.multiwoz.layout.find_layout`).
        splits: names such as ``"train+gold_fit"`` or a list of names; all that the folder has if None.

    Returns:
        The parsed corpus with its database. Dialogues of a named part of dev are those of dev.

    Raises:
        CorpusError: something is missing, broken, empty or unknown; the message says where and what to do.
    """
    layout = find_layout(root)
    parts = read_parts(layout)
    wanted = _wanted(layout, parts, splits)
    needed = {"dev" if name in parts else name for name in wanted}
    schema = read_schema(layout.schema)
    with collector_paused():
        reading = _Reading(
            layout,
            schema,
            read_json(layout.acts, dict),
            _by_key(read_json(layout.goals, dict)),
            _by_key(read_json(layout.booked, dict)),
        )
        bases = {split: reading.read_split(split) for split in BASE_SPLITS if split in needed}
    return assemble(layout, bases, parts, schema, reading.skipped, wanted)


def assemble(
    layout: Layout,
    bases: Mapping[str, tuple[Dialogue, ...]],
    parts: Mapping[str, Sequence[str]],
    schema: Schema,
    skipped: Mapping[str, int],
    wanted: Sequence[str] | None = None,
) -> Corpus:
    """Put a corpus together from its base splits and log what was skipped.

    Args:
        layout: where the files lie.
        bases: train, dev and test as far as they were read.
        parts: named part of dev -> dialogue ids.
        schema: services and slots.
        skipped: what was left out, by reason.
        wanted: names of the splits to give; all if None.
    """
    splits = dict(bases)
    if "dev" in bases:
        by_id = {dialogue.id: dialogue for dialogue in bases["dev"]}
        splits |= {name: _part(layout, name, ids, by_id) for name, ids in parts.items()}
    for reason, count in skipped.items():
        logger.log(logging.WARNING if "left out" in reason else logging.INFO, "%s: %d %s", layout.root, count, reason)
    chosen = {name: splits[name] for name in (wanted or splits)}
    database = Database.load(layout.databases)
    return Corpus(layout.corpus_name(), layout.root, chosen, database, schema, dict(skipped))


def read_parts(layout: Layout) -> dict[str, list[str]]:
    """Named parts of dev in ``dev_splits.json``; none without that file.

    Raises:
        CorpusError: the file is broken, a part is empty or named like a split of the release.
    """
    if not layout.dev_splits.exists():
        return {}
    parts = read_json(layout.dev_splits, dict)
    for name, ids in parts.items():
        if name in BASE_SPLITS:
            raise CorpusError(f"{layout.dev_splits}: found a part named {name!r}, expected a name of its own")
        if not isinstance(ids, list) or not ids:
            raise CorpusError(f"{layout.dev_splits}: split {name!r} is empty, expected a list of dev dialogue ids")
    return {name: [dialogue_key(str(item)) for item in ids] for name, ids in parts.items()}


@contextmanager
def collector_paused() -> Iterator[None]:
    """Hold the cyclic garbage collector: walking all the live records again and again triples the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class _Place:
    """Where an utterance pair stands."""

    path: Path
    dialogue_id: str
    split: str

    def __str__(self) -> str:
        return f"{self.path}: dialogue {self.dialogue_id}"


@dataclass(frozen=True)
class _Reading:
    """One pass over the dialogue files with everything about the dialogues that lies in other files."""

    layout: Layout
    schema: Schema
    acts: Mapping[str, Any]
    goals: Mapping[str, Any]
    booked: Mapping[str, Any]
    skipped: Counter[str] = field(default_factory=Counter)
    seen: dict[str, Path] = field(default_factory=dict)

    def read_split(self, split: str) -> tuple[Dialogue, ...]:
        """All dialogues of a split in file order."""
        counts: Counter[str] = Counter()
        read = [self._dialogue(raw, place, counts) for raw, place in self._raw_dialogues(split)]
        self.skipped.update({f"{split} {reason}": count for reason, count in counts.items()})
        dialogues = tuple(dialogue for dialogue in read if dialogue is not None)
        if not dialogues:
            why = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "its files hold no dialogue"
            raise CorpusError(f"{self.layout.dialogues / split}: split {split!r} is empty ({why}), expected dialogues")
        return dialogues

    def _raw_dialogues(self, split: str) -> Iterator[tuple[Any, _Place]]:
        for path in self.layout.dialogue_files(split):
            for number, raw in enumerate(read_json(path, list)):
                dialogue_id = annotations.field(raw, "dialogue_id", str, f"{path}: entry {number}")
                key = dialogue_key(dialogue_id)
                if key in self.seen:
                    raise CorpusError(
                        f"{path}: dialogue {dialogue_id} is also in {self.seen[key]}, expected each id once"
                    )
                self.seen[key] = path
                yield raw, _Place(path, dialogue_id, split)

    def _dialogue(self, raw: Any, place: _Place, counts: Counter[str]) -> Dialogue | None:
        key = dialogue_key(place.dialogue_id)
        pairs = turn_pairs(annotations.field(raw, "turns", list, str(place)), str(place))
        fault = self._scoring_fault(key, len(pairs))
        if fault and place.split == "train":
            counts[f"dialogues left out: {fault[0]}"] += 1
            return None
        if fault:
            raise CorpusError(f"{place}: {fault[1]}, so it cannot be scored; fetch the file again: {DOWNLOAD_COMMAND}")
        acts = self.acts.get(place.dialogue_id)
        if not isinstance(acts, dict):
            raise CorpusError(f"{place}: not in {self.layout.acts}, whose spans are needed to delexicalise its replies")
        goal = annotations.parse_goal(self.goals[key], f"{self.layout.goals}: dialogue {key}", self.schema)
        booked = self.booked[key]
        turns = (self._turn(i, pair, acts, booked[i], place, counts) for i, pair in enumerate(pairs))
        return Dialogue(key, place.split, tuple(turns), goal)

    def _scoring_fault(self, key: str, turns: int) -> tuple[str, str] | None:
        """Why a dialogue cannot be scored, as a countable reason and as a message; None if it can."""
        if not self.goals.get(key):
            found = "an empty goal" if key in self.goals else "no goal"
            return "no goal", f"found {found} in {self.layout.goals}, expected one"
        entry = self.booked.get(key)
        if not isinstance(entry, list) or len(entry) != turns:
            found = f"{len(entry)} entries" if isinstance(entry, list) else "no entry"
            return (
                "no booked domains",
                f"found {found} in {self.layout.booked}, expected one a system turn: {turns}",
            )
        return None

    def _turn(
        self,
        index: int,
        pair: tuple[Any, Any],
        acts: Mapping[str, Any],
        booked: Any,
        place: _Place,
        counts: Counter[str],
    ) -> Turn:
        user, system = pair
        where = f"{place}, turn {2 * index}"
        reply = f"{self.layout.acts}: dialogue {place.dialogue_id}, turn {2 * index + 1}"
        response = annotations.field(system, "utterance", str, where)
        annotated = acts.get(str(system.get("turn_id", 2 * index + 1))) or {}
        parsed = annotations.parse_acts(annotated.get("dialog_act") or {}, reply)
        if not parsed:
            counts["system turns without acts (kept)"] += 1
        spans = annotations.parse_spans(annotated.get("span_info") or [], response, reply, counts)
        frames = annotations.field(user, "frames", list, where)
        state, requested = annotations.parse_frames(frames, where, self.schema, counts)
        return Turn(
            index=index,
            user=annotations.field(user, "utterance", str, where),
            response=response,
            delex=delexicalise(response, spans),
            state=state,
            requested=requested,
            acts=parsed,
            booked=self._booked(booked, place, index),
        )

    def _booked(self, domains: Any, place: _Place, index: int) -> tuple[str, ...]:
        if not isinstance(domains, list) or not all(domain in self.schema.services for domain in domains):
            where = f"{self.layout.booked}: dialogue {dialogue_key(place.dialogue_id)}, system turn {index}"
            raise CorpusError(f"{where}: found {brief(domains)}, expected a list of domains of schema.json")
        return tuple(domains)


def turn_pairs(turns: list[Any], where: str) -> list[tuple[Any, Any]]:
    """User turns with the system turns that follow them.

    Raises:
        CorpusError: the turns do not alternate, beginning with the user and ending with the system.
    """
    for number, turn in enumerate(turns):
        speaker = annotations.field(turn, "speaker", str, f"{where}, turn {number}")
        expected = ("USER", "SYSTEM")[number % 2]
        if speaker != expected:
            raise CorpusError(
                f"{where}, turn {number}: found speaker {speaker!r}, expected {expected}; they must alternate"
            )
    if not turns or len(turns) % 2:
        raise CorpusError(f"{where}: found {len(turns)} turns, expected pairs USER, SYSTEM: turns must alternate")
    return list(zip(turns[::2], turns[1::2], strict=True))


def _wanted(layout: Layout, parts: Mapping[str, Any], splits: str | Iterable[str] | None) -> tuple[str, ...]:
    bases = layout.base_splits()
    have = (*bases, *(parts if "dev" in bases else ()))
    if splits is None:
        return have
    names = split_names(splits) if isinstance(splits, str) else tuple(dict.fromkeys(splits))
    for name in names:
        if name not in have:
            raise CorpusError(f"{layout.root}: found no split {name!r}, expected one of {', '.join(have)}")
    return names


def _part(layout: Layout, name: str, ids: Sequence[str], dev: Mapping[str, Dialogue]) -> tuple[Dialogue, ...]:
    missing = [key for key in ids if key not in dev]
    if missing:
        found = f"{len(missing)} dialogues that are not in dev, e.g. {missing[0]!r}"
        raise CorpusError(f"{layout.dev_splits}: split {name!r} names {found}")
    return tuple(dev[key] for key in dict.fromkeys(ids))


def _by_key(table: Mapping[str, Any]) -> dict[str, Any]:
    return {dialogue_key(name): value for name, value in table.items()}
