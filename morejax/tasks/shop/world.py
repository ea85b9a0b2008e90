"""Sampling of cases: customers, products, orders and policy versions, vectorised and seeded.

Half of the cases are benign; the others get one or two obstacles on purpose, so that every rule decides often enough
and the order of the rules matters.
"""

from __future__ import annotations

import numpy as np

from morejax.tasks.shop.ontology import YEAR
from morejax.tasks.shop.policy import VERSIONS
from morejax.tasks.shop.state import Case, Order, Product, Profile, Request, Rules, map_leaves, pack, take

SPLITS = ("train", "dev", "test", "held_out")
TENORS = (3, 6, 12)

PRODUCTS: dict[str, tuple[str, ...]] = {
    "train": ("flexi", "classic", "smart", "basic plus", "family", "studio"),
    "held_out": ("horizon", "compass", "summit"),
}
PRODUCT_NAMES = (*PRODUCTS["train"], *PRODUCTS["held_out"])
ITEMS: dict[str, tuple[str, ...]] = {
    "train": ("kettle", "jacket", "lamp", "headphones", "tablet", "backpack", "blender", "camera", "chair", "watch"),
    "held_out": ("drone", "toaster", "printer", "boots"),
}
ITEM_NAMES = (*ITEMS["train"], *ITEMS["held_out"])

# monthly_bp, fee_bp, late_bp, grace_days, due_days, min_draw, max_draw, promo_bp; in the order of PRODUCT_NAMES.
_TERMS = np.array(
    [
        (100, 100, 5, 2, 20, 10_000, 500_000, 50),
        (150, 200, 10, 3, 15, 20_000, 300_000, 100),
        (125, 150, 5, 0, 25, 5_000, 400_000, 75),
        (200, 50, 8, 5, 10, 10_000, 150_000, 125),
        (80, 250, 4, 3, 30, 30_000, 500_000, 40),
        (175, 100, 10, 1, 14, 5_000, 250_000, 90),
        (140, 300, 6, 4, 18, 15_000, 350_000, 0),
        (90, 120, 12, 2, 21, 10_000, 450_000, 0),
        (160, 180, 7, 0, 12, 25_000, 200_000, 60),
    ],
    np.int32,
)
_OBSTACLES = (9, 6)
"""Kinds of obstacle of credit and of aftersales cases."""


