"""Figures of a run, drawn from its metrics with matplotlib (no display needed).

Every function takes columns as :func:`morejax.training.writers.read_metrics` gives them and returns a ``Figure``, or ``None``
when the run has logged none of what the figure shows (a supervised run has no multipliers). Colours are those of Okabe and
Ito, told apart by colour-blind readers too; a stream keeps its colour in all figures of a run.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Metrics = Mapping[str, np.ndarray]

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
INK, GRID = "#34383e", "#d6d9dd"
ITERATION = "PPO iteration"
SYSTEM_COLOURS = {"supervised": "#56B4E9", "scaffold": "#E69F00", "ppo": "#0072B2"}
SYSTEM_LABELS = {"supervised": "supervised", "scaffold": "scaffold (reasons first)", "ppo": "after PPO"}

_MAX_POINTS = 500
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "path",
}


# -- what a run has logged ---------------------------------------------------------------------------------------------


def series(metrics: Metrics, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one metric; both empty when it was never logged."""
    if key not in metrics:
        return np.empty(0), np.empty(0)
    finite = np.isfinite(metrics[key])
    return metrics["step"][finite], metrics[key][finite]


def names_of(metrics: Metrics, pattern: str) -> list[str]:
    """Names in keys such as ``weight/<name>``, in logged order; ``pattern`` has one ``*`` in the name's place."""
    regex = re.compile("([^/]+)".join(re.escape(part) for part in pattern.split("*")))
    found = (match[1] for key in metrics if (match := regex.fullmatch(key)) and len(series(metrics, key)[0]))
    return list(dict.fromkeys(found))


def constraints_of(metrics: Metrics) -> list[str]:
    """Names of the constraints."""
    return names_of(metrics, "constraint/*/threshold")


def objectives_of(metrics: Metrics) -> list[str]:
    """Names of the objectives: the weighted streams, else every stream with a J that is no constraint."""
    return names_of(metrics, "weight/*") or [name for name in names_of(metrics, "J/*") if name not in constraints_of(metrics)]


def stream_colours(metrics: Metrics) -> dict[str, str]:
    """Stream -> colour, constraints first."""
    streams = dict.fromkeys(constraints_of(metrics) + objectives_of(metrics) + names_of(metrics, "grad_norm/*"))
    return {name: OKABE_ITO[index % len(OKABE_ITO)] for index, name in enumerate(streams)}


def smooth(values: np.ndarray, span: float | None = None) -> np.ndarray:
    """Bias-corrected exponential moving average, y_t = sum_i a^(t-i) x_i / sum_i a^(t-i).

    Args:
        values: f[n].
        span: number of steps that the average looks back over; default a fifteenth of the series, at least 3.

    Returns:
        f[n].
    """
    keep = 1 - 1 / max(span or len(values) / 15, 3.0)
    total, mass, result = 0.0, 0.0, np.empty(len(values))
    for index, value in enumerate(values):
        total, mass = keep * total + value, keep * mass + 1.0
        result[index] = total / mass
    return result


# -- figures -------------------------------------------------------------------------------------------------------------


def constraints_figure(metrics: Metrics) -> Figure | None:
    """Every constraint's J (pale: each iteration, bold: its moving average) against its threshold."""
    names = constraints_of(metrics)
    if not names:
        return None
    figure, axes = _panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        _draw_constraint(axis, metrics, name, stream_colours(metrics)[name])
        axis.set(title=_words(name), xlabel=ITERATION, ylabel="J")
    return figure


def multipliers_figure(metrics: Metrics) -> Figure | None:
    """Lagrange multiplier of every constraint."""
    names = names_of(metrics, "multiplier/*")
    if not names:
        return None
    figure, (axis,) = _panels(1)
    _draw_lines(axis, metrics, {name: f"multiplier/{name}" for name in names}, raw=False)
    axis.set(title="Multipliers", xlabel=ITERATION, ylabel="λ")
    axis.set_ylim(bottom=0)
    return figure


def weights_figure(metrics: Metrics) -> Figure | None:
    """Objective weights, and each stream's share of the gradient."""
    weights, shares = names_of(metrics, "weight/*"), names_of(metrics, "share/*")
    if not weights and not shares:
        return None
    figure, axes = _panels(bool(weights) + bool(shares), columns=2)
    panels = iter(axes)
    if weights:
        axis = next(panels)
        _draw_lines(axis, metrics, {name: f"weight/{name}" for name in weights}, raw=False)
        axis.set(title="Objective weights", xlabel=ITERATION, ylabel="w (sum 1)")
        axis.set_ylim(bottom=0)
    if shares:
        axis = next(panels)
        _draw_lines(axis, metrics, {name: f"share/{name}" for name in shares})
        axis.set(title="Share of the gradient", xlabel=ITERATION, ylabel="share")
    return figure


