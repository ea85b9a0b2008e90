"""Integer arithmetic of the shop: cents, days and basis points, exact within 32 bits, on ints and arrays alike.

Every division rounds half up to the cent, once, where it stands. Of equal instalments each is rounded; the last one
takes the remainder, so that they add up to the total.
"""

from __future__ import annotations

from typing import Any

from morejax.tasks.shop.ontology import YEAR

WHOLE = 10_000
"""Basis points of the whole."""


def divide_half_up(numerator: Any, denominator: Any) -> Any:
    """`numerator / denominator` rounded half up: floor((n + floor(d / 2)) / d), for n >= 0 and d > 0.

    For an odd d no quotient lies halfway, for an even one floor(d / 2) is half of it: the formula is exact.
    """
    return (numerator + denominator // 2) // denominator


def basis_points_of(cents: Any, basis_points: Any) -> Any:
    """`cents * basis_points / 10000`, half up, without the product that would not fit 32 bits.

    With cents = 10000 q + r it is q * bp + round(r * bp / 10000). Fits for bp <= 200 000 and results below 2^31.
    """
    return cents // WHOLE * basis_points + divide_half_up(cents % WHOLE * basis_points, WHOLE)


def total_interest(amount: Any, monthly_bp: Any, months: Any) -> Any:
    """Flat interest of a loan in cents: amount * monthly rate * months, rounded once."""
    return basis_points_of(amount, monthly_bp * months)


def instalments(total: Any, months: Any) -> tuple[Any, Any]:
    """Every instalment but the last, round(total / months), and the last, total - (months - 1) * instalment."""
    each = divide_half_up(total, months)
    return each, total - (months - 1) * each


def late_fee(overdue: Any, daily_bp: Any, days: Any) -> Any:
    """Fee in cents for `days` chargeable days on `overdue` cents: overdue * daily rate * days, rounded once."""
    return basis_points_of(overdue, daily_bp * days)


def prorate(cents: Any, days_left: Any, days: Any = YEAR) -> Any:
    """The part of a fee that covers the days left: cents * days_left / days, half up."""
    return divide_half_up(cents * days_left, days)
