"""What a system's replies get wrong: why a dialogue loses Inform or Success, and habits that the scores do not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from morejax.tasks.multiwoz.canonical import REQUESTABLES
from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.normalise import mentions
from morejax.tasks.multiwoz.records import Goal
from morejax.tasks.multiwoz.rewards import judge_dialogue, licensed_share
from morejax.tasks.multiwoz.scorer import TurnScore
from morejax.tasks.streams import SampledTurn

NEVER_OFFERED = "Inform lost: a venue or train that is asked for is never offered"
WRONG_OFFER = "Inform lost: what is offered last does not fit the goal"
FACT_MISSING = "Success lost with Inform held: phone, post code, address or train id missing"
REFERENCE_MISSING = "Success lost with Inform held: booking reference missing"
FAULTS = (NEVER_OFFERED, WRONG_OFFER, FACT_MISSING, REFERENCE_MISSING)
"""Classes of what costs a dialogue a point; one dialogue may have several."""

NEEDLESS_OFFER = "offers where people do not"
OFFER_LEFT_OUT = "does not offer where people do"
NEEDLESS_FACT = "gives a requestable slot where people do not"
FACT_LEFT_OUT = "does not give one where people do"
UNLICENSED = "a placeholder that state and database do not license"
QUESTION = "asks a question"
HABITS = (NEEDLESS_OFFER, OFFER_LEFT_OUT, NEEDLESS_FACT, FACT_LEFT_OUT, UNLICENSED, QUESTION)
"""Classes of what a single reply does beside people's; none of them costs a point by itself."""

_OFFERS = frozenset({"NAME", "TRAINID"})


@dataclass(frozen=True)
class Fault:
    """Why a dialogue loses a point.

    Attributes:
        kind: one of `FAULTS`.
        what: domains or slots concerned, for people: "hotel", "hotel phone".
    """

    kind: str
    what: tuple[str, ...]


def faults(turns: Sequence[SampledTurn], database: Database) -> list[Fault]:
    """Why the replies to a dialogue lose Inform or, where that is held, Success; empty where both are held.

    Args:
        turns: all turns of one dialogue in order, with a system's replies.
        database: answers the queries of states and goal.
    """
    verdict = judge_dialogue(turns, database).sampled
    if verdict.success:
        return []
    if verdict.inform:
        missing = _missing(verdict.turns, turns[0].dialogue.goal, [turn.turn.booked for turn in turns])
        references = tuple(f"{domain} {slot}" for domain, slot in missing if slot == "reference")
        facts = tuple(f"{domain} {slot}" for domain, slot in missing if slot != "reference")
        found = (Fault(FACT_MISSING, facts), Fault(REFERENCE_MISSING, references))
    else:
        offered = {domain for turn in verdict.turns for domain in turn.offered}
        lost = [domain for domain, fits in verdict.domains_inform.items() if not fits]
        never = tuple(domain for domain in lost if domain not in offered)
        wrong = tuple(domain for domain in lost if domain in offered)
        found = (Fault(NEVER_OFFERED, never), Fault(WRONG_OFFER, wrong))
    return [one for one in found if one.what]


def _missing(turns: Sequence[TurnScore], goal: Goal, booked: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """(domain, slot) that the goal requests and that was not given; a reference counts once the domain is booked."""
    given: dict[str, set[str]] = {domain: set() for domain in goal}
    for turn, bookings in zip(turns, booked, strict=True):
        for domain in turn.domains:
            given[domain] |= turn.mentioned if domain in bookings else turn.mentioned - {"REFERENCE"}
    wanted = ((domain, slot) for domain in goal for slot in goal[domain]["requestable"])
    return [(domain, slot.lower()) for domain, slot in wanted if slot not in given[domain]]


def habits(turn: SampledTurn, database: Database) -> list[str]:
    """Which of `HABITS` one reply shows, beside people's reply to the same turn."""
    said, human = mentions(turn.text), mentions(turn.turn.delex)
    offers, people = bool(said & _OFFERS), bool(human & _OFFERS)
    gives, given = said & frozenset(REQUESTABLES), human & frozenset(REQUESTABLES)
    found = (
        offers and not people,
        people and not offers,
        bool(gives - given),
        bool(given - gives),
        licensed_share(turn, database) < 1,
        "?" in turn.text,
    )
    return [name for name, holds in zip(HABITS, found, strict=True) if holds]
