"""The figure of a front Success -> BLEU beside the published systems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from morejax.tasks.multiwoz.board import POLICY_ROWS


def draw_front(points: Sequence[tuple[str, float, float]], split: str, path: Path, label: str) -> Path:
    """A line through points (name, Success, BLEU); published systems, which are of the test split, in grey.

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
    axis.plot(success, bleu, marker="o", color="C0", label=f"morejax, {label} ({split})")
    for name, point in zip(names, zip(success, bleu, strict=True), strict=True):
        axis.annotate(name, point, fontsize=7, color="C0", xytext=(3, -9), textcoords="offset points")
    axis.set(xlabel="Success", ylabel="BLEU")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path
