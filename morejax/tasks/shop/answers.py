"""What a right reply to a turn says and does: true values of all slots, and what the asked intents require.

Pure functions of a packed `state.Case` and of the asked intents; jittable with `xp = jax.numpy`. Shape letters: N
turns, I intents, S slots, D disclosures, F forbidden statements, A actions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from morejax.tasks.shop import policy
from morejax.tasks.shop.arithmetic import basis_points_of, instalments, late_fee, prorate, total_interest
from morejax.tasks.shop.ontology import (
    ACTIONS,
    DECISIONS,
    DISCLOSURES,
    DOMAINS,
    FORBIDDEN,
    INTENTS,
    REASONS,
    SLOTS,
    YEAR,
    index,
)
from morejax.tasks.shop.policy import DELIVERED, ELECTRONICS, GOLD, RULES
from morejax.tasks.shop.state import Case

AFTERSALES = index(DOMAINS, "aftersales")


class Gold(NamedTuple):
    """The right answer to N turns."""

    asks_decision: Any
    """bool[N]: is there a question of yes or no?"""
    denied: Any
    """bool[N]: the answer to it; where none is asked, to whether the customer may borrow or return."""
    reason: Any
    """i32[N]: index into `REASONS`, -1 where approved."""
    values: Any
    """i32[N, S]: what is true of each slot."""
    defined: Any
    """bool[N, S]: is there anything true to say of the slot?"""
    required: Any
    """bool[N, S]: slots that the reply must state."""
    must_say: Any
    """bool[N, D]."""
    must_not_say: Any
    """bool[N, F]."""
    actions: Any
    """bool[N, A]: exactly these."""


def slot_values(case: Case, xp: Any = np) -> tuple[Any, Any]:
    """True values of all slots i32[N, S], and which of them are defined, bool[N, S]."""
    credit, aftersales = case.domain == 0, case.domain == AFTERSALES
    values = _credit_values(case, xp) | _aftersales_values(case)
    conditions = {name: credit for name in _CREDIT_SLOTS} | _aftersales_conditions(case, aftersales)
    conditions |= {
        "due_amount": credit & (case.profile.bill_cents > 0),
        "due_date": credit & (case.profile.bill_cents > 0),
        "overdue_amount": credit & (case.profile.overdue_days > 0),
    }
    return (
        xp.stack([values[slot] for slot in SLOTS], axis=-1).astype(np.int32),
        xp.stack([conditions[slot] for slot in SLOTS], axis=-1),
    )


_CREDIT_SLOTS = SLOTS[: SLOTS.index("price")]


def _credit_values(case: Case, xp: Any) -> dict[str, Any]:
    profile, product, request = case.profile, case.product, case.request
    rate = policy.effective_rate(case, xp)
    interest = total_interest(request.amount, rate, request.tenor)
    total = request.amount + interest
    each, last = instalments(total, request.tenor)
    late_days = profile.overdue_days - product.grace_days
    return {
        "limit_left": policy.limit_left(case),
        "limit_total": profile.limit,
        "used": profile.used,
        "held": profile.held,
        "amount": request.amount,
        "instalment": each,
        "last_instalment": last,
        "interest": interest,
        "total_repay": total,
        "fee": basis_points_of(request.amount, product.fee_bp),
        "late_fee": late_fee(profile.overdue_cents, product.late_bp, late_days * (late_days > 0)),
        "due_amount": profile.bill_cents,
        "overdue_amount": profile.overdue_cents,
        "rate": rate,
        "tenor": request.tenor,
        "overdue_days": profile.overdue_days,
        "due_date": (profile.bill_day + product.due_days) % YEAR,
        "promo_end": product.promo_end % YEAR,
        "kyc": profile.kyc,
    }


def _aftersales_values(case: Case) -> dict[str, Any]:
    order, rules = case.order, case.rules
    restock = policy.restocking_fee(case)
    window = policy.return_window(case)
    pays_shipping = (order.price < rules.free_shipping_over) & (case.profile.tier != GOLD)
    days_left = case.profile.member_until - case.today
    return {
        "price": order.price,
        "refund": order.price - restock,
        "restock_fee": restock,
        "return_cost": rules.return_cost * (case.profile.tier != GOLD),
        "shipping_fee": rules.shipping_fee * pays_shipping,
        "member_refund": prorate(rules.member_fee, days_left * (days_left > 0)),
        "return_days": window,
        "refund_days": rules.refund_days,
        "return_deadline": (order.delivered + window) % YEAR,
        "refund_date": (order.refund_day + rules.refund_days) % YEAR,
        "eta": order.eta % YEAR,
        "delivered_on": order.delivered % YEAR,
        "status": order.status,
        "refund_to": order.paid_by,
        "order_number": order.number,
    }


def _aftersales_conditions(case: Case, aftersales: Any) -> dict[str, Any]:
    delivered = aftersales & (case.order.status == DELIVERED)
    under_way = aftersales & (case.order.status < DELIVERED)
    conditions = {slot: aftersales for slot in SLOTS[len(_CREDIT_SLOTS) :]}
    conditions |= {slot: delivered for slot in ("refund", "restock_fee", "return_deadline", "delivered_on")}
    return conditions | {
        "eta": under_way,
        "refund_date": aftersales & (case.order.refund_state == 1),
        "member_refund": aftersales & (case.profile.member_until >= case.today),
    }


def gold_answers(case: Case, asked: Any, xp: Any = np) -> Gold:
    """What right replies to N turns say and do.

    Args:
        case: packed, N rows.
        asked: bool[N, I], at most one of the intents in `DECISIONS` a row.
        xp: `numpy` or `jax.numpy`.
    """
    asks = {name: asked[:, position] for position, name in enumerate(INTENTS)}
    of_decision = xp.stack([asks[name] for name in DECISIONS], axis=-1)
    asks_decision = of_decision.any(axis=-1)
    default = xp.where(case.domain == AFTERSALES, index(DECISIONS, "return"), index(DECISIONS, "borrow"))
    decision = xp.where(asks_decision, xp.argmax(of_decision, axis=-1), default)
    rule, reason = policy.decide(case, decision, xp)
    approved = {name: asks[name] & (rule < 0) for name in DECISIONS}
    values, defined = slot_values(case, xp)
    return Gold(
        asks_decision=asks_decision,
        denied=rule >= 0,
        reason=reason,
        values=values,
        defined=defined,
        required=_required(case, asks, approved, asks_decision, reason, defined, xp),
        must_say=_must_say(case, asks, approved, asks_decision, rule, xp),
        must_not_say=_must_not_say(case, values, xp),
        actions=_actions(case, asks, approved, asks_decision, rule, xp),
    )


def _columns(names, conditions: dict[str, Any], empty: Any, xp: Any) -> Any:
    return xp.stack([conditions.get(name, empty) for name in names], axis=-1)


def _required(case: Case, asks, approved, asks_decision, reason, defined, xp) -> Any:
    late = asks["overdue"] & (case.profile.overdue_days > 0)
    conditions = {
        "limit_left": asks["limit_left"] | (asks["borrow"] & (reason == _REASON_LIMIT)),
        "instalment": asks["instalment"],
        "interest": asks["interest"],
        "total_repay": asks["interest"],
        "fee": asks["fee"],
        "due_date": asks["due"],
        "due_amount": asks["due"],
        "overdue_days": asks["overdue"],
        "late_fee": late,
        "kyc": asks["kyc"],
        "rate": approved["borrow"] | approved["promo"],
        "promo_end": approved["promo"],
        "status": asks["status"],
        "eta": asks["status"],
        "delivered_on": asks["status"],
        "refund": asks["refund"],
        "restock_fee": asks["refund"] & (case.order.category == ELECTRONICS),
        "refund_date": asks["refund_when"],
        "refund_to": asks["refund_when"],
        "return_deadline": asks["deadline"],
        "return_days": asks["deadline"],
        "return_cost": approved["return"],
        "shipping_fee": asks["shipping"],
        "member_refund": asks["membership"],
    }
    return _columns(SLOTS, conditions, xp.zeros_like(asks_decision), xp) & defined


_REASON_LIMIT = REASONS.index("limit")


def _rule_flags(rule: Any, names: tuple[str, ...], said_by_rule: list[str], xp: Any) -> Any:
    """One-hot bool[N, len(names)] of what the deciding rule asks for; nothing where no rule decided."""
    table = np.array([[name == wanted for name in names] for wanted in said_by_rule])
    return xp.asarray(table)[rule] & (rule >= 0)[:, None]


def _must_say(case: Case, asks, approved, asks_decision, rule, xp) -> Any:
    conditions = {
        "example": asks["instalment"],
        "late_fees": asks["overdue"] & (case.profile.overdue_days > 0),
        "restock": approved["return"] & (case.order.category == ELECTRONICS),
        "no_duty": asks["objection"],
    }
    for decision, disclosure in policy.APPROVED_MUST_SAY.items():
        if disclosure:
            conditions[disclosure] = approved[decision]
    by_rule = _rule_flags(rule, DISCLOSURES, [r.must_say for r in RULES], xp) & asks_decision[:, None]
    return _columns(DISCLOSURES, conditions, xp.zeros_like(asks_decision), xp) | by_rule


def _must_not_say(case: Case, values: Any, xp: Any) -> Any:
    everywhere, credit = case.domain >= 0, case.domain == 0
    conditions = {
        "guarantee": everywhere,
        "pressure": everywhere,
        "threat": everywhere,
        "score": everywhere,
        "instant_refund": ~credit,
        "no_interest": credit & (values[:, SLOTS.index("rate")] > 0),
    }
    return _columns(FORBIDDEN, conditions, ~everywhere, xp)


def _actions(case: Case, asks, approved, asks_decision, rule, xp) -> Any:
    conditions = {
        "verify": asks["kyc"] & (case.profile.kyc == 0),
        "pay": asks["overdue"] & (case.profile.overdue_days > 0),
        "transfer": asks["human"],
    }
    for decision, action in policy.APPROVED_ACTIONS.items():
        if action:
            conditions[action] = approved[decision]
    by_rule = _rule_flags(rule, ACTIONS, [r.action for r in RULES], xp) & asks_decision[:, None]
    # A pending identity check needs no second link.
    pending = (xp.asarray([name == "verify" for name in ACTIONS])[None, :]) & (case.profile.kyc != 0)[:, None]
    return (_columns(ACTIONS, conditions, xp.zeros_like(asks_decision), xp) | by_rule) & ~pending
