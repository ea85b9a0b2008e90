"""Drawing tools of the figures: house style, panels, named lines, and the way into files and pages.

Colours are those of Okabe and Ito, told apart by colour-blind readers too.
"""

from __future__ import annotations

import functools
import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation

Metrics = Mapping[str, np.ndarray]
P = ParamSpec("P")

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
INK, GRID = "#34383e", "#d6d9dd"

_MAX_POINTS = 500
_MAX_RAW = 4  # with more streams in a panel, raw lines would hide the smoothed ones
_LINE_END, _LINE_END_DOT = "line-end", "line-end-dot"
_LABEL_SIZE = 8.5
_LABEL_GAP = 1.25 * _LABEL_SIZE / 72  # inches from one name to the next
_MAX_NAME = 24  # a longer name at a line's end would leave no room for the line
_AROUND_AXES = 0.9  # inches of a panel's height that title, ticks and label take
_STYLE: dict[Any, Any] = {
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


def series(metrics: Metrics, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one metric; both empty when it was never logged."""
    if key not in metrics:
        return np.empty(0), np.empty(0)
    finite = np.isfinite(metrics[key])
    return metrics["step"][finite], metrics[key][finite]


def names_of(metrics: Metrics, pattern: str) -> list[str]:
    """Names in keys such as ``weight/<name>``, in logged order; ``*`` in the pattern is the name."""
    regex = re.compile("([^/]+)".join(re.escape(part) for part in pattern.split("*")))
    found = (match[1] for key in metrics if (match := regex.fullmatch(key)) and len(series(metrics, key)[0]))
    return list(dict.fromkeys(found))


def constraints_of(metrics: Metrics) -> list[str]:
    """Names of the constraints."""
    return names_of(metrics, "constraint/*/threshold")


def objectives_of(metrics: Metrics) -> list[str]:
    """Names of the objectives: the weighted streams, else every stream with a J that is no constraint."""
    return names_of(metrics, "weight/*") or [
        name for name in names_of(metrics, "J/*") if name not in constraints_of(metrics)
    ]


def stream_colours(metrics: Metrics) -> dict[str, str]:
    """Stream -> colour, constraints first."""
    streams = dict.fromkeys(constraints_of(metrics) + objectives_of(metrics) + names_of(metrics, "grad_norm/*"))
    return {name: OKABE_ITO[index % len(OKABE_ITO)] for index, name in enumerate(streams)}


def smooth(values: np.ndarray, sigma: float | None = None) -> np.ndarray:
    """Centred Gaussian average without lag, y_t = sum_i g(t-i) x_i / sum_i g(t-i) over the points there are.

    Args:
        values: f[n].
        sigma: standard deviation of g in points; default a thirtieth of the series, at least 1.

    Returns:
        f[n].
    """
    sigma = sigma or max(len(values) / 30, 1.0)
    reach = min(math.ceil(3 * sigma), max(len(values) - 1, 0))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    inside = slice(reach, reach + len(values))
    if not len(values):
        return values
    return np.convolve(values, kernel)[inside] / np.convolve(np.ones(len(values)), kernel)[inside]


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


def styled(draw: Callable[P, Figure | None]) -> Callable[P, Figure | None]:
    """Draw under the house style, then put the lines' names where the finished lines end."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure | None:
        with matplotlib.rc_context(_STYLE):
            figure = draw(*args, **kwargs)
            if figure is not None:
                _place_line_ends(figure)
        return figure

    return styled


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
        One ``<svg>`` element without prolog or metadata; ink and grid take the page's ``currentColor`` and
        ``--grid``.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):  # the same run gives the same page, byte for byte
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bd="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), text)  # hundredths do
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', text)
    width = round(106 * figure.get_figwidth())
    opening = f'role="img" aria-label="{html.escape(description)}" style="max-width:{width}px"'
    text = re.sub(r"<svg [^>]*?(viewBox=\S[^\"]+\")[^>]*>", lambda match: f"<svg {match[1]} {opening}>", text, count=1)
    return (
        text.replace(INK, "currentColor")
        .replace(GRID, "var(--grid)")
        .replace(OKABE_ITO[0].lower(), "var(--blue)")
        .strip()
    )


def panels(
    count: int, *, columns: int | None = None, height: float = 2.55, width: float = 9.0
) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels in a grid; sizes in inches, 9 is as wide as a README."""
    columns = columns or (2 if count == 4 else min(3, count))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width, height * rows + 0.2), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    return figure, axes


def smoothed(metrics: Metrics, key: str) -> tuple[np.ndarray, np.ndarray]:
    steps, values = series(metrics, key)
    return steps, smooth(values)


def varies(metrics: Metrics, key: str) -> bool:
    return len(np.unique(series(metrics, key)[1])) > 1


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most 500 points, always with the last: a long run must not make a heavy page."""
    if len(steps) <= _MAX_POINTS:
        return steps, values
    chosen = np.unique(np.linspace(0, len(steps) - 1, _MAX_POINTS).round().astype(int))
    return steps[chosen], values[chosen]


def plot_line(axis: Axes, steps: np.ndarray, values: np.ndarray, colour: str, **style: Any) -> None:
    lonely = {"marker": "o", "markersize": 4} if len(steps) == 1 else {}
    axis.plot(*_thin(steps, values), color=colour, **{**lonely, **style})


def draw_lines(
    axis: Axes,
    metrics: Metrics,
    keys: Mapping[str, str],
    *,
    raw: bool = True,
    label: bool = True,
    relative: bool = False,
) -> None:
    """A smoothed line a stream (over the raw one, pale), named at its right end."""
    colours, ends = stream_colours(metrics), []
    for name, key in keys.items():
        steps, values = series(metrics, key)
        if not len(steps):
            continue
        colour = colours.get(name, OKABE_ITO[0])
        level = smooth(values)[0] if relative else 0.0
        shown = smooth(values) - level if raw else values
        if raw and len(keys) <= _MAX_RAW:
            plot_line(axis, steps, values - level, colour, linewidth=0.7, alpha=0.3)
        plot_line(axis, steps, shown, colour, linewidth=1.8)
        ends.append((float(shown[-1]), words(name), colour))
    axis.margins(x=0.02)
    if label:
        label_ends(axis, ends)


def mark_last(axis: Axes, steps: np.ndarray, values: np.ndarray, colour: str) -> None:
    if not len(steps):
        return
    axis.plot(steps[-1], values[-1], "o", color=colour, markersize=4)
    place: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
    axis.annotate(f"{values[-1]:.3g}", (steps[-1], values[-1]), fontsize=_LABEL_SIZE, weight="bold", **place)


def label_ends(axis: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name each line at the right of the panel; :func:`_place_line_ends` moves the names apart."""
    for height, label, colour in ends:
        style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": _LABEL_SIZE}
        style |= {"xycoords": ("axes fraction", "data"), "annotation_clip": False}
        axis.annotate("●", (1.0, height), xytext=(4, 0), color=colour, gid=_LINE_END_DOT, **style)
        axis.annotate(shorten(label), (1.0, height), xytext=(13, 0), color=INK, gid=_LINE_END, **style)


def _place_line_ends(figure: Figure) -> None:
    """Once the axes have their final limits and sizes, move names apart where they would overlap."""
    _make_room(figure)
    figure.draw_without_rendering()
    for axis in figure.axes:
        names, dots = _line_ends(axis, _LINE_END), _line_ends(axis, _LINE_END_DOT)
        if not names:
            continue
        to_axes = axis.transData + axis.transAxes.inverted()
        left = axis.get_xlim()[0]
        wanted = [float(to_axes.transform((left, text.xy[1]))[1]) for text in names]
        gap = _LABEL_GAP * figure.dpi / axis.get_window_extent().height
        for name, dot, height in zip(names, dots, keep_within(spread(wanted, gap), gap), strict=True):
            for text in (name, dot):
                text.xy, text.xycoords = (1.0, height), "axes fraction"
                text.set_gid(None)


def _line_ends(axis: Axes, kind: str) -> list[Annotation]:
    return [text for text in axis.texts if isinstance(text, Annotation) and text.get_gid() == kind]


def _make_room(figure: Figure) -> None:
    """Panels as high as their names need, and no name outside: the layout gives up where axes would get no room."""
    for axis in figure.axes:
        low, high = sorted(axis.get_ylim())
        names = _line_ends(axis, _LINE_END)
        for text in (*names, *_line_ends(axis, _LINE_END_DOT)):
            text.xy = (1.0, min(max(text.xy[1], low), high))
        grid = axis.get_gridspec()
        rows = 1 if grid is None else grid.nrows
        needed = rows * (_LABEL_GAP * len(names) + _AROUND_AXES)
        figure.set_figheight(max(figure.get_figheight(), needed))


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights until neighbours are at least ``gap`` apart, as little as possible, in their order.

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


def keep_within(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights into 0 .. 1, as little as possible, if they fit there; distances of ``gap`` and more stay so.

    Args:
        heights: in any order.
        gap: smallest distance between two of them.

    Returns:
        New heights, in the given order.
    """
    count, result = len(heights), list(heights)
    for rank, index in enumerate(np.argsort(heights, kind="stable")):
        result[index] = min(max(heights[index], rank * gap), 1 - (count - 1 - rank) * gap)
    return result


def words(name: str) -> str:
    return name.replace("_", " ")


def shorten(name: str) -> str:
    """A name that fits beside a panel."""
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1].rstrip() + "…"