def objectives_figure(metrics: Metrics) -> Figure | None:
    """Every objective's J, one panel each."""
    names = [name for name in objectives_of(metrics) if f"J/{name}" in metrics]
    if not names:
        return None
    figure, axes = _panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        _draw_lines(axis, metrics, {name: f"J/{name}"}, label=False)
        _mark_last(axis, *_smoothed(metrics, f"J/{name}"), stream_colours(metrics)[name])
        axis.set(title=_words(name), xlabel=ITERATION, ylabel="J")
    return figure


def norms_figure(metrics: Metrics) -> Figure | None:
    """Gradient norm of every stream, and the cosines between the streams' gradients at the last iteration."""
    norms, (streams, cosines) = names_of(metrics, "grad_norm/*"), last_cosines(metrics)
    if not norms and not streams:
        return None
    figure, axes = _panels(bool(norms) + bool(streams), columns=2, height=3.3)
    panels = iter(axes)
    if norms:
        axis = next(panels)
        axis.set_yscale("log")
        _draw_lines(axis, metrics, {name: f"grad_norm/{name}" for name in norms})
        axis.set(title="Gradient norms", xlabel=ITERATION, ylabel="norm (log scale)")
    if streams:
        _draw_matrix(next(panels), streams, cosines)
    return figure


def kl_entropy_figure(metrics: Metrics) -> Figure | None:
    """KL to the reference, its coefficient, entropy, clip fraction, explained variance and losses, where logged."""
    clips = {name: f"clip_fraction/{name}" for name in names_of(metrics, "clip_fraction/*")}
    values = {name: f"explained_variance/{name}" for name in names_of(metrics, "explained_variance/*")}
    panels: list[tuple[str, str, dict[str, str]]] = [
        ("KL to the reference", "nats per token", {"kl": "kl"}),
        ("KL coefficient", "coefficient", {"kl_coef": "kl_coef"}),
        ("Entropy of the policy", "nats per token", {"entropy": "entropy"}),
        ("Clipped ratios", "share of tokens", clips or {"clip_fraction": "clip_fraction"}),
        ("Explained variance of the values", "1 − Var(error)/Var(target)", values),
        ("Value loss", "loss", {"value_loss": "value_loss"}),
    ]
    panels = [panel for panel in panels if any(len(series(metrics, key)[0]) for key in panel[2].values())]
    if not panels:
        return None
    figure, axes = _panels(len(panels))
    for axis, (title, unit, keys) in zip(axes, panels, strict=True):
        _draw_lines(axis, metrics, keys, label=len(keys) > 1)
        if keys is values:
            axis.set_ylim(bottom=max(axis.get_ylim()[0], -1.0), top=1.0)
        axis.set(title=title, xlabel=ITERATION, ylabel=unit)
    return figure


def supervised_figure(stages: Mapping[str, Metrics]) -> Figure | None:
    """Loss on training batches and on held-out dialogues, a panel for each learnt stage.

    Args:
        stages: stage -> its columns, as :func:`morejax.training.writers.read_stages` gives them; stages without a
            ``loss`` or ``dev_loss`` are left out.
    """
    learnt = {name: metrics for name, metrics in stages.items() if {"loss", "dev_loss"} & metrics.keys()}
    if not learnt:
        return None
    figure, axes = _panels(len(learnt))
    for axis, (name, metrics) in zip(axes, learnt.items(), strict=True):
        lines = {"loss": ("training", OKABE_ITO[0]), "dev_loss": ("held out", OKABE_ITO[1])}
        ends = [_draw_loss(axis, metrics, key, label, colour) for key, (label, colour) in lines.items()]
        _zoom_past_start(axis, metrics)
        _label_ends(axis, [end for end in ends if end])
        axis.set(title=_words(name), xlabel="update", ylabel="loss (nats per token)")
    return figure


