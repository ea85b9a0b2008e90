"""The figure of a grid's arms: each run a dot, each mean a bar, beside Combined also what it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

PANELS = (("combined", "Combined"), ("success", "Success"), ("bleu", "BLEU"), ("num_trigrams", "distinct 3-grams"))


def draw_arms(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Arms below one another in the order of the rows; the mean of the first arm is a line through all of them.

    Args:
        rows: one a run, with "arm", "split" and the numbers of `PANELS`.
        path: the figure.

    Returns:
        `path`.
    """
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    size = (12, 1.2 + 0.3 * len(arms))
    figure, axes = plt.subplots(1, len(PANELS), figsize=size, sharey=True, constrained_layout=True)
    for axis, (key, label) in zip(axes, PANELS, strict=True):
        for place, arm in enumerate(arms):
            values = [row[key] for row in rows if row["arm"] == arm]
            axis.plot(values, [place] * len(values), "o", color="C0", alpha=0.5, markersize=4)
            axis.plot(np.mean(values), place, "|", color="C3", markersize=14, markeredgewidth=2)
            if place == 0:
                axis.axvline(np.mean(values), color="0.7", linewidth=1, zorder=0)
        axis.set(xlabel=label, yticks=range(len(arms)), yticklabels=arms)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.suptitle(f"{rows[0]['split']}: runs and their means", fontsize=10)
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path
