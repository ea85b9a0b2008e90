"""Figures of a run, drawn from its metrics (no display needed).

Every function takes columns as :func:`morejax.training.writers.read_metrics` gives them and returns a
``Figure``, or ``None`` when the run has logged none of what the figure shows (a supervised run has no
multipliers). A stream keeps its colour in all figures of a run. ``save_figure`` writes PNG, SVG or PDF;
``to_svg`` draws for the report's page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from morejax.training.plotting import (
    INK,
    OKABE_ITO,
    Metrics,
    constraints_of,
    draw_lines,
    label_ends,
    last_cosines,
    mark_last,
    names_of,
    objectives_of,
    panels,
    plot_line,
    save_figure,
    series,
    shorten,
    smooth,
    smoothed,
    stream_colours,
    styled,
    to_svg,
    varies,
    words,
)

__all__ = [
    "constraints_figure",
    "evaluation_figure",
    "kl_entropy_figure",
    "multipliers_figure",
    "norms_figure",
    "objectives_figure",
    "overview_figure",
    "reliability_figure",
    "save_figure",
    "score_figure",
    "supervised_figure",
    "to_svg",
    "weights_figure",
]

ITERATION = "PPO iteration"
SYSTEM_COLOURS = {"supervised": "#56B4E9", "scaffold": "#E69F00", "ppo": "#0072B2"}
SYSTEM_LABELS = {"supervised": "supervised", "scaffold": "scaffold", "ppo": "after PPO"}


@styled
def constraints_figure(metrics: Metrics) -> Figure | None:
    """Every constraint's J (pale: each iteration, bold: its moving average) against its threshold."""
    names = constraints_of(metrics)
    if not names:
        return None
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        _draw_constraint(axis, metrics, name, stream_colours(metrics)[name])
        axis.set(title=words(name), xlabel=ITERATION, ylabel="J")
        if _draw_greedy(axis, metrics, name, stream_colours(metrics)[name]):
            axis.set_title(f"{words(name)} (◆ greedy, selection split)")
    return figure


@styled
def multipliers_figure(metrics: Metrics) -> Figure | None:
    """Lagrange multiplier of every constraint, and the violation that drives it."""
    multipliers, violations = names_of(metrics, "multiplier/*"), names_of(metrics, "constraint/*/violation")
    if not multipliers:
        return None
    figure, axes = panels(1 + bool(violations), columns=2)
    draw_lines(axes[0], metrics, {name: f"multiplier/{name}" for name in multipliers}, raw=False)
    axes[0].set(title="Multipliers", xlabel=ITERATION, ylabel="λ")
    axes[0].set_ylim(bottom=0)
    if violations:
        draw_lines(axes[1], metrics, {name: f"constraint/{name}/violation" for name in violations}, raw=False)
        axes[1].axhline(0, color=INK, linewidth=0.8)
        axes[1].set(title="Violations (above 0: not met)", xlabel=ITERATION, ylabel="threshold − moving average of J")
    return figure


@styled
def weights_figure(metrics: Metrics) -> Figure | None:
    """Objective weights, and each stream's share of the gradient."""
    weights, shares = names_of(metrics, "weight/*"), names_of(metrics, "share/*")
    if not weights and not shares:
        return None
    figure, axes = panels(bool(weights) + bool(shares), columns=2)
    places = iter(axes)
    if weights:
        axis = next(places)
        draw_lines(axis, metrics, {name: f"weight/{name}" for name in weights}, raw=False)
        axis.set(title="Objective weights", xlabel=ITERATION, ylabel="w (sum 1)")
        axis.set_ylim(bottom=0)
    if shares:
        axis = next(places)
        draw_lines(axis, metrics, {name: f"share/{name}" for name in shares})
        axis.set(title="Share of the gradient", xlabel=ITERATION, ylabel="share")
        axis.set_ylim(0, 1.2 * axis.get_ylim()[1])
    return figure


@styled
def objectives_figure(metrics: Metrics) -> Figure | None:
    """Every objective's J, one panel each."""
    names = [name for name in objectives_of(metrics) if f"J/{name}" in metrics]
    if not names:
        return None
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        draw_lines(axis, metrics, {name: f"J/{name}"}, label=False)
        mark_last(axis, *smoothed(metrics, f"J/{name}"), stream_colours(metrics)[name])
        axis.set(title=words(name), xlabel=ITERATION, ylabel="J")
    return figure


