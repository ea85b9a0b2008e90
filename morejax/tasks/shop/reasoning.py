"""The six reasoning functions: exact, pure and jittable, each with its own mask of where it applies.

| function       | 1 when                                                                                            |
|----------------|---------------------------------------------------------------------------------------------------|
| eligibility    | the decision is stated, it is the policy's, and a denial gives the reason of the rule that decided |
| credit_limit   | the limit that is left is stated and equals limit - used - held                                    |
| factual_recall | every fact that is due is stated, and none is misstated                                            |
| numeric        | every computed amount and date that is due is stated to the cent or day, and none is misstated      |
| disclosure     | all that must be said is said, nothing that must not be said                                       |
| action         | exactly the right actions are taken                                                                |

A function applies where its answer is due. It also applies, with score 0, where a reply is wrong without having been
asked: what is said must be true. A right statement that nobody asked for counts nowhere, so no score can be padded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from morejax.tasks.shop.answers import Gold
from morejax.tasks.shop.claims import Claims
from morejax.tasks.shop.ontology import FACT_SLOTS, FUNCTIONS, LIMIT_SLOTS, NUMERIC_SLOTS, REASONS, SLOTS


class Verdict(NamedTuple):
    """Judgement on N replies, columns in the order of `FUNCTIONS`."""

    score: Any
    """f32[N, 6], 0 or 1; 0 where the function does not apply."""
    applies: Any
    """bool[N, 6]."""


def judge(claims: Claims, gold: Gold, xp: Any = np) -> Verdict:
    """Scores replies against the right answers.

    Args:
        claims: of N replies.
        gold: of the turns that they answer.
        xp: `numpy` or `jax.numpy`.

    Returns:
        Scores and where they apply.
    """
    right, wrong = checked_slots(claims, gold, xp)
    functions = {
        "eligibility": eligibility(claims, gold, xp),
        "credit_limit": _slot_group(LIMIT_SLOTS, right, wrong, gold, xp),
        "factual_recall": _slot_group(FACT_SLOTS, right, wrong, gold, xp),
        "numeric": _slot_group(NUMERIC_SLOTS, right, wrong, gold, xp),
        "disclosure": disclosure(claims, gold),
        "action": action(claims, gold),
    }
    applies = xp.stack([functions[name][1] for name in FUNCTIONS], axis=-1)
    score = xp.stack([functions[name][0] for name in FUNCTIONS], axis=-1) & applies
    return Verdict(score.astype(np.float32), applies)


def checked_slots(claims: Claims, gold: Gold, xp: Any = np) -> tuple[Any, Any]:
    """Which slots are stated rightly somewhere, and which are misstated somewhere: bool[N, S] twice.

    A claim about a slot of which nothing is true misstates it. "Not delivered yet" misstates the status of a delivered
    order only; it is no statement of what the status is.
    """
    slot = xp.maximum(claims.slot, 0)
    stated = claims.slot >= 0
    equal = claims.value == xp.take_along_axis(gold.values, slot, axis=1)
    known = xp.take_along_axis(gold.defined, slot, axis=1)
    is_right = stated & known & equal & ~claims.negated
    is_wrong = stated & xp.where(claims.negated, known & equal, ~(known & equal))
    column = slot[..., None] == xp.arange(len(SLOTS))[None, None, :]
    return (column & is_right[..., None]).any(axis=1), (column & is_wrong[..., None]).any(axis=1)


def eligibility(claims: Claims, gold: Gold, xp: Any = np) -> tuple[Any, Any]:
    """Decision and reason; score and mask, bool[N] each."""
    decided = xp.where(gold.denied, claims.denies & ~claims.approves, claims.approves & ~claims.denies)
    wanted = gold.reason[:, None] == xp.arange(len(REASONS))[None, :]
    reason = xp.where(gold.denied, (claims.reasons == wanted).all(axis=1), True)
    contradicts = xp.where(gold.denied, claims.approves, claims.denies)
    return decided & reason & gold.asks_decision, gold.asks_decision | contradicts


def _slot_group(names: tuple[str, ...], right, wrong, gold: Gold, xp: Any) -> tuple[Any, Any]:
    group = xp.asarray(np.array([slot in names for slot in SLOTS]))[None, :]
    due, misstated = gold.required & group, (wrong & group).any(axis=1)
    return (right | ~due).all(axis=1) & ~misstated, due.any(axis=1) | misstated


def disclosure(claims: Claims, gold: Gold) -> tuple[Any, Any]:
    """Must-say and must-not-say; score and mask, bool[N] each."""
    said = (claims.disclosed | ~gold.must_say).all(axis=1)
    broken = (claims.forbidden & gold.must_not_say).any(axis=1)
    due = gold.must_say.any(axis=1)
    # A word in letters could hide a forbidden one from the checker.
    return said & ~broken & ~claims.spelled, due | broken


def action(claims: Claims, gold: Gold) -> tuple[Any, Any]:
    """Side effects; score and mask, bool[N] each."""
    same = (claims.actions == gold.actions).all(axis=1)
    return same, gold.actions.any(axis=1) | ~same
