"""The scaffold's reasoning: the rules that were tried, the arithmetic, what to say and do; taken from the world."""

from __future__ import annotations

from collections.abc import Iterator

from morejax.tasks.shop import ontology, policy
from morejax.tasks.shop.ontology import ACTIONS, DECISIONS, DISCLOSURES, REASONS, SLOTS, index, money_text, percent_text
from morejax.tasks.shop.oracle import Question
from morejax.tasks.shop.oracle import value_words as _text


def reasoning_trace(question: Question) -> str:
    """The reasoning behind the right reply to a turn.

    For example "borrow : not age , not region , kyc then no ; act verify", or
    "left = $3000.00 - $1250.00 - $0.00 = $1750.00".

    Args:
        question: the turn.

    Returns:
        Steps joined by " ; ", in words of the agent's language; "none" where there is nothing to reason about.
    """
    steps = [step for intent in question.asked for step in _steps(question, intent)]
    gold = question.gold
    say = [name.replace("_", " ") for name, due in zip(DISCLOSURES, gold.must_say, strict=True) if due]
    act = [name for name, due in zip(ACTIONS, gold.actions, strict=True) if due]
    steps += [f"say {' , '.join(say)}"] * bool(say) + [f"act {' , '.join(act)}"] * bool(act)
    return " ; ".join(steps) or "none"


def _steps(question: Question, intent: str) -> Iterator[str]:
    if intent in DECISIONS:
        yield _rules_tried(question, intent)
        if intent == "borrow" and question.gold.denied and REASONS[question.gold.reason] == "limit":
            yield _limit(question)
        elif intent in ("borrow", "promo") and not question.gold.denied:
            yield f"rate = {_text(question, 'rate')}"
    elif intent in _ARITHMETIC:
        yield from _ARITHMETIC[intent](question)
    else:
        slots = [slot for slot in _FACTS.get(intent, ()) if question.gold.required[index(SLOTS, slot)]]
        yield from (f"{slot.replace('_', ' ')} = {_text(question, slot)}" for slot in slots)


def _rules_tried(question: Question, intent: str) -> str:
    """Rules of a decision in their order up to the first that holds."""
    tried = []
    for rule in policy.rules_in_force(question.case.rules, intent):
        name = policy.reason_name(rule.reason)
        if rule.holds(question.case):
            return f"{policy.decision_name(intent)} : {' , '.join([*tried, name])} then no"
        tried.append(f"not {name}")
    return f"{policy.decision_name(intent)} : {' , '.join(tried)} then yes"


def _limit(question: Question) -> str:
    profile = question.case.profile
    parts = " - ".join(map(money_text, (profile.limit, profile.used, profile.held)))
    return f"left = {parts} = {_text(question, 'limit_left')}"


def _interest(question: Question) -> Iterator[str]:
    amount, tenor, rate = (_text(question, slot) for slot in ("amount", "tenor", "rate"))
    interest, total = _text(question, "interest"), _text(question, "total_repay")
    yield f"interest = {amount} * {rate} * {tenor} = {interest}"
    yield f"total = {amount} + {interest} = {total}"


def _instalment(question: Question) -> Iterator[str]:
    yield from _interest(question)
    yield f"each = {_text(question, 'total_repay')} / {_text(question, 'tenor')} = {_text(question, 'instalment')}"


def _fee(question: Question) -> Iterator[str]:
    rate = percent_text(question.case.product.fee_bp)
    yield f"fee = {_text(question, 'amount')} * {rate} = {_text(question, 'fee')}"


def _due(question: Question) -> Iterator[str]:
    bill, days = ontology.date_text(question.case.profile.bill_day), question.case.product.due_days
    yield f"bill {_text(question, 'due_amount')} ; due = {bill} + {days} = {_text(question, 'due_date')}"


def _overdue(question: Question) -> Iterator[str]:
    profile, product = question.case.profile, question.case.product
    yield f"overdue {profile.overdue_days} days"
    if profile.overdue_days > 0:
        days = max(0, profile.overdue_days - product.grace_days)
        yield f"days = {profile.overdue_days} - {product.grace_days} = {days}"
        owed, rate = money_text(profile.overdue_cents), percent_text(product.late_bp)
        yield f"late fee = {owed} * {rate} * {days} = {_text(question, 'late_fee')}"


def _refund(question: Question) -> Iterator[str]:
    price, kept = _text(question, "price"), _text(question, "restock_fee")
    if question.case.order.category == policy.ELECTRONICS:
        yield f"restocking fee = {price} * {percent_text(question.case.rules.restock_bp)} = {kept}"
    yield f"refund = {price} - {kept} = {_text(question, 'refund')}"


def _refund_when(question: Question) -> Iterator[str]:
    granted, days = ontology.date_text(question.case.order.refund_day), question.case.rules.refund_days
    yield f"refund = {granted} + {days} = {_text(question, 'refund_date')} ; {_text(question, 'refund_to')}"


def _deadline(question: Question) -> Iterator[str]:
    delivered, window = _text(question, "delivered_on"), _text(question, "return_days")
    yield f"until = {delivered} + {window} = {_text(question, 'return_deadline')}"


def _shipping(question: Question) -> Iterator[str]:
    free = "free" if question.gold.values[index(SLOTS, "shipping_fee")] == 0 else "not free"
    yield f"price {_text(question, 'price')} {free} ; shipping = {_text(question, 'shipping_fee')}"


def _membership(question: Question) -> Iterator[str]:
    case = question.case
    left = case.profile.member_until - case.today
    fee = money_text(case.rules.member_fee)
    yield f"membership = {fee} * {left} / {ontology.YEAR} = {_text(question, 'member_refund')}"


_ARITHMETIC = {
    "limit_left": lambda question: iter((_limit(question),)),
    "interest": _interest,
    "instalment": _instalment,
    "fee": _fee,
    "due": _due,
    "overdue": _overdue,
    "refund": _refund,
    "refund_when": _refund_when,
    "deadline": _deadline,
    "shipping": _shipping,
    "membership": _membership,
}
_FACTS = {"kyc": ("kyc",), "status": ("status", "eta", "delivered_on")}