@styled
def norms_figure(metrics: Metrics) -> Figure | None:
    """Gradient norm of every stream, and the cosines between the streams' gradients at the last iteration."""
    norms, (streams, cosines) = names_of(metrics, "grad_norm/*"), last_cosines(metrics)
    if not norms and not streams:
        return None
    figure, axes = panels(bool(norms) + bool(streams), columns=2, height=3.3)
    places = iter(axes)
    if norms:
        axis = next(places)
        axis.set_yscale("log")
        draw_lines(axis, metrics, {name: f"grad_norm/{name}" for name in norms})
        axis.set(title="Gradient norms", xlabel=ITERATION, ylabel="norm (log scale)")
    if streams:
        _draw_matrix(next(places), streams, cosines)
    return figure


@styled
def evaluation_figure(metrics: Metrics) -> Figure | None:
    """Standard scores of the policy on the selection split, each time that PPO stopped to measure them."""
    names = {"inform": "Inform (%)", "success": "Success (%)", "bleu": "BLEU", "combined": "Combined"}
    names = {key: title for key, title in names.items() if len(series(metrics, f"eval/{key}")[0])}
    if not names:
        return None
    figure, axes = panels(len(names), columns=4, height=2.3)
    for axis, (key, title) in zip(axes, names.items(), strict=True):
        steps, values = series(metrics, f"eval/{key}")
        plot_line(axis, steps, values, OKABE_ITO[0], linewidth=1.6, marker="o", markersize=3)
        mark_last(axis, steps, values, OKABE_ITO[0])
        axis.margins(x=0.04, y=0.12)
        axis.set(title=title, xlabel=ITERATION)
    return figure


@styled
def kl_entropy_figure(metrics: Metrics) -> Figure | None:
    """KL to the reference, its coefficient, entropy, clip fraction, explained variance and value loss."""
    clips = {name: f"clip_fraction/{name}" for name in names_of(metrics, "clip_fraction/*")}
    values = {name: f"explained_variance/{name}" for name in names_of(metrics, "explained_variance/*")}
    shown: list[tuple[str, str, dict[str, str]]] = [
        ("KL to the reference", "nats per token", {"kl": "kl"}),
        ("KL coefficient", "coefficient", {"kl_coef": "kl_coef"} if varies(metrics, "kl_coef") else {}),
        ("Entropy of the policy", "nats per token", {"entropy": "entropy"}),
        ("Clipped ratios", "share of tokens", clips or {"clip_fraction": "clip_fraction"}),
        ("Explained variance of the values", "1 − Var(error)/Var(target)", values),
        ("Value loss", "loss", {"value_loss": "value_loss"}),
    ]
    shown = [panel for panel in shown if any(len(series(metrics, key)[0]) for key in panel[2].values())]
    if not shown:
        return None
    figure, axes = panels(len(shown))
    for axis, (title, unit, keys) in zip(axes, shown, strict=True):
        draw_lines(axis, metrics, keys, label=len(keys) > 1)
        if keys is values:
            axis.set_ylim(bottom=max(axis.get_ylim()[0], -1.0), top=1.0)
        axis.set(title=title, xlabel=ITERATION, ylabel=unit)
    return figure


@styled
def supervised_figure(stages: Mapping[str, Metrics]) -> Figure | None:
    """Loss on training batches and on held-out dialogues, a panel for each learnt stage.

    Args:
        stages: stage -> its columns, as :func:`morejax.training.writers.read_stages` gives them; stages
            without a ``loss`` or ``dev_loss`` are left out.
    """
    learnt = {name: metrics for name, metrics in stages.items() if {"loss", "dev_loss"} & metrics.keys()}
    if not learnt:
        return None
    figure, axes = panels(len(learnt))
    for axis, (name, metrics) in zip(axes, learnt.items(), strict=True):
        lines = {"loss": ("training", OKABE_ITO[0]), "dev_loss": ("held out", OKABE_ITO[1])}
        ends = [_draw_loss(axis, metrics, key, label, colour) for key, (label, colour) in lines.items()]
        _zoom_past_start(axis, metrics)
        label_ends(axis, [end for end in ends if end])
        axis.set(title=words(name), xlabel="update", ylabel="loss (nats per token)")
    return figure


