"""An A/B test as Markdown tables, a figure and JSON."""

from __future__ import annotations

import math
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from morejax.tasks.shop.ab_metrics import METRICS, Metric
from morejax.tasks.shop.ab_test import PAPER, RELIABILITY_TRIALS, Results
from morejax.tasks.shop.bootstrap import Estimate
from morejax.training.plotting import OKABE_ITO, panels, save_figure, styled

PASS4 = Metric(f"pass^{RELIABILITY_TRIALS}", lambda o: o.passed, lambda o: o.passed)
LIFTS = ("conversion", "reached_conversion", "sound_conversion")
SHOWN = ("conversion", "reached_conversion", "sound_conversion", "regretted", "satisfaction", "handoff_failed")
"""Metrics of the figure."""
STAR = r" \*"


def _metric(name: str) -> Metric:
    return PASS4 if name == "pass4" else METRICS[name]


def table(results: Results) -> str:
    """All metrics of all arms in every setting, differences to the control, and the share of the oracle's lift."""
    plan = results.plan
    head = (
        f"{plan.dialogues} dialogues an arm over {plan.days} simulated days, cases of split `{plan.split}`, seed "
        f"{plan.seed}; common random numbers; 95 % intervals over days. \\* marks a paired difference to "
        f"`{plan.control}` whose interval leaves out 0."
    )
    parts = [head]
    for setting in plan.settings:
        parts += [f"### Users: {setting}", _values(results, setting), _lifts(results, setting)]
    return "\n\n".join(parts) + "\n"


def _values(results: Results, setting: str) -> str:
    arms = results.plan.arms
    lines = [f"| metric | {' | '.join(arms)} |", "|---" + "|---:" * len(arms) + "|"]
    for name in results.metrics():
        cells = [_cell(results, setting, arm, name) for arm in arms]
        lines.append(f"| {_metric(name).label} | {' | '.join(cells)} |")
    latencies = " | ".join(f"{results.latency(setting, arm):.2f}" for arm in arms)
    lines.append(f"| milliseconds a response, batched | {latencies} |")
    return "\n".join(lines)


def _cell(results: Results, setting: str, arm: str, name: str) -> str:
    value = results.value(setting, arm, name)
    if math.isnan(value.value):
        return "none"
    scale, digits = (100.0, 1) if _metric(name).unit == "%" else (1.0, 2)
    clear = arm != results.plan.control and results.difference(setting, arm, name).clear
    half = f" ± {scale * (value.high - value.value):.{digits}f}" if math.isfinite(value.high) else ""
    return f"{scale * value.value:.{digits}f}{half}{STAR if clear else ''}"


def _lifts(results: Results, setting: str) -> str:
    plan = results.plan
    lines = [
        f"| against `{plan.control}` | difference, points | relative lift | share of the oracle's lift |",
        "|---|---:|---:|---:|",
    ]
    for name in LIFTS:
        for arm in plan.arms:
            if arm != plan.control:
                difference = _range(results.difference(setting, arm, name), 100.0, "")
                lift = _range(results.lift(setting, arm, name), 100.0, " %")
                share = _range(results.share(setting, arm, name), 100.0, " %")
                lines.append(f"| {METRICS[name].label}, {arm} | {difference} | {lift} | {share} |")
    for name in ("conversion", "reached_conversion"):
        share = f"about {100 * PAPER['share']:.0f} %" if name == "conversion" else ""
        lines.append(
            f"| {METRICS[name].label}, the paper's production systems | | +{100 * PAPER[name]:.2f} % | {share} |"
        )
    return "\n".join(lines)


def _range(estimate: Estimate, scale: float, unit: str) -> str:
    if math.isnan(estimate.value):
        return "not defined"
    low, high = scale * estimate.low, scale * estimate.high
    return f"{scale * estimate.value:+.2f}{unit} ({low:+.2f} to {high:+.2f})"


def as_json(results: Results) -> dict[str, Any]:
    """Plan, values, differences, lifts and shares; NaN is None."""
    plan = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(results.plan).items()}
    found: dict[str, Any] = {"plan": plan, "settings": {}}
    for setting in results.plan.settings:
        found["settings"][setting] = {arm: _arm_json(results, setting, arm) for arm in results.plan.arms}
    return found


def _arm_json(results: Results, setting: str, arm: str) -> dict[str, Any]:
    names = results.metrics()
    values = {name: _triple(results.value(setting, arm, name)) for name in names}
    record: dict[str, Any] = {"values": values, "latency_ms": results.latency(setting, arm)}
    record["differences"] = {name: _triple(results.difference(setting, arm, name)) for name in names}
    record["lifts"] = {name: _triple(results.lift(setting, arm, name)) for name in LIFTS}
    record["shares"] = {name: _triple(results.share(setting, arm, name)) for name in LIFTS}
    return record


def _triple(estimate: Estimate) -> dict[str, float | None]:
    return {name: float(x) if math.isfinite(x) else None for name, x in estimate._asdict().items()}


def figure(results: Results, path: Path | str) -> Path:
    """Draws the main metrics of all arms with their intervals, a colour for each setting.

    Args:
        results: of `ab_test.ab`.
        path: of the image; its ending decides the format.
    """
    drawing = _drawing(results)
    assert drawing is not None
    return save_figure(drawing, path)


@styled
def _drawing(results: Results) -> Figure | None:
    drawing, axes = panels(len(SHOWN), columns=3, height=1.1 + 0.24 * len(results.plan.arms))
    for axis, name in zip(axes, SHOWN, strict=True):
        _draw(axis, results, name)
    drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, title="users")
    return drawing


def _draw(axis: Axes, results: Results, name: str) -> None:
    plan, metric = results.plan, METRICS[name]
    scale = 100.0 if metric.unit == "%" else 1.0
    for number, setting in enumerate(plan.settings):
        estimates = [results.value(setting, arm, name) for arm in plan.arms]
        height = [place + 0.2 * number for place in range(len(plan.arms))]
        middle = [scale * estimate.value for estimate in estimates]
        spread = [scale * (estimate.high - estimate.value) for estimate in estimates]
        style = {"fmt": "o", "capsize": 3, "markersize": 4, "color": OKABE_ITO[number % len(OKABE_ITO)]}
        axis.errorbar(middle, height, xerr=spread, label=setting, **style)
    axis.set_yticks(range(len(plan.arms)), plan.arms)
    axis.invert_yaxis()
    # The names of arms leave a panel little width.
    axis.set_title(textwrap.fill(f"{metric.label}{' (%)' if metric.unit == '%' else ''}", 20))
