"""An independent slow implementation of arithmetic and policy: fractions, plain if-statements, one case at a time."""

from __future__ import annotations

import datetime
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

from morejax.tasks.shop.state import Case


def cents(amount: Fraction) -> int:
    """Half up to the cent, by the decimal module."""
    exact = Decimal(amount.numerator) / Decimal(amount.denominator)
    # A quotient without a finite decimal form never lies halfway, so 28 digits are enough.
    return int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def instalment_plan(amount: int, monthly_bp: int, months: int) -> list[int]:
    """All instalments of a loan, one by one."""
    total = amount + cents(Fraction(amount * monthly_bp * months, 10_000))
    each = cents(Fraction(total, months))
    plan = [each] * (months - 1)
    return [*plan, total - sum(plan)]


def late_fee(overdue: int, daily_bp: int, days: int, grace: int) -> int:
    return cents(Fraction(overdue * daily_bp * max(0, days - grace), 10_000))


def date_words(day: int) -> tuple[int, int]:
    """Day of the month and month of a day number, by the calendar of a year without leap day."""
    date = datetime.date(2023, 1, 1) + datetime.timedelta(days=day % 365)
    return date.day, date.month


def reasons(case: Case, decision: str) -> set[str]:
    """Every reason that speaks against a decision, whatever the order."""
    p, o, r, q = case.profile, case.order, case.rules, case.request
    found = set()
    if decision == "borrow":
        left = max(0, p.limit - p.used - p.held)
        checks = {
            "age": p.age < r.min_age,
            "region": p.region == r.closed_region,
            "kyc": p.kyc != 2 and q.amount > r.kyc_over,
            "overdue": p.overdue_days > r.max_overdue,
            "score": p.score < r.min_score,
            "loans": p.open_loans >= r.max_loans,
            "draw": not case.product.min_draw <= q.amount <= case.product.max_draw,
            "limit": q.amount > left,
        }
    elif decision == "raise_limit":
        checks = {"kyc": p.kyc != 2, "overdue": p.overdue_days > 0, "score": p.score < r.raise_score}
    elif decision == "promo":
        checks = {
            "promo_over": not case.product.promo_start <= case.today <= case.product.promo_end,
            "tier": p.tier < r.promo_tier,
            "tenor": r.promo_tenor not in (0, q.tenor),
            "overdue": p.overdue_days > r.max_overdue,
        }
    elif decision == "return":
        days = (r.electronics_days if o.category == 1 else r.return_days) + (r.gold_extra_days if p.tier == 2 else 0)
        checks = {
            "refunded": bool(o.refund_state),
            "not_delivered": o.status != 2,
            "clearance": o.category == 2,
            "opened": o.category == 1 and o.opened == 1,
            "window": case.today - o.delivered > days,
        }
    else:
        checks = {"already_cancelled": o.status == 3, "shipped": o.status in (1, 2)}
    found |= {name for name, holds in checks.items() if holds}
    return found


def values(case: Case, promotion: bool) -> dict[str, int]:
    """Computed slots of a case; those of the other domain or of an order that has not arrived are of no use."""
    p, product, o, r, q = case.profile, case.product, case.order, case.rules, case.request
    rate = product.promo_bp if promotion else product.monthly_bp
    plan = instalment_plan(q.amount, rate, q.tenor)
    restock = cents(Fraction(o.price * r.restock_bp, 10_000)) if o.category == 1 else 0
    window = (r.electronics_days if o.category == 1 else r.return_days) + (r.gold_extra_days if p.tier == 2 else 0)
    gold = p.tier == 2
    return {
        "limit_left": max(0, p.limit - p.used - p.held),
        "instalment": plan[0],
        "last_instalment": plan[-1],
        "total_repay": sum(plan),
        "interest": sum(plan) - q.amount,
        "fee": cents(Fraction(q.amount * product.fee_bp, 10_000)),
        "late_fee": late_fee(p.overdue_cents, product.late_bp, p.overdue_days, product.grace_days),
        "refund": o.price - restock,
        "restock_fee": restock,
        "shipping_fee": 0 if gold or o.price >= r.free_shipping_over else r.shipping_fee,
        "return_cost": 0 if gold else r.return_cost,
        "member_refund": cents(Fraction(r.member_fee * max(0, p.member_until - case.today), 365)),
        "due_date": (p.bill_day + product.due_days) % 365,
        "return_deadline": (o.delivered + window) % 365,
        "refund_date": (o.refund_day + r.refund_days) % 365,
    }
