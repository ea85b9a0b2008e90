"""What an A/B test reports: every metric is a ratio of two sums over dialogues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from morejax.tasks.shop.ontology import FUNCTIONS
from morejax.tasks.shop.play import Outcomes

Column = Callable[[Outcomes], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """sum(numerator) / sum(denominator) over dialogues.

    Attributes:
        label: as tables show it.
        numerator, denominator: a number for each dialogue.
        unit: "%" for shares.
        better: 1 if more is better, -1 if less is, 0 for neither.
    """

    label: str
    numerator: Column
    denominator: Column
    unit: str = "%"
    better: int = 1


def _one(outcomes: Outcomes) -> np.ndarray:
    return np.ones(len(outcomes))


def _function(column: int) -> Metric:
    return Metric(f"{FUNCTIONS[column]} right", lambda o: o.right[:, column], lambda o: o.judged[:, column])


METRICS: dict[str, Metric] = {
    "conversion": Metric("overall conversion", lambda o: o.converted, _one),
    "reached_conversion": Metric("reached conversion", lambda o: o.converted & o.reached, lambda o: o.reached),
    "sound_conversion": Metric("conversion, not regretted", lambda o: o.converted & ~o.regretted, _one),
    "regretted": Metric("regretted conversion", lambda o: o.regretted, _one, better=-1),
    "ineligible": Metric("regretted: ineligible", lambda o: o.ineligible, _one, better=-1),
    "over_limit": Metric("regretted: over the limit", lambda o: o.over_limit, _one, better=-1),
    "misinformed": Metric("regretted: misinformed", lambda o: o.misinformed, _one, better=-1),
    "credit_conversion": Metric("conversion, credit", lambda o: o.converted & o.credit, lambda o: o.credit),
    "aftersales_conversion": Metric("conversion, aftersales", lambda o: o.converted & ~o.credit, lambda o: ~o.credit),
    "reached": Metric("reached", lambda o: o.reached, _one),
    "satisfaction": Metric("satisfaction (1 to 5)", lambda o: o.satisfaction, lambda o: o.satisfaction > 0, ""),
    "handoff_right": Metric("hand-off, right", lambda o: o.handoff_right, _one, better=0),
    "handoff_failed": Metric("hand-off, failed", lambda o: o.handoff_failed, _one, better=-1),
    "left": Metric("left", lambda o: o.left, _one, better=-1),
    **{name: _function(column) for column, name in enumerate(FUNCTIONS)},
    "passed": Metric("pass^1", lambda o: o.passed, _one),
    "turns": Metric("turns a dialogue", lambda o: o.turns, _one, "", 0),
    "response_tokens": Metric("tokens a response", lambda o: o.response_tokens, lambda o: o.turns, "", 0),
    "reasoning_tokens": Metric("reasoning tokens a response", lambda o: o.reasoning_tokens, lambda o: o.turns, "", -1),
}
"""Metrics by name. Conversion counts every accepted offer, as the shop's till would; those regretted are part of it,
and `sound_conversion` is the rest."""
