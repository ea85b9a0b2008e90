"""The oracle: the policy's answer in the agent's words; and the imperfect human agents of the corpus.

An oracle's reply says and does exactly what `answers.gold_answers` requires. A human agent starts from the same plan
and errs at the rates of `HumanRates`, so that a model that has learnt the corpus perfectly is not perfect itself.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from morejax.tasks.shop import agent_wording as words
from morejax.tasks.shop import ontology
from morejax.tasks.shop.answers import Gold
from morejax.tasks.shop.ontology import ACTIONS, DECISIONS, DISCLOSURES, REASONS, SLOT_KINDS, SLOTS, Kind
from morejax.tasks.shop.policy import RULES
from morejax.tasks.shop.state import Case
from morejax.tasks.shop.templates import realise
from morejax.tasks.shop.world import ITEM_NAMES


@dataclass(frozen=True)
class HumanRates:
    """How often human agents of the corpus err or ramble, per reply where it can happen."""

    wrong_number: float = 0.06
    wrong_decision: float = 0.03
    missing_disclosure: float = 0.10
    missing_action: float = 0.05
    forbidden: float = 0.02
    curt: float = 0.15
    """No kind words at all."""
    long_winded: float = 0.15

    def __post_init__(self) -> None:
        for name, rate in vars(self).items():
            if not 0.0 <= rate <= 1.0:
                raise ValueError(f"HumanRates.{name} is {rate}, expected a probability")


class Question(NamedTuple):
    """One turn as the agent sees it: a single case, the right answers to it, and what is asked."""

    case: Case
    gold: Gold
    """One row of it, as plain lists."""
    asked: tuple[str, ...]
    """Intents."""
    upset: bool
    """Does the user complain?"""


@dataclass(frozen=True)
class Plan:
    """What a reply will say: edited for human errors, then worded.

    Attributes:
        values: slot -> text.
        denied: the decision it gives, None where it gives none.
        reason: why, "" where approved.
        disclosures: what it discloses.
        actions: what it does.
        kind: does it have kind words?
        extra: sentences that nobody needs.
    """

    values: Mapping[str, str]
    denied: bool | None
    reason: str
    disclosures: tuple[str, ...]
    actions: tuple[str, ...]
    kind: bool = True
    extra: tuple[str, ...] = ()


def slot_text(slot: str, value: int) -> str:
    """A slot's value as it is written."""
    if slot == "refund_to":
        return ("card", "credit account")[value]
    kind = SLOT_KINDS[slot]
    if kind is Kind.MONEY:
        return ontology.money_text(value)
    if kind is Kind.PERCENT:
        return ontology.percent_text(value)
    return ontology.date_text(value) if kind is Kind.DATE else str(value)


def value_words(question: Question, slot: str) -> str:
    """What is true of a slot, in the words of the context."""
    value = question.gold.values[SLOTS.index(slot)]
    if slot in ("kyc", "status"):
        return (ontology.KYC if slot == "kyc" else ontology.STATUSES)[value]
    return slot_text(slot, value)


def value_texts(question: Question) -> dict[str, str]:
    """Texts of all slots, and of the fields that templates need besides."""
    texts = {slot: slot_text(slot, value) for slot, value in zip(SLOTS, question.gold.values, strict=True)}
    return texts | {"item": ITEM_NAMES[question.case.order.item]}


def plan_reply(question: Question) -> Plan:
    """The right plan."""
    gold = question.gold
    return Plan(
        values=value_texts(question),
        denied=bool(gold.denied) if gold.asks_decision else None,
        reason=REASONS[gold.reason] if gold.asks_decision and gold.denied else "",
        disclosures=tuple(name for name, due in zip(DISCLOSURES, gold.must_say, strict=True) if due),
        actions=tuple(name for name, due in zip(ACTIONS, gold.actions, strict=True) if due),
    )


def oracle_reply(question: Question, rng: random.Random) -> str:
    """A right reply in one of its wordings."""
    return word_reply(question, plan_reply(question), rng)


def human_reply(question: Question, rng: random.Random, rates: HumanRates) -> str:
    """The reply of a human agent, who errs at these rates."""
    return word_reply(question, _err(question, plan_reply(question), rng, rates), rng)


# Wording


def word_reply(question: Question, plan: Plan, rng: random.Random) -> str:
    """Words a plan: kind words, decision, facts, disclosures, kind words, actions."""
    sentences = [*_statements(question, plan, rng), *(_disclosure(name, plan, rng) for name in plan.disclosures)]
    body = " . ".join(sentences) + " ." if sentences else ""
    replies = [realise(words.REPLY[intent], plan.values, rng) for intent in question.asked if intent in words.REPLY]
    first = _opening(question, plan, rng) if plan.kind else ""
    last = realise(words.CLOSE, plan.values, rng) if plan.kind and sentences else ""
    actions = " ".join(map(ontology.action_token, plan.actions))
    text = " ".join(part for part in (first, *replies, body, *plan.extra, last, actions) if part)
    return tidy(text)


