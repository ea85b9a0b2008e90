"""Figures of a sweep: time, memory and compile time against batch and depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_PANELS = (
    ("ms", "time of a step, s", 1e-3),
    ("temp_bytes", "temporary memory, MiB", 2**-20),
    ("compile_s", "compile time, s", 1),
)


def plot_sweep(records: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw the records of `step.sweep`.

    Args:
      records: with `axis` batch or depth.
      path: of the PNG file.
    """
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 6.0), constrained_layout=True)
    for row, (axis, key, label) in enumerate((("batch", "sequences", "sequences"), ("depth", "layers", "layers"))):
        for column, (value, title, unit) in enumerate(_PANELS):
            panel = axes[row][column]
            for how, marker in (("unrolled", "o"), ("scan", "s")):
                line = [r for r in records if r["axis"] == axis and r["layers_by"] == how]
                if line:
                    panel.plot([r[key] for r in line], [unit * r[value] for r in line], marker=marker, label=how)
            panel.set(xlabel=label, ylabel=title, ylim=(0, 1.05 * panel.get_ylim()[1]))
            panel.grid(alpha=0.3)
        axes[row][0].legend(title="layers")
    first = records[0]
    figure.suptitle(f"size {first['size']}, critic {first['critic']}, {first['device']}, jax {first['jax']}")
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path