@styled
def overview_figure(metrics: Metrics) -> Figure | None:
    """The run at a glance: constraints and thresholds, multipliers, weights, change of the objectives."""
    constraints, objectives = constraints_of(metrics), objectives_of(metrics)
    if not constraints and not objectives:
        return None
    figure, (first, second, third, fourth) = panels(4, columns=2)
    _draw_constraints_together(first, metrics, constraints)
    greedy = [_draw_greedy(first, metrics, name, stream_colours(metrics)[name]) for name in constraints]
    first.set(title="Constraints, thresholds (dashed)" + (", greedy replies (◆)" if any(greedy) else ""), ylabel="J")
    draw_lines(second, metrics, {name: f"multiplier/{name}" for name in constraints}, raw=False)
    second.set(title="Multipliers", ylabel="λ")
    draw_lines(third, metrics, {name: f"weight/{name}" for name in objectives}, raw=False)
    third.set(title="Objective weights", ylabel="w (sum 1)")
    draw_lines(fourth, metrics, {name: f"J/{name}" for name in objectives}, relative=True)
    fourth.axhline(0, color=INK, linewidth=0.8)
    fourth.set(title="Objectives, change since the start", ylabel="J − J at the start")
    for axis in (second, third):
        axis.set_ylim(bottom=0)
    for axis in (first, second, third, fourth):
        axis.set_xlabel(ITERATION)
        if not axis.lines:
            _say_empty(axis)
    return figure


@styled
def score_figure(scores: Sequence[Mapping[str, Any]], split: str | None = None) -> Figure | None:
    """Bars of Inform, Success, BLEU and Combined for each system of a run.

    Args:
        scores: rows with ``system``, ``split``, ``inform``, ``success`` (percent), ``bleu`` and ``combined``.
        split: show the rows of this split only.
    """
    rows = [row for row in scores if split is None or row.get("split") == split]
    if not rows:
        return None
    shown = {"inform": "Inform (%)", "success": "Success (%)", "bleu": "BLEU", "combined": "Combined"}
    figure, axes = panels(len(shown), columns=len(shown), height=0.55 + 0.28 * len(rows))
    for axis, (name, title) in zip(axes, shown.items(), strict=True):
        colours = [SYSTEM_COLOURS.get(row["system"], OKABE_ITO[-1]) for row in rows]
        bars = axis.barh(range(len(rows)), [row[name] for row in rows], 0.72, color=colours)
        axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=8.5, color=INK)
        axis.set_yticks(range(len(rows)), [str(SYSTEM_LABELS.get(row["system"], row["system"])) for row in rows])
        axis.set(title=title, xticks=[], xlim=(0, 1.22 * max(row[name] for row in rows) or 1))
        axis.tick_params(axis="y", length=0, labelleft=axis is axes[0])
        axis.spines[["bottom", "left"]].set_visible(False)
        axis.grid(visible=False)
        axis.invert_yaxis()
    return figure


