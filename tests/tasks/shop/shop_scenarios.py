"""Cases of the checker's hand-labelled lines: two base cases and what differs from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from morejax.tasks.shop.answers import Gold, gold_answers
from morejax.tasks.shop.ontology import INTENTS
from morejax.tasks.shop.policy import VERSIONS
from morejax.tasks.shop.state import Case, Order, Product, Profile, Request, pack

RULES = VERSIONS["train"][0]
PROFILE = Profile(2, 34, 2, 0, 700, 1, 300_000, 125_000, 10_000, 0, 0, 95, 21_000, 200)
PRODUCT = Product(1, 150, 200, 10, 3, 15, 20_000, 300_000, 100, 50, 90)
ORDER = Order(4821, 0, 1, 8_000, 0, 2, 104, 92, 0, 0, 98)
CREDIT = Case(0, 100, PROFILE, PRODUCT, ORDER, RULES, Request(100_000, 6))
AFTERSALES = CREDIT._replace(domain=1, profile=PROFILE._replace(tier=0))
"""11 april; $1000.00 over 6 months at 1.50% a month; $1650.00 of the limit left; a kettle delivered on 3 april."""

# Scenario -> (asked intent, base case, {record: {field: value}}); the record "case" is the case itself.
SCENARIOS: dict[str, tuple[str, Case, dict[str, dict[str, int]]]] = {
    "borrow_ok": ("borrow", CREDIT, {}),
    "borrow_kyc": ("borrow", CREDIT, {"profile": {"kyc": 0}}),
    "borrow_overdue": ("borrow", CREDIT, {"profile": {"overdue_days": 9, "overdue_cents": 12_000}}),
    "borrow_score": ("borrow", CREDIT, {"profile": {"score": 500}}),
    "borrow_limit": ("borrow", CREDIT, {"request": {"amount": 200_000}}),
    "limit": ("limit_left", CREDIT, {}),
    "instalment": ("instalment", CREDIT, {}),
    "interest": ("interest", CREDIT, {}),
    "fee": ("fee", CREDIT, {}),
    "due": ("due", CREDIT, {}),
    "overdue": ("overdue", CREDIT, {"profile": {"overdue_days": 9, "overdue_cents": 12_000}}),
    "overdue_none": ("overdue", CREDIT, {}),
    "kyc_pending": ("kyc", CREDIT, {"profile": {"kyc": 1}}),
    "promo_ok": ("promo", CREDIT, {"product": {"promo_end": 130}}),
    "promo_over": ("promo", CREDIT, {}),
    "raise_ok": ("raise_limit", CREDIT, {}),
    "human": ("human", CREDIT, {}),
    "objection": ("objection", CREDIT, {}),
    "smalltalk_credit": ("smalltalk", CREDIT, {}),
    "return_ok": ("return", AFTERSALES, {}),
    "return_window": ("return", AFTERSALES, {"order": {"delivered": 80}}),
    "return_undelivered": ("return", AFTERSALES, {"order": {"status": 1}}),
    "cancel_ok": ("cancel", AFTERSALES, {"order": {"status": 0}}),
    "cancel_shipped": ("cancel", AFTERSALES, {"order": {"status": 1}}),
    "status_shipped": ("status", AFTERSALES, {"order": {"status": 1}}),
    "status_delivered": ("status", AFTERSALES, {}),
    "refund": ("refund", AFTERSALES, {}),
    "refund_when": ("refund_when", AFTERSALES, {"order": {"refund_state": 1}}),
    "deadline": ("deadline", AFTERSALES, {}),
    "shipping_free": ("shipping", AFTERSALES, {}),
    "shipping_paid": ("shipping", AFTERSALES, {"order": {"price": 5_000}}),
    "membership": ("membership", AFTERSALES, {}),
}


def scenario_case(name: str) -> tuple[Case, str]:
    """Case and asked intent of a scenario."""
    intent, case, changes = SCENARIOS[name]
    for record, fields in changes.items():
        case = case._replace(**{record: getattr(case, record)._replace(**fields)})
    return case, intent


def packed(names: list[str]) -> tuple[Case, np.ndarray]:
    """Cases and asked intents of scenarios, a row each."""
    cases, intents = zip(*map(scenario_case, names), strict=True)
    asked = np.array([[intent == name for name in INTENTS] for intent in intents])
    return pack(cases), asked


def gold_of(names: list[str]) -> Gold:
    """The right answers to scenarios, a row each."""
    case, asked = packed(names)
    return gold_answers(case, asked)


def single(case: Any, *intents: str) -> tuple[Case, np.ndarray]:
    """One case of ints as a packed row, with these intents asked."""
    return pack([case]), np.array([[name in intents for name in INTENTS]])
