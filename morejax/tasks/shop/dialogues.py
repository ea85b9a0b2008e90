"""Generated dialogues: cases, what users ask about them, and how the corpus's human agents reply. Seeded.

A case is the hidden state of a whole dialogue. Every user turn asks something about it, sometimes after a change of
mind about amount and months; every agent turn can be scored by itself. All turns of a split lie packed in one table,
a row a turn, which is what rewards on the device read.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from morejax.tasks.shop import ontology, user_turns
from morejax.tasks.shop.answers import Gold, gold_answers
from morejax.tasks.shop.ontology import AFTERSALES_INTENTS, CREDIT_INTENTS, DECISIONS, INTENTS, index
from morejax.tasks.shop.oracle import HumanRates, Question, human_reply
from morejax.tasks.shop.state import Case, Request, take, unpack
from morejax.tasks.shop.user_turns import UserRates
from morejax.tasks.shop.world import ITEM_NAMES, SPLITS, TENORS, sample_cases


@dataclass(frozen=True)
class Mix:
    """What dialogues are made of."""

    turns: tuple[int, ...] = (2, 2, 3, 3, 4, 5)
    """User turns of a dialogue, drawn evenly."""
    second_question: float = 0.25
    third_question: float = 0.05
    change_of_mind: float = 0.15
    """Of a later credit turn that is about an amount."""
    human: float = 0.06
    objection: float = 0.12
    smalltalk: float = 0.08
    """Shares of later turns; the rest asks something of the domain."""


@dataclass(frozen=True)
class ShopTurn:
    """One user turn and the corpus's reply.

    Attributes:
        index: 0-based number in the dialogue.
        row: its row in the split's table.
        user: what the user says.
        response: what the human agent replies; also called `delex`, as streams of other tasks know it.
        asked: intents.
        changed: has the user just changed amount or months?
    """

    index: int
    row: int
    user: str
    response: str
    asked: tuple[str, ...]
    changed: bool = False

    @property
    def delex(self) -> str:
        """The reference reply."""
        return self.response


@dataclass(frozen=True)
class ShopDialogue:
    """A dialogue about one case."""

    id: str
    split: str
    domain: str
    turns: tuple[ShopTurn, ...]


class TurnTable(NamedTuple):
    """All turns of a split, a row a turn."""

    case: Case
    asked: Any
    """bool[N, I]."""
    upset: Any
    """bool[N]."""
    earlier: Request
    """Amount and months before a change of mind in this turn."""


@dataclass(frozen=True)
class ShopSplit:
    """Generated dialogues and the packed truth about their turns."""

    name: str
    dialogues: tuple[ShopDialogue, ...]
    table: TurnTable
    gold: Gold
    _questions: list[Question] = field(default_factory=list, repr=False, compare=False)

    def questions(self) -> list[Question]:
        """Every turn as the oracle sees it, in the order of rows; unpacked once."""
        if not self._questions:
            self._questions.extend(as_questions(self.table, self.gold))
        return self._questions


def as_questions(table: TurnTable, gold: Gold) -> list[Question]:
    """Single questions of packed ones."""
    asked = [tuple(INTENTS[i] for i in np.flatnonzero(row)) for row in np.asarray(table.asked)]
    rows = zip(unpack(table.case), unpack(gold), asked, table.upset.tolist(), strict=True)
    return [Question(*row) for row in rows]


def generate(
    seed: int,
    dialogues: int,
    split: str,
    *,
    mix: Mix | None = None,
    users: UserRates | None = None,
    agents: HumanRates | None = None,
) -> ShopSplit:
    """Generates a split.

    Args:
        seed: splits of one seed are disjoint draws.
        dialogues: how many.
        split: "train", "dev", "test", or "held_out", which has policy versions, products and items of its own.
        mix: of turns and questions.
        users: noise of users' wording.
        agents: errors of the corpus's agents; `HumanRates(0, ...)` for none.

    Returns:
        The split, a pure function of the arguments.

    Raises:
        ValueError: an unknown split, or fewer than one dialogue.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    if dialogues < 1:
        raise ValueError(f"dialogues is {dialogues}, expected at least 1")
    numbers = np.random.default_rng([seed, zlib.crc32(split.encode())])
    rng = random.Random(int(numbers.integers(2**62)))
    users, mix, agents = users or UserRates(), mix or Mix(), agents or HumanRates()
    cases = sample_cases(numbers, dialogues, split)
    drafts = [_draft(case, mix, users, rng) for case in unpack(cases)]
    table = _table(cases, drafts)
    gold = gold_answers(table.case, table.asked)
    questions = as_questions(table, gold)
    made, row = [], 0
    for number, draft in enumerate(drafts):
        turns = tuple(
            _turn(position, row + position, turn, questions[row + position], rng, users, agents)
            for position, turn in enumerate(draft)
        )
        row += len(draft)
        domain = ontology.DOMAINS[questions[turns[0].row].case.domain]
        made.append(ShopDialogue(f"{split}-{seed}-{number:06d}", split, domain, turns))
    return ShopSplit(split, tuple(made), table, gold, questions)


