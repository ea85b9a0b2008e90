"""Do rewards that are mixed oscillate more than constrained ones? Reward curves of finished runs, from metrics.jsonl.

    python experiments/shop/oscillation.py runs/mixed-0 runs/mixed-1 runs/more-0 runs/more-1 --out OUT

Runs are grouped by method (and weight, for mixed); the comparison is paired by seed where both have it. Measures:

    roughness      variance of J around its moving average over 9 iterations, times 1000
    turns          sign changes of the slope of J's moving average over 5 iterations, per 10 iterations
    cosine         mean cosine between the gradients of an objective and of a constraint; and how often it is negative

J is a mean over sampled replies, so a part of the roughness is noise of sampling. For a constraint that is met with
probability J it is J (1 - J) / n, largest at J = 1/2: compare methods at like J, which stands at the end of the table.
Warm-up iterations, which train the critic only, are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from scipy import stats

from morejax.training.writers import read_metrics

TREND, SMOOTH = 9, 5
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean f[n] over at most `window` values, fewer at the ends but as many on either side."""
    half, n = window // 2, len(values)
    reach = np.minimum(half, np.minimum(np.arange(n), np.arange(n)[::-1]))
    total = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(n)
    return (total[places + reach + 1] - total[places - reach]) / (2 * reach + 1)


def roughness(values: np.ndarray) -> float:
    """Variance around the moving average; the ends, where that is the value itself or nearly so, are left out."""
    half = TREND // 2
    return float(np.var((values - moving_average(values, TREND))[half:-half]))


def turns(values: np.ndarray) -> float:
    """Sign changes of the slope of the smoothed curve, per 10 steps; steps without a slope keep the sign before."""
    sign = np.sign(np.diff(moving_average(values, SMOOTH)))
    sign = sign[sign != 0]
    return 10.0 * float((sign[1:] != sign[:-1]).sum()) / max(len(values) - 2, 1)


def read_run(run: Path) -> dict[str, Any]:
    """Method, seed and measures of a run.

    Raises:
        FileNotFoundError: it has no metrics or no configuration.
        ValueError: too few iterations to speak of oscillation.
    """
    document = json.loads((run / "config.json").read_text())
    config = document["config"]
    method = config["method"] + (f" {config['mixed_weight']:g}" if config["method"] == "mixed" else "")
    metrics = read_metrics(run, "ppo")
    step = config["step"]
    warm = config["numbers"]["warmup_steps"]
    curves = {name: _curve(metrics, f"J/{name}")[warm:] for name in (*step["objectives"], *step["constraints"])}
    short = min(map(len, curves.values()))
    if short < 2 * TREND:
        raise ValueError(f"{run}: {short} iterations after warm-up, expected at least {2 * TREND}")
    cosines = [
        _curve(metrics, f"cosine/{objective}/{constraint}")[warm:]
        for objective in step["objectives"]
        for constraint in step["constraints"]
        if f"cosine/{objective}/{constraint}" in metrics
    ]
    return {
        "run": run.name,
        "method": method,
        "seed": config["seed"],
        "iterations": short,
        "constraints": step["constraints"],
        "curves": curves,
        "roughness": {name: 1000 * roughness(curve) for name, curve in curves.items()},
        "turns": {name: turns(curve) for name, curve in curves.items()},
        "last": {name: float(curve[-TREND:].mean()) for name, curve in curves.items()},
        "cosine": float(np.mean(cosines)) if cosines else float("nan"),
        "cosine_negative": float(np.mean(np.array(cosines) < 0)) if cosines else float("nan"),
    }


