"""Contacts of an experiment: on which day who calls about what, before any agent has said a word.

Contacts depend on seed, day and number alone, so every arm meets the same ones. Over the days the mix drifts from
credit to aftersales, more users come at weekends and they have more time, and each day has a mood of its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from morejax.tasks.shop.dialogues import go_together, possible_intents
from morejax.tasks.shop.ontology import DECISIONS, INTENTS, index
from morejax.tasks.shop.randomness import Keys, Purpose, bits, dialogue_keys, uniform
from morejax.tasks.shop.state import Case, take, unpack
from morejax.tasks.shop.user_model import Setting
from morejax.tasks.shop.world import sample_cases

AGENDA = 4
"""Most questions of a user, several intents in one turn being one of them."""
CREDIT_SHARE = (0.65, 0.35)
"""Share of credit contacts on the first day and on the last one."""
WEEKEND_VOLUME = 1.4
WEEKEND_PATIENCE = 0.05
DAY_MOOD = 0.06
"""Range of what a day does to patience, up and down."""
GOALS: dict[int, tuple[tuple[str, float], ...]] = {
    0: (("borrow", 0.85), ("raise_limit", 0.15)),
    1: (("return", 0.7), ("cancel", 0.3)),
}
"""Goals of a domain and their weights, where they are possible at all."""
SECOND_QUESTION = 0.3
"""Probability that a turn asks one thing more."""


@dataclass(frozen=True)
class Contacts:
    """N users with their goals; fields are arrays with a row each.

    Attributes:
        seed: of the experiment.
        users: which users, for pass^k.
        day, number: i32[N].
        keys: uint64[N].
        case: packed.
        agenda: bool[N, A, I], what each question asks; rows of False behind the last one.
        questions: i32[N], how many there are.
        goal: i32[N], index into `INTENTS`, -1 for information.
        goal_place: i32[N], which question asks for it; 0 for information.
        shift: f[N], what the day does to patience.
    """

    seed: int
    users: int
    day: np.ndarray
    number: np.ndarray
    keys: Keys
    case: Case
    agenda: np.ndarray
    questions: np.ndarray
    goal: np.ndarray
    goal_place: np.ndarray
    shift: np.ndarray

    def __len__(self) -> int:
        return len(self.day)


def make_contacts(seed: int, dialogues: int, setting: Setting, *, split: str = "test", days: int = 14) -> Contacts:
    """Contacts of an experiment.

    Args:
        seed: of the experiment.
        dialogues: N, shared out over the days.
        setting: population; it decides how many want information only.
        split: of `world.SPLITS`, where cases are drawn from.
        days: of the experiment.

    Raises:
        ValueError: fewer dialogues than days, or no day.
    """
    if days < 1 or dialogues < days:
        raise ValueError(f"dialogues is {dialogues} and days {days}, expected at least one dialogue a day")
    day = np.repeat(np.arange(days), _volumes(dialogues, days))
    number = np.concatenate([np.arange(count) for count in np.bincount(day, minlength=days)])
    rng = np.random.default_rng([seed, 0x5409])
    case = _cases_of_domains(rng, _domains(rng, day, days), split)
    return _with_users(seed, 0, day, number, case, setting)


def other_users(contacts: Contacts, users: int, setting: Setting) -> Contacts:
    """The same cases with other users: other questions in another order, minds and words. For pass^k."""
    return _with_users(contacts.seed, users, contacts.day, contacts.number, contacts.case, setting)


def spread(total: int, count: int) -> np.ndarray:
    """At most `count` of so many rows, spread evenly, and so over the days."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))


def chosen(contacts: Contacts, rows: np.ndarray) -> Contacts:
    """The contacts of these rows."""
    arrays = ("day", "number", "keys", "agenda", "questions", "goal", "goal_place", "shift")
    taken = {name: getattr(contacts, name)[rows] for name in arrays}
    return replace(contacts, case=take(contacts.case, rows), **taken)


