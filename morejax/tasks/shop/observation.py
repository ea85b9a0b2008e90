"""What a user makes of a reply, and what a dialogue keeps of what was said: from the checker's claims, pure arrays.

Users see what is answered, but whether it is right they notice only sometimes: the larger the error, the more often.
A wrong yes pleases as much as a right one. That is why selling at any price pays in the short run, and why it has to
be counted apart.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from morejax.tasks.shop.answers import Gold
from morejax.tasks.shop.claims import INVALID, Claims
from morejax.tasks.shop.language import empathy, kind_table, needs_empathy, token_budget
from morejax.tasks.shop.ontology import ACTIONS, FORBIDDEN, INTENTS, REASONS, SLOT_KINDS, SLOTS, Kind, index
from morejax.tasks.shop.reasoning import Verdict, checked_slots, judge
from morejax.tasks.shop.user_model import Observed, Setting

COST_SLOTS = ("instalment", "interest", "total_repay", "fee", "rate", "restock_fee", "return_cost")
"""What makes an offer look cheap or dear."""
MOST_EXCESS = 2.0
DAYS_OF_LARGE_ERROR = 10
"""A date that is wrong by so many days counts as wrong altogether."""


class Memory(NamedTuple):
    """What was said in a dialogue so far."""

    told_right: Any
    """bool[N, S]: slots last stated rightly; `told_wrong` those last misstated."""
    told_wrong: Any
    decision: Any
    """i32[N]: last answer to the goal: -1 none, 0 no, 1 yes."""
    decided: Any
    """bool[N]: has the goal's question of yes or no been answered at all?"""
    ineligible: Any
    """bool[N]: the last yes was wrong; `over_limit` because of the limit."""
    over_limit: Any
    misled: Any
    """bool[N]: false promises were made."""
    discount: Any
    """f[N] in [-1, 1]: how much cheaper than it is the offer was last made to look."""


class Turn(NamedTuple):
    """A reply and what it answers; a row a dialogue."""

    tokens: Any
    """i32[N, T]."""
    mask: Any
    """bool[N, T], without `<eos>`."""
    claims: Claims
    gold: Gold
    asked: Any
    """bool[N, I]."""
    upset: Any
    """bool[N]."""
    goal_asked: Any
    """bool[N]: does this turn ask for the user's goal?"""
    credit: Any
    """bool[N]."""
    repeated: Any
    """bool[N]: is it the reply before, word for word?"""


def empty_memory(count: int, xp: Any = np) -> Memory:
    """Nothing said yet."""
    no = xp.zeros(count, bool)
    slots = xp.zeros((count, len(SLOTS)), bool)
    return Memory(slots, slots, xp.full(count, -1, np.int32), no, no, no, no, xp.zeros(count, np.float32))


def observe(
    turn: Turn, memory: Memory, notice: Any, setting: Setting, xp: Any = np
) -> tuple[Observed, Memory, Verdict]:
    """One reply as the user sees it.

    Args:
        turn: the reply.
        memory: of the dialogue before it.
        notice: f[N] in [0, 1): small numbers notice more.
        setting: population.
        xp: `numpy` or `jax.numpy`.

    Returns:
        What is observed, the memory after it, and the checker's verdict, which no user sees.
    """
    claims, gold = turn.claims, turn.gold
    verdict = judge(claims, gold, xp)
    right, wrong = checked_slots(claims, gold, xp)
    severity = _severity(claims, gold, xp)
    noticed = wrong.any(axis=1) & (notice < setting.notice + setting.notice_size * severity)
    yes, no = claims.approves & ~claims.denies, claims.denies & ~claims.approves
    changed = turn.goal_asked & ((yes & (memory.decision == 0)) | (no & (memory.decision == 1)))
    taken_back = ((right & memory.told_wrong) | (wrong & memory.told_right)).any(axis=1)
    kind = empathy(turn.tokens, turn.mask, xp.asarray(kind_table()), xp) > 0
    needs = needs_empathy(gold, turn.asked, turn.upset)
    forbids = claims.forbidden
    pushy = forbids[:, _PRESSURE] | forbids[:, _THREAT] | (turn.asked[:, _OBJECTION] & yes)
    excess = turn.mask.sum(axis=1) / token_budget(gold) - 1.0
    applied = verdict.applies.sum(axis=1)
    observed = Observed(
        right=verdict.score.sum(axis=1) / xp.maximum(applied, 1),
        answered=answered(turn, xp),
        wrong=noticed,
        severity=severity,
        contradiction=(claims.approves & claims.denies) | changed | taken_back,
        disclosed=verdict.score[:, _DISCLOSURE],
        kind=kind & needs,
        unkind=~kind & needs,
        pleased=yes & gold.asks_decision,
        disappointed=no & gold.asks_decision,
        pushy=pushy,
        repeated=turn.repeated,
        long=xp.clip(excess, 0.0, MOST_EXCESS),
        not_acted=(gold.actions & ~claims.actions).any(axis=1),
    )
    return _as_floats(observed), _remember(turn, memory, right, wrong, yes, no, xp), verdict