def overview_figure(metrics: Metrics) -> Figure | None:
    """The run at a glance: constraints against thresholds, multipliers, weights, and what the objectives gained."""
    constraints, objectives = constraints_of(metrics), objectives_of(metrics)
    if not constraints and not objectives:
        return None
    figure, (first, second, third, fourth) = _panels(4, columns=2)
    _draw_constraints_together(first, metrics, constraints)
    first.set(title="Constraints and their thresholds (dashed)", ylabel="J")
    _draw_lines(second, metrics, {name: f"multiplier/{name}" for name in constraints}, raw=False)
    second.set(title="Multipliers", ylabel="λ")
    _draw_lines(third, metrics, {name: f"weight/{name}" for name in objectives}, raw=False)
    third.set(title="Objective weights", ylabel="w (sum 1)")
    _draw_lines(fourth, metrics, {name: f"J/{name}" for name in objectives}, relative=True)
    fourth.axhline(0, color=INK, linewidth=0.8)
    fourth.set(title="Objectives, change since the start", ylabel="J − J at the start")
    for axis in (second, third):
        axis.set_ylim(bottom=0)
    for axis in (first, second, third, fourth):
        axis.set_xlabel(ITERATION)
        if not axis.lines:
            _say_empty(axis)
    return figure


def score_figure(scores: Sequence[Mapping[str, Any]], split: str | None = None) -> Figure | None:
    """Bars of Inform, Success and BLEU for each system of a run.

    Args:
        scores: rows with ``system``, ``split``, ``inform``, ``success`` (percent) and ``bleu``.
        split: show the rows of this split only.
    """
    rows = [row for row in scores if split is None or row.get("split") == split]
    if not rows:
        return None
    figure, (axis,) = _panels(1, height=2.9)
    metrics, width = ("inform", "success", "bleu"), 0.8 / len(rows)
    for index, row in enumerate(rows):
        offsets = np.arange(len(metrics)) + (index - (len(rows) - 1) / 2) * width
        label = SYSTEM_LABELS.get(row["system"], row["system"])
        colour = SYSTEM_COLOURS.get(row["system"], OKABE_ITO[-1 - index % len(OKABE_ITO)])
        bars = axis.bar(offsets, [row[name] for name in metrics], 0.92 * width, label=label, color=colour)
        axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=8, color=INK)
    axis.set_xticks(range(len(metrics)), ["Inform (%)", "Success (%)", "BLEU"])
    axis.set(ylim=(0, 109), title=f"Standard scores on {split}" if split else "Standard scores")
    axis.grid(axis="x", visible=False)
    axis.tick_params(axis="x", length=0)
    axis.legend(loc="upper right", ncols=len(rows), fontsize=8.5)
    return figure