def _volumes(dialogues: int, days: int) -> np.ndarray:
    """Contacts of each day, i32[D]; the largest remainders get what rounding leaves."""
    weights = np.where(_weekend(np.arange(days)), WEEKEND_VOLUME, 1.0)
    exact = dialogues * weights / weights.sum()
    counts = np.maximum(np.floor(exact).astype(int), 1)
    while counts.sum() > dialogues:
        counts[np.argmax(counts)] -= 1
    missing = dialogues - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts


def _weekend(day: np.ndarray) -> np.ndarray:
    return day % 7 >= 5


def _domains(rng: np.random.Generator, day: np.ndarray, days: int) -> np.ndarray:
    start, end = CREDIT_SHARE
    credit = start + (end - start) * day / max(days - 1, 1)
    return (rng.random(len(day)) >= credit).astype(int)


def _cases_of_domains(rng: np.random.Generator, domain: np.ndarray, split: str) -> Case:
    """Cases with these domains: drawn from the world, which mixes them evenly, until there are enough of each."""
    drawn = sample_cases(rng, 4 * len(domain) + 64, split)
    rows = np.zeros(len(domain), int)
    for code in (0, 1):
        of_code = np.flatnonzero(drawn.domain == code)
        wanted = int((domain == code).sum())
        if len(of_code) < wanted:
            raise AssertionError(f"{len(of_code)} cases of domain {code} drawn, {wanted} needed")
        rows[domain == code] = of_code[:wanted]
    return take(drawn, rows)


def _with_users(seed: int, users: int, day, number, case: Case, setting: Setting) -> Contacts:
    keys = dialogue_keys(seed, day, number, users)
    agendas = bits(keys, 0, Purpose.AGENDA).tolist()
    drafts = [_agenda(one, setting, random.Random(key)) for one, key in zip(unpack(case), agendas, strict=True)]
    agenda = np.zeros((len(drafts), AGENDA, len(INTENTS)), bool)
    for row, (questions, _, _) in enumerate(drafts):
        for place, intents in enumerate(questions):
            agenda[row, place, [index(INTENTS, intent) for intent in intents]] = True
    _, goals, places = zip(*drafts, strict=True)
    mood = uniform(dialogue_keys(seed, day, np.full_like(day, -1)), 0, Purpose.PATIENCE)
    shift = DAY_MOOD * (2.0 * mood - 1.0) + WEEKEND_PATIENCE * _weekend(day)
    questions = agenda.any(axis=2).sum(axis=1)
    return Contacts(seed, users, day, number, keys, case, agenda, questions, np.array(goals), np.array(places), shift)


def _agenda(case: Any, setting: Setting, rng: random.Random) -> tuple[list[tuple[str, ...]], int, int]:
    """Questions of one user, index of the goal's intent, and which question asks for it."""
    possible = possible_intents(case)
    wants_information = rng.random() < setting.information
    goal = "" if wants_information else _goal(case.domain, possible, rng)
    others = [intent for intent in possible if intent not in DECISIONS or (intent == "promo" and goal == "borrow")]
    rng.shuffle(others)
    count = rng.randint(1, AGENDA - bool(goal))
    questions: list[tuple[str, ...]] = [(intent,) for intent in others[:count]]
    place = 0
    if goal:
        place = min(rng.choice((0, 0, 1, 1, 2)), len(questions))
        questions.insert(place, (goal,))
    for extra in others[count:]:
        at = rng.randrange(len(questions))
        if rng.random() < SECOND_QUESTION and len(questions[at]) == 1 and go_together(extra, questions[at][0]):
            questions[at] = tuple(sorted((*questions[at], extra), key=INTENTS.index))
    return questions, index(INTENTS, goal) if goal else -1, place


def _goal(domain: int, possible: tuple[str, ...], rng: random.Random) -> str:
    """A goal of the domain among what is possible, or ""."""
    choices = [(name, weight) for name, weight in GOALS[domain] if name in possible]
    if not choices:
        return ""
    names, weights = zip(*choices, strict=True)
    return rng.choices(names, weights)[0]
