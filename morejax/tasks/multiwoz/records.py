"""Typed records of a task-oriented dialogue corpus in the MultiWOZ 2.2 layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from morejax.tasks.multiwoz.errors import CorpusError

if TYPE_CHECKING:
    from morejax.tasks.multiwoz.database import Database

REAL_CORPUS_NAME = "multiwoz-2.2"

State = dict[str, dict[str, str]]
"""Belief state: domain -> slot -> value, in the standard scorer's normal form."""


class DomainGoal(TypedDict):
    """What the user wants in one domain: constraints, and the upper-case slots to be told."""

    informable: dict[str, str]
    requestable: list[str]


Goal = dict[str, DomainGoal]
"""User goal: domain -> constraints and requests, in the standard scorer's normal form."""


@dataclass(frozen=True, slots=True)
class Act:
    """One dialogue act of a system turn, lower case: ``("restaurant", "recommend", ("area", "name"))``."""

    domain: str
    intent: str
    slots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """One user utterance and the system reply to it.

    Attributes:
        index: 0-based number of the system turn in its dialogue.
        user: surface user utterance.
        response: surface system reply.
        delex: the reply with annotated spans replaced by lower-case placeholder tokens such as ``[name]``.
        state: gold state after the user utterance, in the standard scorer's normal form.
        requested: slots the user asks for in this utterance, ``"domain-slot"``.
        acts: dialogue acts of the reply; empty where the corpus has none.
        booked: domains booked by (and including) this reply.
    """

    index: int
    user: str
    response: str
    delex: str
    state: State
    requested: tuple[str, ...]
    acts: tuple[Act, ...]
    booked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One dialogue; ``id`` is lower case without ``.json``, ``goal`` is in scorer form."""

    id: str
    split: str
    turns: tuple[Turn, ...]
    goal: Goal


@dataclass(frozen=True)
class Schema:
    """The part of ``schema.json`` that a reader needs.

    Attributes:
        services: service -> slot (without the service's name) -> its values if it is categorical, else empty.
    """

    services: Mapping[str, Mapping[str, tuple[str, ...]]]

    def has_slot(self, name: str) -> bool:
        """Whether the full slot name, e.g. ``"hotel-pricerange"``, is declared."""
        service, _, slot = name.partition("-")
        return slot in self.services.get(service, {})


@dataclass(frozen=True)
class Corpus:
    """A parsed corpus.

    Attributes:
        name: ``"multiwoz-2.2"`` or the name in the folder's ``corpus.json``.
        root: folder it was read from.
        splits: split name -> dialogues in corpus order; named sub-splits (of dev) are splits as well.
        database: the databases of all domains.
        schema: services and slots.
        skipped: reason -> number of dialogues left out, turns kept bare or slots dropped.
    """

    name: str
    root: Path
    splits: dict[str, tuple[Dialogue, ...]]
    database: Database
    schema: Schema
    skipped: dict[str, int] = field(default_factory=dict)

    def dialogues(self, splits: str) -> tuple[Dialogue, ...]:
        """Dialogues of one split or of several joined by ``+``, each dialogue once.

        Args:
            splits: e.g. ``"train"`` or ``"train+gold_fit"``.

        Returns:
            Dialogues in the order of the named splits.

        Raises:
            CorpusError: a split is unknown, empty, or named dialogues occur in two of the splits.
        """
        joined: dict[str, Dialogue] = {}
        for name in split_names(splits):
            for dialogue in self._split(name):
                if dialogue.id in joined:
                    raise CorpusError(
                        f"splits {splits!r}: dialogue {dialogue.id!r} is in more than one of them; "
                        "name each dialogue's split once (gold_fit and select are parts of dev)"
                    )
                joined[dialogue.id] = dialogue
        return tuple(joined.values())

    def _split(self, name: str) -> tuple[Dialogue, ...]:
        if name not in self.splits:
            raise CorpusError(f"{self.root}: no split {name!r}; this corpus has {', '.join(sorted(self.splits))}")
        if not self.splits[name]:
            raise CorpusError(f"{self.root}: split {name!r} is empty; expected at least one dialogue")
        return self.splits[name]


def split_names(splits: str) -> tuple[str, ...]:
    """Names in a ``"train+gold_fit"`` flag, in order, without repetitions.

    Raises:
        CorpusError: a name is empty.
    """
    names = tuple(dict.fromkeys(name.strip() for name in splits.split("+")))
    if not all(names):
        raise CorpusError(f"splits {splits!r}: expected names joined by '+', e.g. 'train+gold_fit'")
    return names
