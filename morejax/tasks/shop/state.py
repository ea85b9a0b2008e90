"""The hidden state of a case, all integers: one record of ints for one case, or of int32[N] arrays for N of them.

The same records serve host and device: NamedTuples are immutable, pytrees, and a row per case when their leaves are
arrays. Money is in cents, days are day numbers, rates in basis points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Profile(NamedTuple):
    """The customer."""

    tier: Any
    age: Any
    """Years."""
    kyc: Any
    """Identity check: an index into `ontology.KYC`."""
    region: Any
    score: Any
    """Internal credit score, never to be told."""
    open_loans: Any
    limit: Any
    """Credit limit, cents; also `used` and `held`."""
    used: Any
    held: Any
    overdue_days: Any
    overdue_cents: Any
    bill_day: Any
    """Day of the last bill."""
    bill_cents: Any
    member_until: Any
    """Last day of the paid membership, before today without one."""


class Product(NamedTuple):
    """The credit product that is on offer."""

    name: Any
    monthly_bp: Any
    fee_bp: Any
    late_bp: Any
    """Late fee a chargeable day."""
    grace_days: Any
    """Days overdue without a late fee."""
    due_days: Any
    """Days from bill to due date."""
    min_draw: Any
    max_draw: Any
    promo_bp: Any
    """Monthly rate of the promotion."""
    promo_start: Any
    promo_end: Any


class Order(NamedTuple):
    """The order that an aftersales case is about."""

    number: Any
    item: Any
    category: Any
    price: Any
    paid_by: Any
    status: Any
    eta: Any
    delivered: Any
    """Day of delivery; meaningful when `status` says delivered."""
    opened: Any
    refund_state: Any
    """0 none, 1 a refund has been granted."""
    refund_day: Any
    """Day on which it was granted."""


class Rules(NamedTuple):
    """One version of the policy: thresholds, and the order in which its rules are tried."""

    version: Any
    min_age: Any
    closed_region: Any
    kyc_over: Any
    """Cents above which a loan needs a verified identity."""
    max_overdue: Any
    """Days overdue that are still tolerated."""
    min_score: Any
    max_loans: Any
    raise_score: Any
    promo_tier: Any
    promo_tenor: Any
    """The only tenor in the promotion, 0 for any."""
    return_days: Any
    electronics_days: Any
    gold_extra_days: Any
    restock_bp: Any
    """Share of the price kept on returned electronics."""
    return_cost: Any
    refund_days: Any
    shipping_fee: Any
    free_shipping_over: Any
    member_fee: Any
    order: Any
    """i32[..., RULES]: rules in the order in which they are tried, see `policy.RULES`."""


class Request(NamedTuple):
    """What the user has in mind in this turn."""

    amount: Any
    tenor: Any


class Case(NamedTuple):
    """Everything that is true in one turn."""

    domain: Any
    today: Any
    profile: Profile
    product: Product
    order: Order
    rules: Rules
    request: Request


def map_leaves(function, case: Any) -> Any:
    """The same record with `function` applied to every leaf; NumPy only, so that the host needs no JAX."""
    if isinstance(case, tuple):
        return type(case)(*(map_leaves(function, leaf) for leaf in case))
    return function(case)


def take(cases: Any, rows: Sequence[int] | np.ndarray) -> Any:
    """Rows of packed records, in this order."""
    rows = np.asarray(rows)
    return map_leaves(lambda leaf: leaf[rows], cases)


def row(cases: Any, index: int) -> Any:
    """One case as a record of plain ints (the order of rules stays a tuple of ints)."""

    def plain(leaf: np.ndarray) -> Any:
        value = leaf[index]
        return int(value) if np.ndim(value) == 0 else [int(v) for v in value]

    return map_leaves(plain, cases)


def unpack(cases: Any) -> list[Any]:
    """All rows as records of plain ints."""
    if isinstance(cases, tuple):
        return [type(cases)(*leaves) for leaves in zip(*map(unpack, cases), strict=True)]
    return cases.tolist()


def pack(rows: Sequence[Any]) -> Any:
    """Packed records int32[N, ...] of N single ones; the inverse of `row`."""
    if isinstance(rows[0], tuple):
        return type(rows[0])(*(pack(column) for column in zip(*rows, strict=True)))
    return np.array(rows, np.int32)