# Drafts: who asks what


class _Draft(NamedTuple):
    """One turn before anything is worded."""

    asked: tuple[str, ...]
    request: Request
    earlier: Request
    upset: bool

    @property
    def changed(self) -> bool:
        return self.request != self.earlier


_WITH_AMOUNT = ("borrow", "instalment", "interest", "fee")
_APART = (
    {"kyc", "borrow"}, {"kyc", "raise_limit"}, {"overdue", "borrow"}, {"overdue", "raise_limit"}, {"overdue", "promo"},
    {"due", "overdue"}, {"due", "borrow"}, {"due", "raise_limit"}, {"due", "promo"}, {"refund_when", "refund"},
    {"status", "cancel"}, {"status", "return"}, {"instalment", "interest"},
)  # fmt: skip
"""Questions that nobody asks together: the answer to one contains the other's."""


def possible_intents(case: Case) -> tuple[str, ...]:
    """What this customer has reason to ask about."""
    if case.domain == 0:
        return tuple(intent for intent in CREDIT_INTENTS if intent != "due" or case.profile.bill_cents > 0)
    delivered = case.order.status == 2
    unfit = {"status": False, "membership": case.profile.member_until < case.today}
    unfit |= dict.fromkeys(("refund", "deadline"), not delivered) | {"refund_when": case.order.refund_state == 0}
    unfit |= {"cancel": delivered and case.order.number % 4 > 0, "return": not delivered and case.order.number % 3 > 0}
    return tuple(intent for intent in AFTERSALES_INTENTS if not unfit.get(intent, False))


def _draft(case: Case, mix: Mix, users: UserRates, rng: random.Random) -> list[_Draft]:
    open_intents = list(possible_intents(case))
    rng.shuffle(open_intents)
    request, drafts = case.request, []
    for position in range(rng.choice(mix.turns)):
        asked = _common(position, mix, rng) or _take_questions(open_intents, mix, rng) or ("smalltalk",)
        earlier = request
        about_amount = any(intent in _WITH_AMOUNT for intent in asked)
        if position and about_amount and rng.random() < mix.change_of_mind:
            request = _changed(request, case, rng)
        upset = asked != ("smalltalk",) and rng.random() < users.upset
        drafts.append(_Draft(asked, request, earlier, upset))
    return drafts


def _common(position: int, mix: Mix, rng: random.Random) -> tuple[str, ...]:
    """A turn about nothing of the domain, or ()."""
    if position == 0:
        return ()
    drawn = rng.random()
    for intent in ("human", "objection", "smalltalk"):
        drawn -= getattr(mix, intent)
        if drawn < 0:
            return (intent,)
    return ()


def _take_questions(open_intents: list[str], mix: Mix, rng: random.Random) -> tuple[str, ...]:
    """Takes one to three intents that go together off the list; in the order of `INTENTS`."""
    drawn = rng.random()
    wanted = 1 + (drawn < mix.second_question + mix.third_question) + (drawn < mix.third_question)
    taken: list[str] = []
    for intent in open_intents:
        if len(taken) < wanted and all(go_together(intent, other) for other in taken):
            taken.append(intent)
    for intent in taken:
        open_intents.remove(intent)
    return tuple(sorted(taken, key=INTENTS.index))


def go_together(one: str, other: str) -> bool:
    """May two intents be asked in one turn?"""
    return {one, other} not in _APART and not (one in DECISIONS and other in DECISIONS)


def _changed(request: Request, case: Case, rng: random.Random) -> Request:
    tenor = rng.choice([tenor for tenor in TENORS if tenor != request.tenor])
    step = rng.choice((-2, -1, 1, 2)) * 5_000
    amount = request.amount + step if request.amount + step >= case.product.min_draw else request.amount + 5_000
    return Request(amount, tenor)


def _table(cases: Case, drafts: Sequence[Sequence[_Draft]]) -> TurnTable:
    owner = np.repeat(np.arange(len(drafts)), [len(draft) for draft in drafts])
    turns = [turn for draft in drafts for turn in draft]
    asked = np.zeros((len(turns), len(INTENTS)), bool)
    for row, turn in enumerate(turns):
        asked[row, [index(INTENTS, intent) for intent in turn.asked]] = True

    def requests(which: str) -> Request:
        return Request(*np.array([getattr(turn, which) for turn in turns], np.int32).T)

    case = take(cases, owner)._replace(request=requests("request"))
    return TurnTable(case, asked, np.array([turn.upset for turn in turns]), requests("earlier"))


def _turn(position, row, draft: _Draft, question: Question, rng, users: UserRates, agents: HumanRates) -> ShopTurn:
    values = {
        "amount": user_turns.user_amount(draft.request.amount, rng),
        "tenor": str(draft.request.tenor),
        "item": ITEM_NAMES[question.case.order.item],
        "order_number": str(question.case.order.number),
    }
    said = user_turns.utterance(
        draft.asked, values, rng, users, first=position == 0, changed=draft.changed, upset=draft.upset
    )
    return ShopTurn(position, row, said, human_reply(question, rng, agents), draft.asked, draft.changed)
