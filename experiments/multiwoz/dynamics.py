r"""What happens within the step over training, runs side by side in one figure: a column a run, a row a quantity.

    python experiments/multiwoz/dynamics.py --out dynamics.png more=runs/more mixed=runs/mixed

Rows: constraints (moving averages) against their thresholds, multipliers, weights of the objectives, share of each
stream in the gradient, gradient norms, and the cosine of each stream's gradient with that of the first objective. A
row has one scale.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from morejax.training.plotting import (
    INK,
    Metrics,
    constraints_of,
    draw_lines,
    names_of,
    objectives_of,
    panels,
    plot_line,
    save_figure,
    series,
    stream_colours,
    styled,
)
from morejax.training.writers import METRICS_FILE, read_stages


def _constraints(axis: Axes, metrics: Metrics) -> None:
    names, colours = constraints_of(metrics), stream_colours(metrics)
    draw_lines(axis, metrics, {name: f"constraint/{name}/score_ema" for name in names}, raw=False)
    for name in names:
        line = series(metrics, f"constraint/{name}/threshold")
        plot_line(axis, *line, colours[name], linewidth=1.0, linestyle=(0, (4, 3)))


def _lines(pattern: str, *, raw: bool = False) -> Callable[[Axes, Metrics], None]:
    def draw(axis: Axes, metrics: Metrics) -> None:
        draw_lines(axis, metrics, {name: pattern.replace("*", name) for name in names_of(metrics, pattern)}, raw=raw)

    return draw


def _norms(axis: Axes, metrics: Metrics) -> None:
    axis.set_yscale("log")
    _lines("grad_norm/*", raw=True)(axis, metrics)


def _cosines(axis: Axes, metrics: Metrics) -> None:
    """A pair is logged once, in either order."""
    first = objectives_of(metrics)[0]
    others = {name: (f"cosine/{first}/{name}", f"cosine/{name}/{first}") for name in names_of(metrics, "grad_norm/*")}
    keys = {name: next((key for key in pair if key in metrics), "") for name, pair in others.items() if name != first}
    draw_lines(axis, metrics, keys)
    axis.axhline(0, color=INK, linewidth=0.8)


ROWS: Mapping[str, Callable[[Axes, Metrics], None]] = {
    "constraints, thresholds dashed": _constraints,
    "multipliers": _lines("multiplier/*"),
    "objective weights": _lines("weight/*"),
    "share of the gradient": _lines("share/*", raw=True),
    "gradient norms": _norms,
    "cosine with the first objective": _cosines,
}


@styled
def dynamics_figure(runs: Mapping[str, Metrics]) -> Figure:
    """A column for each run's PPO metrics; rows of `ROWS`, each with one scale over all runs."""
    figure, axes = panels(len(ROWS) * len(runs), columns=len(runs), height=2.1, width=4.6 * len(runs))
    for place, (title, draw) in enumerate(ROWS.items()):
        row = axes[place * len(runs) : (place + 1) * len(runs)]
        for axis, (name, metrics) in zip(row, runs.items(), strict=True):
            draw(axis, metrics)
            axis.set_title(f"{name}: {title}")
        shown = [axis for axis in row if axis.lines]
        limits = [axis.get_ylim() for axis in shown]
        for axis in shown:
            axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    for axis in axes[-len(runs) :]:
        axis.set_xlabel("PPO iteration")
    return figure


def read_run(given: str) -> tuple[str, Metrics]:
    """Name and PPO metrics of NAME=RUN.

    Raises:
        ValueError: not NAME=RUN, or the run has no PPO stage.
        FileNotFoundError: there is no such run.
    """
    name, _, folder = given.partition("=")
    if not name or not folder:
        raise ValueError(f"{given!r}: expected NAME=RUN, as in more=runs/more")
    path = Path(folder) / METRICS_FILE
    stages = read_stages(path)
    if "ppo" not in stages:
        raise ValueError(f"{given!r}: {path} has no stage ppo; found {', '.join(stages)}")
    return name, stages["ppo"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="folders of runs with a PPO stage")
    parser.add_argument("--out", type=Path, required=True, help="the figure: PNG, SVG or PDF by its ending")
    options = parser.parse_args(arguments)
    try:
        read = [read_run(given) for given in options.runs]
        runs = dict(read)
        if len(runs) < len(read):
            raise ValueError(f"{' '.join(options.runs)}: two runs have one name")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    figure = dynamics_figure(runs)
    assert figure is not None
    print(save_figure(figure, options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