def tidy(text: str) -> str:
    """Marks joined to the word before them, sentences capitalised."""
    text = re.sub(r" +([.,?!])", r"\1", text).replace("  ", " ")
    parts = text.split(". ")
    return ". ".join(part[:1].upper() + part[1:] for part in parts)


def mood(question: Question, plan: Plan) -> str:
    """Which first words fit: "worried" where the user complains, objects or gets a no."""
    if question.upset or plan.denied or "objection" in question.asked:
        return "worried"
    return "neutral"


def _opening(question: Question, plan: Plan, rng: random.Random) -> str:
    if question.asked == ("smalltalk",):
        return ""
    wanted = mood(question, plan)
    if wanted == "neutral" and rng.random() < 0.3:
        wanted = "happy"
    return realise(words.OPEN[wanted], plan.values, rng)


def _disclosure(name: str, plan: Plan, rng: random.Random) -> str:
    return realise(words.DISCLOSE[name], plan.values, rng)


def _statements(question: Question, plan: Plan, rng: random.Random) -> Iterator[str]:
    for intent in question.asked:
        if intent in DECISIONS:
            yield _decision(intent, plan, rng)
        for key in statements(question, intent, plan):
            yield realise(words.SAY[key], plan.values, rng)


def _decision(intent: str, plan: Plan, rng: random.Random) -> str:
    if not plan.denied:
        return realise(words.APPROVE[intent], plan.values, rng)
    because = realise(words.BECAUSE[plan.reason], plan.values, rng)
    return realise(words.DENY[intent], {**plan.values, "because": because}, rng)


def statements(question: Question, intent: str, plan: Plan) -> tuple[str, ...]:
    """Keys of `agent_wording.SAY` that answer an intent."""
    case, values = question.case, question.gold.values
    if intent == "borrow":
        return ("limit_left",) if plan.reason == "limit" else () if plan.denied else ("rate",)
    if intent == "promo":
        return () if plan.denied else ("promo_end", "rate")
    if intent == "overdue":
        return ("overdue",) if case.profile.overdue_days > 0 else ("not_overdue",)
    if intent == "kyc":
        return (f"kyc_{ontology.KYC[case.profile.kyc]}",)
    if intent == "status":
        return (f"status_{ontology.STATUSES[case.order.status]}",)
    if intent == "refund":
        return ("refund", "restock_fee") if case.order.category == 1 else ("refund",)
    if intent == "shipping":
        return ("free_shipping",) if values[SLOTS.index("shipping_fee")] == 0 else ("shipping_fee",)
    return _PLAIN_STATEMENTS.get(intent, ())


_PLAIN_STATEMENTS: dict[str, tuple[str, ...]] = {
    "limit_left": ("limit_left",),
    "instalment": ("instalment",),
    "interest": ("interest",),
    "fee": ("fee",),
    "due": ("due",),
    "refund_when": ("refund_when",),
    "deadline": ("deadline",),
    "membership": ("member_refund",),
}


# Human errors


def _err(question: Question, plan: Plan, rng: random.Random, rates: HumanRates) -> Plan:
    if plan.denied is not None and rng.random() < rates.wrong_decision:
        plan = _wrong_decision(question, plan, rng)
    if rng.random() < rates.wrong_number:
        plan = replace(plan, values=_wrong_number(question, plan.values, rng))
    if plan.disclosures and rng.random() < rates.missing_disclosure:
        plan = replace(plan, disclosures=plan.disclosures[1:])
    if plan.actions and rng.random() < rates.missing_action:
        plan = replace(plan, actions=())
    extra: Sequence[str] = ()
    if rng.random() < rates.long_winded:
        extra = (rng.choice(words.LONG_WINDED),)
    if rng.random() < rates.forbidden:
        names = [name for name, bad in zip(ontology.FORBIDDEN, question.gold.must_not_say, strict=True) if bad]
        extra = (*extra, rng.choice(words.FORBIDDEN_SAYINGS[rng.choice(names)]))
    return replace(plan, kind=rng.random() >= rates.curt, extra=tuple(extra))


def _wrong_decision(question: Question, plan: Plan, rng: random.Random) -> Plan:
    """A yes for a no, or another reason of the same decision."""
    decision = next(intent for intent in question.asked if intent in DECISIONS)
    others = [rule.reason for rule in RULES if rule.decision == decision and rule.reason != plan.reason]
    if plan.denied and rng.random() < 0.5:
        return replace(plan, denied=False, reason="")
    return replace(plan, denied=True, reason=rng.choice(others))


def _wrong_number(question: Question, values: Mapping[str, str], rng: random.Random) -> dict[str, str]:
    """One of the required slots with one digit changed."""
    due = [slot for slot, required in zip(SLOTS, question.gold.required, strict=True) if required]
    due = [slot for slot in due if SLOT_KINDS[slot] is not Kind.WORD]
    if not due:
        return dict(values)
    slot = rng.choice(due)
    text = values[slot]
    places = [place for place, letter in enumerate(text) if letter.isdigit()]
    place = rng.choice(places)
    digit = str((int(text[place]) + rng.randrange(1, 10)) % 10)
    return {**values, slot: text[:place] + digit + text[place + 1 :]}