def sample_cases(rng: np.random.Generator, count: int, split: str) -> Case:
    """Draws cases.

    Args:
        rng: source of randomness.
        count: N.
        split: one of `SPLITS`; "held_out" draws held-out policy versions, products and items.

    Returns:
        Packed int32 records, N rows.

    Raises:
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    part = "held_out" if split == "held_out" else "train"
    domain = rng.integers(0, 2, count)
    rules: Rules = take(pack(VERSIONS[part]), rng.integers(0, len(VERSIONS[part]), count))
    today = rng.integers(60, YEAR - 30, count)
    obstacle = np.where(rng.random(count) < 0.5, -1, rng.integers(0, np.array(_OBSTACLES)[domain]))
    second = np.where((rng.random(count) < 0.3) & (obstacle >= 0), rng.integers(0, np.array(_OBSTACLES)[domain]), -1)

    def has(domain_code: int, number: int) -> np.ndarray:
        return (domain == domain_code) & ((obstacle == number) | (second == number))

    product = _products(rng, count, part, today, lambda n: has(0, n))
    profile, request = _customers(rng, rules, product, today, lambda n: has(0, n))
    order = _orders(rng, count, part, rules, today, lambda n: has(1, n))
    case = Case(domain, today, profile, product, order, rules, request)
    return map_leaves(lambda leaf: np.asarray(leaf, np.int32), case)


def _products(rng, count, part, today, has) -> Product:
    names = PRODUCTS[part]
    name = rng.integers(0, len(names), count) + (0 if part == "train" else len(PRODUCTS["train"]))
    rate, fee, late, grace, due, least, most, promotion = _TERMS[name].T
    start = today - rng.integers(1, 40, count)
    end = today + rng.integers(0, 30, count)
    over = has(7)
    start, end = np.where(over, start - 20, start), np.where(over, today - rng.integers(1, 10, count), end)
    return Product(name, rate, fee, late, grace, due, least, most, promotion, start, end)


def _customers(rng, rules: Rules, product: Product, today, has) -> tuple[Profile, Request]:
    count = len(today)
    limit = rng.integers(10, 51, count) * 10_000
    left = rng.integers(20, 80, count) * limit // 100 // 500 * 500
    held = np.where(rng.random(count) < 0.3, rng.integers(1, 20, count) * 500, 0)
    held = np.minimum(held, limit - left)
    amount = _amounts(rng, product, left, has)
    late, late_days = has(3), rules.max_overdue + rng.integers(1, 15, count)
    mild = (rng.random(count) < 0.2) & ~late
    overdue_days = np.where(late, late_days, np.where(mild, rng.integers(0, rules.max_overdue + 1), 0))
    profile = Profile(
        tier=np.where(
            has(8), np.maximum(rules.promo_tier - 1, 0), np.maximum(rng.integers(0, 3, count), rules.promo_tier)
        ),
        age=np.where(has(0), rules.min_age - rng.integers(1, 3, count), rules.min_age + rng.integers(0, 40, count)),
        kyc=np.where(has(2), rng.integers(0, 2, count), np.where(rng.random(count) < 0.1, 1, 2)),
        region=np.where(has(1), rules.closed_region, (rules.closed_region + rng.integers(1, 4, count)) % 4),
        score=np.where(
            has(4), rules.min_score - rng.integers(1, 90, count), rules.min_score + rng.integers(0, 200, count)
        ),
        open_loans=np.where(has(5), rules.max_loans + rng.integers(0, 2, count), rng.integers(0, rules.max_loans)),
        limit=limit,
        used=limit - left - held,
        held=held,
        overdue_days=overdue_days,
        overdue_cents=np.where(overdue_days > 0, rng.integers(2, 60, count) * 1_000, 0),
        bill_day=today - rng.integers(0, 10, count),
        bill_cents=np.where(rng.random(count) < 0.8, rng.integers(4, 90, count) * 500, 0),
        member_until=np.where(rng.random(count) < 0.7, today + rng.integers(1, 300, count), today - 1),
    )
    tenor = np.array(TENORS)[rng.integers(0, 3, count)]
    wanted = np.where((rules.promo_tenor > 0) & (rng.random(count) < 0.6), rules.promo_tenor, tenor)
    return profile, Request(amount, wanted)


def _amounts(rng, product: Product, left, has) -> np.ndarray:
    """Amounts in steps of $5 that fit limit and product, but for cases with that obstacle."""
    count = len(left)
    ceiling = np.maximum(np.minimum(left, product.max_draw), product.min_draw)
    fitting = product.min_draw + (rng.random(count) * (ceiling - product.min_draw)).astype(np.int64) // 500 * 500
    over_limit = left + rng.integers(1, 40, count) * 500
    small = np.maximum(product.min_draw - rng.integers(1, 10, count) * 500, 500)
    return np.where(has(6), np.where(rng.random(count) < 0.6, over_limit, small), fitting)


def _orders(rng, count, part, rules: Rules, today, has) -> Order:
    items = ITEMS[part]
    category = np.where(has(2), 2, rng.integers(0, 2, count))
    electronics = category == 1
    window = np.where(electronics, rules.electronics_days, rules.return_days)
    age = np.where(has(4), window + rng.integers(8, 40, count), (rng.random(count) * (window + 1)).astype(np.int64))
    early = rng.random(count) < 0.35
    status = np.where(early, rng.integers(0, 2, count), np.where(has(5), 3, 2))
    status = np.where(has(1), rng.integers(0, 2, count), np.where(has(4) | has(3), 2, status))
    refunded = (has(0) | (rng.random(count) < 0.15)) & (status == 2)
    return Order(
        number=rng.integers(1_000, 10_000, count),
        item=rng.integers(0, len(items), count) + (0 if part == "train" else len(ITEMS["train"])),
        category=category,
        price=rng.integers(10, 400, count) * 100 - rng.choice(np.array([0, 1, 5, 10, 50]), count),
        paid_by=rng.integers(0, 2, count),
        status=status,
        eta=today + rng.integers(1, 15, count),
        delivered=today - age,
        opened=np.where(has(3) & electronics, 1, (rng.random(count) < 0.15).astype(np.int64)),
        refund_state=refunded,
        refund_day=today - np.minimum(rng.integers(0, 6, count), age),
    )