def _curve(metrics: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    values = metrics[name]
    return values[~np.isnan(values)]


def averaged(row: Mapping[str, Any], measure: str, names: Sequence[str]) -> float:
    """Mean of a measure over streams."""
    return float(np.mean([row[measure][name] for name in names]))


def table(rows: Sequence[Mapping[str, Any]], base: str) -> str:
    """Markdown: a line a method, mean and standard deviation over seeds, and the paired difference to `base`."""
    constraints = rows[0]["constraints"]
    objectives = [name for name in rows[0]["curves"] if name not in constraints]
    columns = {
        "roughness, constraints": lambda row: averaged(row, "roughness", constraints),
        "roughness, objectives": lambda row: averaged(row, "roughness", objectives),
        "turns, constraints": lambda row: averaged(row, "turns", constraints),
        "turns, objectives": lambda row: averaged(row, "turns", objectives),
        "cosine": lambda row: row["cosine"],
        "share of negative cosines": lambda row: row["cosine_negative"],
        "J of constraints at the end": lambda row: averaged(row, "last", constraints),
        "J of objectives at the end": lambda row: averaged(row, "last", objectives),
    }
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| measure | {' | '.join(methods)} |", f"|---|{'---:|' * len(methods)}"]
    for name, measure in columns.items():
        cells = []
        reference = {row["seed"]: measure(row) for row in rows if row["method"] == base}
        for method in methods:
            mine = {row["seed"]: measure(row) for row in rows if row["method"] == method}
            cell = _spread(list(mine.values()))
            if method != base:
                cell += _difference([value - reference[seed] for seed, value in mine.items() if seed in reference])
            cells.append(cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{values[0]:.3f}" if len(values) == 1 else f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def _difference(paired: Sequence[float]) -> str:
    """Mean of the paired differences with its 95 % interval by Student's t; fewer than two seeds have none."""
    if not paired:
        return ""
    if len(paired) == 1:
        return f" ({paired[0]:+.3f})"
    half = stats.t.ppf(0.975, len(paired) - 1) * np.std(paired, ddof=1) / np.sqrt(len(paired))
    return f" ({np.mean(paired):+.3f} ± {half:.3f})"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Every stream's J, a panel each and a colour a method: seeds pale, their mean bold."""
    names, methods = list(rows[0]["curves"]), list(dict.fromkeys(row["method"] for row in rows))
    columns = 4
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.2 * columns, 2.3 * lines), constrained_layout=True)
    flat = list(np.atleast_1d(axes).ravel())
    for axis, name in zip(flat, names, strict=False):
        for method, colour in zip(methods, COLOURS, strict=False):
            curves = [row["curves"][name] for row in rows if row["method"] == method]
            shortest = min(map(len, curves))
            for curve in curves:
                axis.plot(curve, color=colour, alpha=0.25, linewidth=0.7)
            axis.plot(np.mean([curve[:shortest] for curve in curves], 0), color=colour, linewidth=1.6, label=method)
        axis.set_title(name.replace("_", " ") + (" (constraint)" if name in rows[0]["constraints"] else ""), fontsize=9)
        axis.grid(alpha=0.3)
    for axis in flat[len(names) :]:
        axis.set_axis_off()
    flat[0].legend(fontsize=8)
    figure.supxlabel("PPO iteration after warm-up")
    figure.supylabel("J")
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--base", default="more", help="method that the others are compared with (more)")
    parser.add_argument("--out", type=Path, help="writes OUT.json, OUT.md and OUT.png; default: prints the table only")
    options = parser.parse_args(arguments)
    try:
        rows = [read_run(run) for run in options.runs]
    except (FileNotFoundError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.base not in {row["method"] for row in rows}:
        print(
            f"error: --base {options.base}: no such run among {', '.join({row['method'] for row in rows})}",
            file=sys.stderr,
        )
        return 2
    if len({tuple(row["curves"]) for row in rows}) > 1:
        print("error: the runs have different streams, which cannot be compared", file=sys.stderr)
        return 2
    text = table(rows, options.base)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        kept = [{key: value for key, value in row.items() if key != "curves"} for row in rows]
        options.out.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(text)
        print(draw(rows, options.out.with_suffix(".png")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
