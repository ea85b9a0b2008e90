r"""The figure of a front Success -> BLEU beside the published systems; by itself, of points that are given.

python experiments/multiwoz/front.py --out front.png "more=86.0,18.4" "mixed=83.3,15.6"
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from morejax.tasks.multiwoz.board import POLICY_ROWS


def draw_front(
    points: Sequence[tuple[str, float, float]], split: str, path: Path, label: str, *, line: bool = True
) -> Path:
    """Points (name, Success, BLEU), joined by a line or not; published systems, which are of the test split, in grey.

    Returns:
      `path`.
    """
    figure, axis = plt.subplots(figsize=(6.4, 4.6), constrained_layout=True)
    published = [row for row in POLICY_ROWS if row.bleu is not None]
    axis.scatter([r.success for r in published], [r.bleu for r in published], color="0.6", label="published (test)")
    for row in published:
        axis.annotate(
            row.system, (row.success, row.bleu), fontsize=7, color="0.4", xytext=(3, 3), textcoords="offset points"
        )
    names, success, bleu = zip(*points, strict=True)
    axis.plot(success, bleu, marker="o", linestyle="-" if line else "", color="C0", label=f"morejax, {label} ({split})")
    for name, point in zip(names, zip(success, bleu, strict=True), strict=True):
        axis.annotate(name, point, fontsize=7, color="C0", xytext=(3, -9), textcoords="offset points")
    axis.set(xlabel="Success", ylabel="BLEU")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", nargs="+", metavar="NAME=SUCCESS,BLEU")
    parser.add_argument("--out", type=Path, required=True, help="the figure")
    parser.add_argument("--split", default="select", help="that the points are of")
    parser.add_argument("--label", default="single runs", help="what the points are")
    options = parser.parse_args(arguments)
    points = []
    for given in options.points:
        name, _, numbers = given.rpartition("=")
        try:
            success, bleu = map(float, numbers.split(","))
        except ValueError:
            parser.error(f"{given!r}: expected NAME=SUCCESS,BLEU")
        points.append((name, success, bleu))
    print(draw_front(points, options.split, options.out, options.label, line=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
