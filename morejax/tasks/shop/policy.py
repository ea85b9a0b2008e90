"""The policy: ordered rules, the first that matches decides; its reason, its action and what must be said follow.

    decision(case) = denied for the reason of the first rule, in the version's order, that holds; else approved

A version (`state.Rules`) is data: thresholds and the order of the rules. `VERSIONS` has three for training and two that
are held out: other thresholds, another order, and a promotion without interest that only one tenor has. Predicates are
pure functions of a `state.Case` of ints, of NumPy or of JAX arrays; `decide` is jittable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from morejax.tasks.shop import ontology
from morejax.tasks.shop.arithmetic import basis_points_of
from morejax.tasks.shop.ontology import DECISIONS, KYC, REASONS, STATUSES, TIERS, index, money_text
from morejax.tasks.shop.state import Case, Rules

VERIFIED = index(KYC, "verified")
DELIVERED = index(STATUSES, "delivered")
GOLD = index(TIERS, "gold")
ELECTRONICS = index(ontology.CATEGORIES, "electronics")
CLEARANCE = index(ontology.CATEGORIES, "clearance")


@dataclass(frozen=True)
class Rule:
    """One reason to say no.

    Attributes:
        decision: what it is about, one of `ontology.DECISIONS`.
        reason: code that the reply must state, one of `ontology.REASONS`.
        holds: predicate on a case.
        text: how the context words it; fields are those of `rule_figures`.
        action: what the agent does when the rule decides, "" for nothing.
        must_say: disclosure that the denial needs, "" for none.
    """

    decision: str
    reason: str
    holds: Callable[[Case], Any]
    text: str
    action: str = ""
    must_say: str = ""


def limit_left(case: Case) -> Any:
    """What can still be drawn, cents: limit - used - held, at least 0 (held amounts may exceed a lowered limit)."""
    left = case.profile.limit - case.profile.used - case.profile.held
    return left * (left > 0)


def return_window(case: Case) -> Any:
    """Days in which the order may be returned."""
    electronics = case.order.category == ELECTRONICS
    days = case.rules.return_days + (case.rules.electronics_days - case.rules.return_days) * electronics
    return days + case.rules.gold_extra_days * (case.profile.tier == GOLD)


def _electronics_opened(case: Case) -> Any:
    return (case.order.category == ELECTRONICS) & (case.order.opened == 1)


def _wrong_draw(case: Case) -> Any:
    return (case.request.amount < case.product.min_draw) | (case.request.amount > case.product.max_draw)


def _outside_promotion(case: Case) -> Any:
    return (case.today < case.product.promo_start) | (case.today > case.product.promo_end)


def _wrong_tenor(case: Case) -> Any:
    return (case.rules.promo_tenor != 0) & (case.request.tenor != case.rules.promo_tenor)


RULES: tuple[Rule, ...] = (
    Rule("borrow", "age", lambda c: c.profile.age < c.rules.min_age, "age under {min_age}"),
    Rule("borrow", "region", lambda c: c.profile.region == c.rules.closed_region, "region {closed_region}"),
    Rule(
        "borrow",
        "kyc",
        lambda c: (c.profile.kyc != VERIFIED) & (c.request.amount > c.rules.kyc_over),
        "not verified over {kyc_over}",
        "verify",
    ),
    Rule(
        "borrow", "overdue", lambda c: c.profile.overdue_days > c.rules.max_overdue, "overdue over {max_overdue}", "pay"
    ),
    Rule("borrow", "score", lambda c: c.profile.score < c.rules.min_score, "score under {min_score}", "", "soft_check"),
    Rule("borrow", "loans", lambda c: c.profile.open_loans >= c.rules.max_loans, "loans from {max_loans}"),
    Rule("borrow", "draw", _wrong_draw, "amount outside draw"),
    Rule("borrow", "limit", lambda c: c.request.amount > limit_left(c), "amount over left"),
    Rule("raise_limit", "kyc", lambda c: c.profile.kyc != VERIFIED, "not verified", "verify"),
    Rule("raise_limit", "overdue", lambda c: c.profile.overdue_days > 0, "overdue", "pay"),
    Rule(
        "raise_limit",
        "score",
        lambda c: c.profile.score < c.rules.raise_score,
        "score under {raise_score}",
        "",
        "soft_check",
    ),
    Rule("promo", "promo_over", _outside_promotion, "outside dates"),
    Rule("promo", "tier", lambda c: c.profile.tier < c.rules.promo_tier, "below {promo_tier}"),
    Rule("promo", "tenor", _wrong_tenor, "months not {promo_tenor}"),
    Rule("promo", "overdue", lambda c: c.profile.overdue_days > c.rules.max_overdue, "overdue over {max_overdue}"),
    Rule("return", "refunded", lambda c: c.order.refund_state == 1, "refunded"),
    Rule("return", "not_delivered", lambda c: c.order.status != DELIVERED, "not delivered"),
    Rule("return", "clearance", lambda c: c.order.category == CLEARANCE, "clearance"),
    Rule("return", "opened", _electronics_opened, "opened electronics"),
    Rule("return", "window", lambda c: c.today > c.order.delivered + return_window(c), "after window"),
    Rule("cancel", "already_cancelled", lambda c: c.order.status == 3, "cancelled"),
    Rule("cancel", "shipped", lambda c: (c.order.status == 1) | (c.order.status == DELIVERED), "shipped"),
)
APPROVED_ACTIONS = {"borrow": "apply", "raise_limit": "review", "promo": "", "return": "return", "cancel": "cancel"}
APPROVED_MUST_SAY = {
    "borrow": "withdraw",
    "raise_limit": "soft_check",
    "promo": "",
    "return": "return_cost",
    "cancel": "final_cancel",
}

DECISION_OF_RULE = np.array([index(DECISIONS, rule.decision) for rule in RULES], np.int32)
REASON_OF_RULE = np.array([index(REASONS, rule.reason) for rule in RULES], np.int32)


def decide(case: Case, decision: Any, xp: Any = np) -> tuple[Any, Any]:
    """The policy's answer to a question of yes or no.

    Args:
        case: packed, N rows.
        decision: i32[N], index into `DECISIONS`.
        xp: `numpy` or `jax.numpy`.

    Returns:
        Rule that denies it, i32[N], index into `RULES`, -1 where the answer is yes; and its reason, i32[N], likewise.
    """
    holds = xp.stack([rule.holds(case) for rule in RULES], axis=-1)
    asked = xp.asarray(DECISION_OF_RULE)[None, :] == decision[:, None]
    tried = xp.take_along_axis(holds & asked, case.rules.order, axis=1)
    first = xp.argmax(tried, axis=1)
    rule = xp.take_along_axis(case.rules.order, first[:, None], axis=1)[:, 0]
    denied = tried.any(axis=1)
    return xp.where(denied, rule, -1), xp.where(denied, xp.asarray(REASON_OF_RULE)[rule], -1)


def promotion_applies(case: Case, xp: Any = np) -> Any:
    """bool[N]: does the customer get the promotional rate?"""
    rule, _ = decide(case, xp.full_like(case.today, index(DECISIONS, "promo")), xp)
    return rule < 0


def effective_rate(case: Case, xp: Any = np) -> Any:
    """Monthly rate in basis points, i32[N]: that of the promotion where it applies."""
    return xp.where(promotion_applies(case, xp), case.product.promo_bp, case.product.monthly_bp)


def restocking_fee(case: Case) -> Any:
    """What is kept of the price of returned electronics, cents."""
    return basis_points_of(case.order.price, case.rules.restock_bp) * (case.order.category == ELECTRONICS)


def _positions(*first: int) -> list[int]:
    """An order of all rules that starts with these."""
    return [*first, *(position for position in range(len(RULES)) if position not in first)]


VERSIONS: dict[str, tuple[Rules, ...]] = {
    "train": (
        Rules(0, 18, 1, 20_000, 5, 560, 4, 660, 0, 0, 14, 10, 7, 1_000, 495, 5, 795, 7_500, 6_000, _positions()),
        Rules(1, 20, 2, 0, 0, 600, 3, 700, 1, 0, 30, 14, 5, 1_500, 595, 7, 995, 10_000, 9_600, _positions(3, 2, 9, 17)),
        Rules(
            2,
            21,
            3,
            50_000,
            10,
            580,
            5,
            680,
            1,
            0,
            21,
            21,
            10,
            500,
            395,
            3,
            695,
            5_000,
            4_800,
            _positions(4, 1, 13, 19),
        ),
    ),
    "held_out": (
        Rules(
            3, 19, 0, 30_000, 3, 620, 2, 720, 0, 3, 10, 7, 4, 2_000, 695, 10, 1_195, 12_000, 7_200, _positions(7, 5, 13)
        ),
        Rules(
            4, 23, 2, 10_000, 7, 540, 6, 640, 2, 6, 28, 12, 14, 800, 295, 4, 595, 6_000, 8_400, _positions(2, 4, 10, 18)
        ),
    ),
}
"""Training versions and held-out ones; the held-out promotions ask for one tenor."""


def rule_figures(rules: Rules) -> dict[str, str]:
    """The figures of a single version as the context writes them."""
    money = ("kyc_over", "return_cost", "shipping_fee", "free_shipping_over", "member_fee")
    names = {"closed_region": ontology.REGIONS[rules.closed_region], "promo_tier": TIERS[rules.promo_tier]}
    figures = {name: str(value) for name, value in zip(Rules._fields, rules, strict=True) if name != "order"}
    return figures | {name: money_text(getattr(rules, name)) for name in money} | names


def policy_text(rules: Rules, decisions: tuple[str, ...]) -> str:
    """The rules of these decisions in the order in which they are tried, as the context has them.

    Args:
        rules: a single version.
        decisions: out of `DECISIONS`.

    Returns:
        For example "borrow no if overdue over 5 ; score under 560".
    """
    figures = rule_figures(rules)
    parts = []
    for decision in decisions:
        chosen = " ; ".join(rule.text.format(**figures) for rule in rules_in_force(rules, decision))
        parts.append(f"{decision_name(decision)} no if {chosen}")
    return " . ".join(parts)


def rules_in_force(rules: Rules, decision: str) -> list[Rule]:
    """The rules of a decision in the order in which a single version tries them; without those it switches off."""
    of_decision = [RULES[position] for position in rules.order if RULES[position].decision == decision]
    return [rule for rule in of_decision if rule.reason != "tenor" or rules.promo_tenor]


def reason_name(reason: str) -> str:
    """A rule's reason in the words of the context."""
    return reason.replace("not_delivered", "undelivered").replace("_", " ")


def decision_name(decision: str) -> str:
    """A decision in one word."""
    return {"raise_limit": "raise"}.get(decision, decision)