def reliability_figure(heads: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure | None:
    """Calibration of the reward heads: how often a reply scored p was really a person's.

    Args:
        heads: head -> bins with ``confidence`` (mean p), ``accuracy`` (share of positives) and ``count``.
    """
    heads = {name: [row for row in bins if row["count"]] for name, bins in heads.items()}
    heads = {name: bins for name, bins in heads.items() if bins}
    if not heads:
        return None
    figure, axes = _panels(len(heads), height=3.1)
    for axis, (name, bins) in zip(axes, heads.items(), strict=True):
        counts = np.array([row["count"] for row in bins], dtype=float)
        x, y = [row["confidence"] for row in bins], [row["accuracy"] for row in bins]
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axis.plot(x, y, color=OKABE_ITO[0], linewidth=1.2)
        axis.scatter(x, y, s=12 + 120 * counts / counts.max(), color=OKABE_ITO[0], alpha=0.8, linewidths=0)
        axis.set(title=_words(name), xlabel="predicted probability", ylabel="share of positives")
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", anchor="W")
    return figure


def last_cosines(metrics: Metrics) -> tuple[list[str], np.ndarray]:
    """Streams and the symmetric matrix of their gradients' cosines at the last iteration that logged them.

    Returns:
        Names [n] and f[n, n] with ones on the diagonal and NaN for pairs never logged.
    """
    pairs = [tuple(key.split("/")[1:]) for key in metrics if key.startswith("cosine/") and key.count("/") == 2]
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    matrix = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(matrix, 1.0)
    for a, b in pairs:
        _, values = series(metrics, f"cosine/{a}/{b}")
        if a != b and len(values):
            row, column = names.index(a), names.index(b)
            matrix[row, column] = matrix[column, row] = values[-1]
    return names, matrix


# -- out of memory into files and pages ----------------------------------------------------------------------------------


def save_figure(figure: Figure, path: Path | str, *, dpi: int = 150) -> Path:
    """Write a figure as PNG, SVG or PDF, by the name's ending, on a white ground."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        figure.savefig(path, dpi=dpi, facecolor="white", metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Draw a figure as an SVG element for a page that may be light or dark.

    Args:
        figure: what to draw.
        name: unique in the page; prefixes all ids, so that several figures can be inlined.
        description: what a screen reader says.

    Returns:
        One ``<svg>`` element without prolog or metadata; ink and grid take the page's ``currentColor`` and ``--grid``.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]+")[^>]*>', rf'<svg \1 role="img" aria-label="{_attribute(description)}">', text, count=1)
    return text.replace(INK, "currentColor").replace(GRID, "var(--grid)").strip()


# -- drawing -------------------------------------------------------------------------------------------------------------


def _panels(count: int, *, columns: int | None = None, height: float = 2.55) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels in a grid, as wide as a README."""
    columns = columns or (2 if count == 4 else min(3, count))
    rows = math.ceil(count / columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.0, height * rows + 0.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # inches
    return figure, axes


def _smoothed(metrics: Metrics, key: str) -> tuple[np.ndarray, np.ndarray]:
    steps, values = series(metrics, key)
    return steps, smooth(values)


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most 500 points, always with the last: a long run must not make a heavy page."""
    if len(steps) <= _MAX_POINTS:
        return steps, values
    chosen = np.unique(np.linspace(0, len(steps) - 1, _MAX_POINTS).round().astype(int))
    return steps[chosen], values[chosen]


def _plot(axis: Axes, steps: np.ndarray, values: np.ndarray, colour: str, **style: Any) -> None:
    lonely = {"marker": "o", "markersize": 4} if len(steps) == 1 else {}
    axis.plot(*_thin(steps, values), color=colour, **{**lonely, **style})


def _draw_lines(
    axis: Axes, metrics: Metrics, keys: Mapping[str, str], *, raw: bool = True, label: bool = True, relative: bool = False
) -> None:
    """A smoothed line a stream (over the raw one, pale), named at its right end."""
    colours, ends = stream_colours(metrics), []
    for name, key in keys.items():
        steps, values = series(metrics, key)
        if not len(steps):
            continue
        colour = colours.get(name, OKABE_ITO[0])
        level = smooth(values)[min(2, len(values) - 1)] if relative else 0.0
        shown = smooth(values) - level if raw else values
        if raw:
            _plot(axis, steps, values - level, colour, linewidth=0.7, alpha=0.3)
        _plot(axis, steps, shown, colour, linewidth=1.8)
        ends.append((float(shown[-1]), _words(name), colour))
    axis.margins(x=0.02)
    if label:
        _label_ends(axis, ends)


def _draw_constraint(axis: Axes, metrics: Metrics, name: str, colour: str) -> None:
    steps, threshold = series(metrics, f"constraint/{name}/threshold")
    _plot(axis, *series(metrics, f"J/{name}"), colour, linewidth=0.7, alpha=0.35)
    ema_steps, ema = _ema_of(metrics, name)
    _plot(axis, ema_steps, ema, colour, linewidth=1.9)
    _plot(axis, steps, threshold, INK, linewidth=1.1, linestyle=(0, (4, 3)))
    if len(ema) > 1 and len(threshold):
        level = np.interp(ema_steps, steps, threshold)
        axis.fill_between(ema_steps, ema, level, where=ema < level, color=colour, alpha=0.12, linewidth=0, interpolate=True)
    _mark_last(axis, ema_steps, ema, colour)
    axis.margins(x=0.02, y=0.12)
    text = {"fontsize": 8, "va": "bottom", "textcoords": "offset points", "xytext": (0, 2)}
    axis.annotate(f"threshold {threshold[0]:.3g}", (steps[0], threshold[0]), **text)


def _draw_constraints_together(axis: Axes, metrics: Metrics, names: Iterable[str]) -> None:
    ends = []
    for name in names:
        colour = stream_colours(metrics)[name]
        steps, ema = _ema_of(metrics, name)
        _plot(axis, *series(metrics, f"J/{name}"), colour, linewidth=0.7, alpha=0.3)
        _plot(axis, steps, ema, colour, linewidth=1.8)
        _plot(axis, *series(metrics, f"constraint/{name}/threshold"), colour, linewidth=1.1, linestyle=(0, (4, 3)))
        if len(ema):
            ends.append((float(ema[-1]), _words(name), colour))
    axis.margins(x=0.02)
    _label_ends(axis, ends)


def _ema_of(metrics: Metrics, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The moving average that drives the multiplier; runs without one get a smoothed J."""
    steps, ema = series(metrics, f"constraint/{name}/score_ema")
    return (steps, ema) if len(steps) else _smoothed(metrics, f"J/{name}")


def _mark_last(axis: Axes, steps: np.ndarray, values: np.ndarray, colour: str) -> None:
    if not len(steps):
        return
    axis.plot(steps[-1], values[-1], "o", color=colour, markersize=4)
    place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
    axis.annotate(f"{values[-1]:.3g}", (steps[-1], values[-1]), color=colour, fontsize=8.5, weight="bold", **place)


def _label_ends(axis: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name each line at the right of the panel, at the height where it ends, moved apart where they would overlap."""
    if not ends:
        return
    to_axes = axis.transData + axis.transAxes.inverted()
    heights = [float(to_axes.transform((0.5 if axis.get_xscale() == "linear" else 1.0, y))[1]) for y, _, _ in ends]
    gap = 0.085 if axis.get_subplotspec().get_gridspec().nrows == 1 else 0.095
    for (_, label, colour), height in zip(ends, spread(heights, gap), strict=True):
        axis.annotate(
            label, (1.015, height), xycoords="axes fraction", color=colour, fontsize=8.5, va="center", annotation_clip=False
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights apart until neighbours are at least ``gap`` apart, as little as possible, keeping their order.

    Args:
        heights: wanted heights, in any order.
        gap: smallest distance between two.

    Returns:
        New heights, in the given order.
    """
    order = np.argsort(heights, kind="stable")
    groups: list[list[float]] = []  # [sum of wanted heights minus ranks * gap, members]
    for rank, index in enumerate(order):
        groups.append([heights[index] - rank * gap, 1.0])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, members = groups.pop()
            groups[-1] = [groups[-1][0] + total, groups[-1][1] + members]
    levels = [total / members for total, members in groups for _ in range(int(members))]
    result = [0.0] * len(heights)
    for rank, index in enumerate(order):
        result[index] = levels[rank] + rank * gap
    return result


def _draw_matrix(axis: Axes, names: Sequence[str], matrix: np.ndarray) -> None:
    """Cosines as a table of coloured cells with their numbers: orange against, blue along."""
    cmap = matplotlib.colors.LinearSegmentedColormap.from_list("cosine", [OKABE_ITO[1], "#f4f4f2", OKABE_ITO[0]])
    cmap.set_bad("#00000000")
    axis.imshow(matrix, cmap=cmap, vmin=-1, vmax=1)
    for (row, column), value in np.ndenumerate(matrix):
        if math.isfinite(value):
            colour = "white" if abs(value) > 0.6 else "#222222"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=colour)
    axis.set_xticks(range(len(names)), [_words(name) for name in names], rotation=35, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), [_words(name) for name in names])
    axis.set_title("Cosines of the gradients, last iteration")
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _draw_loss(axis: Axes, metrics: Metrics, key: str, label: str, colour: str) -> tuple[float, str, str] | None:
    steps, values = series(metrics, key)
    if not len(steps):
        return None
    held_out = key == "dev_loss"
    if not held_out:
        _plot(axis, steps, values, colour, linewidth=0.7, alpha=0.3)
    shown = values if held_out else smooth(values)
    _plot(axis, steps, shown, colour, linewidth=1.8, **({"marker": "o", "markersize": 3} if held_out else {}))
    axis.margins(x=0.02)
    return float(shown[-1]), f"{label} {shown[-1]:.3f}", colour


def _zoom_past_start(axis: Axes, metrics: Metrics) -> None:
    """Let the first few updates, which fall from log V, run out of the panel instead of flattening the rest."""
    values = np.concatenate([series(metrics, "loss")[1], series(metrics, "dev_loss")[1]])
    if len(values) >= 20:
        low, high = values.min(), np.quantile(values, 0.9)
        axis.set_ylim(low - 0.08 * (high - low), high + 0.35 * (high - low) if high > low else None)


def _say_empty(axis: Axes) -> None:
    axis.text(0.5, 0.5, "not part of this run", ha="center", va="center", transform=axis.transAxes, alpha=0.6)
    axis.set(xticks=[], yticks=[])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;").replace("\\", "/")
