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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from morejax.tasks.multiwoz.board import POLICY_ROWS


def draw_front(
    points: Sequence[tuple[str, float, float]], split: str, path: Path, label: str, *, line: bool = True
) -> Path:
    """Points (name, Success, BLEU), joined by a line or not; published systems, which are of the test split, in grey.

    Returns:
      `path`.
    """
    figure, axis = plt.subplots(figsize=(8.4, 5.4), constrained_layout=True)
    published = [row for row in POLICY_ROWS if row.bleu is not None]
    axis.scatter([r.success for r in published], [r.bleu for r in published], color="0.6", label="published (test)")
    names, success, bleu = zip(*points, strict=True)
    axis.plot(success, bleu, marker="o", linestyle="-" if line else "", color="C0", label=f"morejax, {label} ({split})")
    axis.set(xlabel="Success", ylabel="BLEU")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left")
    axis.margins(0.08)
    own = [(name, x, y, "C0") for name, x, y in zip(names, success, bleu, strict=True)]
    _name(figure, axis, [*own, *((row.system, row.success, row.bleu, "0.4") for row in published)])
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path


_PLACES = [(4, 3), (4, -9), (-4, 3), (-4, -9), (4, 11), (-4, 11), (4, -17), (-4, -17), (12, -3), (-12, -3)]
"""Where a name may stand beside its point, in points of the page; the first free place is taken, or the freest."""


def _name(figure: Figure, axis: Axes, points: Sequence[tuple[str, float, float, str]]) -> None:
    """Write (name, x, y, colour) beside the points, names lying on as few names and points as can be."""
    figure.draw_without_rendering()
    dots = axis.transData.transform([(x, y) for _, x, y, _ in points])
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in dots]
    for name, x, y, colour in points:
        text = axis.annotate(name, (x, y), fontsize=7, color=colour, xytext=(0, 0), textcoords="offset points")

        def box_at(place: tuple[int, int], text: Annotation = text) -> Bbox:
            text.set_position(place)
            text.set_horizontalalignment("left" if place[0] > 0 else "right")
            return text.get_window_extent()

        boxes = map(box_at, _PLACES)
        overlaps = [sum(box.overlaps(other) for other in taken) for box in boxes]
        taken.append(box_at(_PLACES[overlaps.index(min(overlaps))]))


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