_DISCLOSURE = 4
_PRESSURE, _THREAT = index(FORBIDDEN, "pressure"), index(FORBIDDEN, "threat")
_OBJECTION = index(INTENTS, "objection")


def _as_floats(observed: Observed) -> Observed:
    return Observed(*(value.astype(np.float32) for value in observed))


def answered(turn: Turn, xp: Any = np) -> Any:
    """Share of what is due that the reply answers, rightly or not, f[N]; where nothing is due: does it say anything?

    Due are the required slots, a decision, and the actions.
    """
    claims, gold = turn.claims, turn.gold
    stated = ((claims.slot[..., None] == xp.arange(len(SLOTS))[None, None, :]) & ~claims.negated[..., None]).any(axis=1)
    due = gold.required.sum(axis=1) + gold.asks_decision + gold.actions.sum(axis=1)
    done = (stated & gold.required).sum(axis=1) + (gold.asks_decision & (claims.approves | claims.denies))
    done = done + (gold.actions & claims.actions).sum(axis=1)
    return xp.where(due > 0, done / xp.maximum(due, 1), turn.mask.any(axis=1))


_KINDS = np.array([int(kind) for kind in SLOT_KINDS.values()], np.int32)


def _severity(claims: Claims, gold: Gold, xp: Any) -> Any:
    """Largest relative error of a misstated figure, f[N] in [0, 1]; a wrong word is wrong altogether.

    A figure that is only approximate is no right answer, but no large error either.
    """
    slot = xp.maximum(claims.slot, 0)
    true = xp.take_along_axis(gold.values, slot, axis=1)
    known = xp.take_along_axis(gold.defined, slot, axis=1)
    kind = xp.asarray(_KINDS)[slot]
    scale = xp.where(kind == int(Kind.DATE), DAYS_OF_LARGE_ERROR, xp.maximum(xp.abs(true), 1))
    # In floats, since the checker's largest figures differ by more than 32 bits hold.
    error = xp.abs(claims.value.astype(np.float32) - true.astype(np.float32)) / scale
    whole = (kind == int(Kind.WORD)) | ~known | claims.negated
    false = xp.where(claims.negated, known & (claims.value == true), ~(known & (claims.value == true)))
    error = xp.where(whole, 1.0, xp.clip(error, 0.0, 1.0)) * (claims.value != INVALID)
    return (error * (false & (claims.slot >= 0))).max(axis=1)


def _remember(turn: Turn, memory: Memory, right, wrong, yes, no, xp: Any) -> Memory:
    claims, gold = turn.claims, turn.gold
    decides = turn.goal_asked & (yes | no)
    offers = turn.goal_asked & yes
    over = offers & gold.denied & (gold.reason == _LIMIT)
    promised = claims.forbidden & gold.must_not_say
    return Memory(
        told_right=(memory.told_right | right) & ~wrong,
        told_wrong=(memory.told_wrong & ~right) | wrong,
        decision=xp.where(decides, yes.astype(np.int32), memory.decision),
        decided=memory.decided | (turn.goal_asked & (claims.approves | claims.denies)),
        ineligible=xp.where(offers, gold.denied, memory.ineligible),
        over_limit=xp.where(offers, over, memory.over_limit),
        misled=memory.misled | xp.stack([promised[:, column] for column in _PROMISES], axis=-1).any(axis=1),
        discount=_discount(turn, memory.discount, xp),
    )


_LIMIT = index(REASONS, "limit")
_PROMISES = tuple(index(FORBIDDEN, name) for name in ("guarantee", "no_interest", "instant_refund"))
_NO_INTEREST = index(FORBIDDEN, "no_interest")
_IS_COST = np.array([slot in COST_SLOTS for slot in SLOTS])


def _discount(turn: Turn, before: Any, xp: Any) -> Any:
    """How much cheaper than it is the offer looks: the largest (true - stated) / true of a cost in this reply."""
    claims, gold = turn.claims, turn.gold
    slot = xp.maximum(claims.slot, 0)
    true = xp.take_along_axis(gold.values, slot, axis=1)
    counts = (claims.slot >= 0) & xp.asarray(_IS_COST)[slot] & ~claims.negated & (claims.value != INVALID)
    counts = counts & xp.take_along_axis(gold.defined, slot, axis=1)
    cheaper = (true.astype(np.float32) - claims.value.astype(np.float32)) / xp.maximum(true, 1)
    largest = xp.where(counts, xp.clip(cheaper, -1.0, 1.0), -np.inf).max(axis=1)
    now = xp.where(counts.any(axis=1), largest, before)
    free = turn.credit & turn.claims.forbidden[:, _NO_INTEREST] & gold.must_not_say[:, _NO_INTEREST]
    return xp.where(free, 1.0, now).astype(np.float32)


def transfers(claims: Claims) -> Any:
    """bool[N]: does the agent pass the user on?"""
    return claims.actions[:, index(ACTIONS, "transfer")]