@styled
def reliability_figure(heads: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure | None:
    """Calibration of the reward heads: how often a reply scored p was really a person's.

    Args:
        heads: head -> bins with ``confidence`` (mean p), ``accuracy`` (share of positives) and ``count``.
    """
    heads = {name: [row for row in bins if row["count"]] for name, bins in heads.items()}
    heads = {name: bins for name, bins in heads.items() if bins}
    if not heads:
        return None
    figure, axes = panels(len(heads), height=3.0, width=3.3 * len(heads))
    for axis, (name, bins) in zip(axes, heads.items(), strict=True):
        counts = np.array([row["count"] for row in bins], dtype=float)
        x, y = [row["confidence"] for row in bins], [row["accuracy"] for row in bins]
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axis.plot(x, y, color=OKABE_ITO[0], linewidth=1.2)
        axis.scatter(x, y, s=8 + 70 * counts / counts.max(), color=OKABE_ITO[0], alpha=0.8, linewidths=0)
        axis.set(title=words(name), xlabel="predicted probability", ylabel="share of positives")
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", anchor="W")
    return figure


def _draw_constraint(axis: Axes, metrics: Metrics, name: str, colour: str) -> None:
    steps, threshold = series(metrics, f"constraint/{name}/threshold")
    plot_line(axis, *series(metrics, f"J/{name}"), colour, linewidth=0.7, alpha=0.35)
    ema_steps, ema = _ema_of(metrics, name)
    plot_line(axis, ema_steps, ema, colour, linewidth=1.9)
    plot_line(axis, steps, threshold, INK, linewidth=1.1, linestyle=(0, (4, 3)))
    if len(ema) > 1 and len(threshold):
        level = np.interp(ema_steps, steps, threshold)
        axis.fill_between(
            ema_steps, ema, level, where=ema < level, color=colour, alpha=0.12, linewidth=0, interpolate=True
        )
    mark_last(axis, ema_steps, ema, colour)
    axis.margins(x=0.02, y=0.12)
    text = {"fontsize": 8, "va": "bottom", "textcoords": "offset points", "xytext": (0, 2)}
    axis.annotate(f"threshold {threshold[0]:.3g}", (steps[0], threshold[0]), **text)


def _draw_greedy(axis: Axes, metrics: Metrics, name: str, colour: str) -> bool:
    """Mark the constraint's level under greedy decoding, where the run evaluated it; training samples instead."""
    steps, percent = series(metrics, f"eval/{name}")
    if len(steps):
        axis.scatter(steps, percent / 100, marker="D", s=22, color=colour, edgecolor="white", linewidth=0.6, zorder=5)
    return len(steps) > 0


def _draw_constraints_together(axis: Axes, metrics: Metrics, names: Iterable[str]) -> None:
    ends = []
    for name in names:
        colour = stream_colours(metrics)[name]
        steps, ema = _ema_of(metrics, name)
        plot_line(axis, *series(metrics, f"J/{name}"), colour, linewidth=0.7, alpha=0.3)
        plot_line(axis, steps, ema, colour, linewidth=1.8)
        plot_line(
            axis,
            *series(metrics, f"constraint/{name}/threshold"),
            colour,
            linewidth=1.1,
            linestyle=(0, (4, 3)),
        )
        if len(ema):
            ends.append((float(ema[-1]), words(name), colour))
    axis.margins(x=0.02)
    label_ends(axis, ends)


def _ema_of(metrics: Metrics, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The moving average that drives the multiplier; runs without one get a smoothed J."""
    steps, ema = series(metrics, f"constraint/{name}/score_ema")
    return (steps, ema) if len(steps) else smoothed(metrics, f"J/{name}")


def _draw_matrix(axis: Axes, names: Sequence[str], matrix: np.ndarray) -> None:
    """Cosines as a table of coloured cells with their numbers: orange against, blue along."""
    cmap = LinearSegmentedColormap.from_list("cosine", [OKABE_ITO[1], "#f4f4f2", OKABE_ITO[0]])
    # Cells as shapes, not as an image: they stay sharp at any size and need no embedded bitmap.
    cells = np.ma.masked_invalid(matrix)
    axis.pcolormesh(np.arange(len(names)), np.arange(len(names)), cells, cmap=cmap, vmin=-1, vmax=1, shading="nearest")
    axis.set(aspect="equal", anchor="W")
    axis.invert_yaxis()
    for (row, column), value in np.ndenumerate(matrix):
        if math.isfinite(value):
            colour = "white" if abs(value) > 0.6 else "#222222"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=colour)
    labels = [shorten(words(name)) for name in names]
    axis.set_xticks(range(len(names)), labels, rotation=35, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), labels)
    axis.set_title("Gradient cosines, last iteration")
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _draw_loss(axis: Axes, metrics: Metrics, key: str, label: str, colour: str) -> tuple[float, str, str] | None:
    steps, values = series(metrics, key)
    if not len(steps):
        return None
    held_out = key == "dev_loss"
    if not held_out:
        plot_line(axis, steps, values, colour, linewidth=0.7, alpha=0.3)
    shown = values if held_out else smooth(values)
    plot_line(axis, steps, shown, colour, linewidth=1.8, **({"marker": "o", "markersize": 3} if held_out else {}))
    axis.margins(x=0.02)
    return float(shown[-1]), f"{label} {shown[-1]:.3f}", colour


def _zoom_past_start(axis: Axes, metrics: Metrics) -> None:
    """Let the first few updates, falling from log V, leave the panel rather than flatten the rest."""
    values = np.concatenate([series(metrics, "loss")[1], series(metrics, "dev_loss")[1]])
    if len(values) >= 20:
        low, high = values.min(), np.quantile(values, 0.9)
        axis.set_ylim(low - 0.08 * (high - low), high + 0.35 * (high - low) if high > low else None)


def _say_empty(axis: Axes) -> None:
    axis.text(0.5, 0.5, "not part of this run", ha="center", va="center", transform=axis.transAxes, alpha=0.6)
    axis.set(xticks=[], yticks=[])
