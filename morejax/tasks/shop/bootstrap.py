"""Day-blocked bootstrap of ratios of sums: whole days are drawn with replacement, the same ones for every arm.

Users of a day share its mood and mix, so that days, not dialogues, are what is independent. With D days the interval is

    estimate +- t_{D-1, 0.975} sqrt(D / (D - 1)) std(replicates)

since D = 14 blocks are too few for plain percentiles, which come out narrow (Hesterberg 2015, section 3.2).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

DRAWS = 2_000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A number with its 95 % confidence interval; NaN where there is nothing to estimate."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Does the interval leave out 0?"""
        return self.low > 0.0 or self.high < 0.0


def day_weights(days: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each day is drawn, i64[B, D]; share them between all that is compared.

    Raises:
        ValueError: fewer than two days.
    """
    if days < 2:
        raise ValueError(f"days is {days}, expected at least 2 for an interval over days")
    return np.random.default_rng([seed, 0xB007]).multinomial(days, np.full(days, 1.0 / days), size=draws)


def day_sums(values: np.ndarray, day: np.ndarray, days: int) -> np.ndarray:
    """Sums of a value over the dialogues of each day, f64[D]."""
    return np.bincount(day, weights=np.asarray(values, np.float64), minlength=days)


def replicates(numerator: np.ndarray, denominator: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ratio of sums in every draw, f64[B]; NaN where a draw has no denominator.

    Args:
        numerator, denominator: f[D], sums of days.
        weights: i[B, D].
    """
    below = (weights * denominator[None, :]).sum(axis=1)
    above = (weights * numerator[None, :]).sum(axis=1)
    return np.divide(above, below, out=np.full(len(weights), np.nan), where=below > 0)


def interval(value: float, drawn: np.ndarray, days: int) -> Estimate:
    """The t interval around an estimate from its replicates; see the head of this module."""
    spread = float(np.std(drawn)) * np.sqrt(days / (days - 1)) * float(student.ppf(0.5 + LEVEL / 2, days - 1))
    return Estimate(value, value - spread, value + spread)


def percentiles(value: float, drawn: np.ndarray) -> Estimate:
    """The percentile interval, for what is skewed, such as a ratio of differences."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))
