"""The names of the shop: intents, slots, reasons, disclosures, forbidden statements, actions; positions are indices."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

DOMAINS = ("credit", "aftersales")


class Kind(IntEnum):
    """Type of a stated value."""

    MONEY = 0
    PERCENT = 1
    DAYS = 2
    MONTHS = 3
    DATE = 4
    PLAIN = 5
    WORD = 6


SLOT_KINDS: dict[str, Kind] = {
    "limit_left": Kind.MONEY,
    "limit_total": Kind.MONEY,
    "used": Kind.MONEY,
    "held": Kind.MONEY,
    "amount": Kind.MONEY,
    "instalment": Kind.MONEY,
    "last_instalment": Kind.MONEY,
    "interest": Kind.MONEY,
    "total_repay": Kind.MONEY,
    "fee": Kind.MONEY,
    "late_fee": Kind.MONEY,
    "due_amount": Kind.MONEY,
    "overdue_amount": Kind.MONEY,
    "rate": Kind.PERCENT,
    "tenor": Kind.MONTHS,
    "overdue_days": Kind.DAYS,
    "due_date": Kind.DATE,
    "promo_end": Kind.DATE,
    "kyc": Kind.WORD,
    "price": Kind.MONEY,
    "refund": Kind.MONEY,
    "restock_fee": Kind.MONEY,
    "return_cost": Kind.MONEY,
    "shipping_fee": Kind.MONEY,
    "member_refund": Kind.MONEY,
    "return_days": Kind.DAYS,
    "refund_days": Kind.DAYS,
    "return_deadline": Kind.DATE,
    "refund_date": Kind.DATE,
    "eta": Kind.DATE,
    "delivered_on": Kind.DATE,
    "status": Kind.WORD,
    "refund_to": Kind.WORD,
    "order_number": Kind.PLAIN,
}
SLOTS = tuple(SLOT_KINDS)
"""What can be claimed; money in cents, rates in basis points, dates as day of the year."""

LIMIT_SLOTS = ("limit_left",)
NUMERIC_SLOTS = (
    "instalment", "last_instalment", "interest", "total_repay", "fee", "late_fee", "due_date",
    "refund", "restock_fee", "shipping_fee", "member_refund", "return_deadline", "refund_date",
)  # fmt: skip
FACT_SLOTS = tuple(slot for slot in SLOTS if slot not in (*LIMIT_SLOTS, *NUMERIC_SLOTS))

KYC = ("missing", "pending", "verified")
TIERS = ("basic", "silver", "gold")
REGIONS = ("north", "south", "east", "west")
STATUSES = ("processing", "shipped", "delivered", "cancelled")
CATEGORIES = ("standard", "electronics", "clearance")
PAYMENTS = ("card", "credit")
MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
YEAR = 365

CREDIT_INTENTS = (
    "borrow", "raise_limit", "promo", "limit_left", "instalment", "interest", "fee", "due", "overdue", "kyc",
)  # fmt: skip
AFTERSALES_INTENTS = (
    "return", "cancel", "status", "refund", "refund_when", "deadline", "shipping", "membership",
)  # fmt: skip
COMMON_INTENTS = ("human", "objection", "smalltalk")
INTENTS = (*CREDIT_INTENTS, *AFTERSALES_INTENTS, *COMMON_INTENTS)
DECISIONS = ("borrow", "raise_limit", "promo", "return", "cancel")
"""Intents that ask for a yes or no; a turn asks for at most one of them."""

REASONS = (
    "age", "region", "kyc", "overdue", "score", "loans", "limit", "draw", "promo_over", "tier", "tenor",
    "refunded", "not_delivered", "clearance", "opened", "window", "shipped", "already_cancelled",
)  # fmt: skip
DISCLOSURES = ("withdraw", "example", "late_fees", "soft_check", "return_cost", "restock", "final_cancel", "no_duty")
FORBIDDEN = ("guarantee", "pressure", "threat", "no_interest", "instant_refund", "score")
ACTIONS = ("apply", "review", "verify", "pay", "return", "cancel", "transfer")
FUNCTIONS = ("eligibility", "credit_limit", "factual_recall", "numeric", "disclosure", "action")
"""The six reasoning functions, in the order of every array that has one column for each."""


def index(names: Sequence[str], name: str) -> int:
    """Position of a name.

    Raises:
        ValueError: there is no such name.
    """
    if name not in names:
        raise ValueError(f"unknown name {name!r}, expected one of {', '.join(names)}")
    return names.index(name)


def action_token(name: str) -> str:
    """How an action is written in a reply: `action_token("apply") == "<act:apply>"`."""
    return f"<act:{name}>"


def day_of_year(day: int, month: int) -> int:
    """Day number 0 to 364 of a date; `day` from 1, `month` from 0. The shop's years have no leap day."""
    return sum(MONTH_DAYS[:month]) + day - 1


def date_text(day_number: int) -> str:
    """Day and month of a day number, such as "4 march"."""
    rest = int(day_number) % YEAR
    for month, days in zip(MONTHS, MONTH_DAYS, strict=True):
        if rest < days:
            return f"{rest + 1} {month}"
        rest -= days
    raise AssertionError("months cover the year")


def money_text(cents: int) -> str:
    """Cents as "$1234.56"."""
    return f"${int(cents) // 100}.{int(cents) % 100:02d}"


def percent_text(basis_points: int) -> str:
    """Basis points as "1.25%"."""
    return f"{int(basis_points) // 100}.{int(basis_points) % 100:02d}%"
