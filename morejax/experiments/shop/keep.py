"""`python -m morejax.experiments.shop.keep RUN DIR`: the parts of a run that are worth keeping.

Copies configuration, results, metrics, figures, the A/B test and sample dialogues, without checkpoints. The corpus is
generated, so its texts may be published.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from morejax.experiments.multiwoz.keep import keep as keep_numbers
from morejax.experiments.shop.report import evaluation_figure
from morejax.training.figures import save_figure
from morejax.training.writers import read_metrics

_FILES = ("corpus.json", "samples.json", "ab.json", "ab.md", "ab.png")


def keep(run: Path, target: Path) -> list[Path]:
    """Copy what is worth keeping of `run` into `target`, figures as PNG.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: the run has no results yet.
    """
    written = keep_numbers(run, target)
    written += [Path(shutil.copyfile(run / name, target / name)) for name in _FILES if (run / name).is_file()]
    figure = evaluation_figure(read_metrics(run, "ppo"))
    if figure is not None:
        written.append(save_figure(figure, target / "evaluation.png"))
    return written


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m morejax.experiments.shop.keep",
        description="Copy configuration, results, metrics, figures, A/B test and sample dialogues of a run, without "
        "checkpoints.",
        epilog="example: python -m morejax.experiments.shop.keep runs/shop/more experiments/shop/cpu",
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("dir", type=Path, help="where to put what is kept, e.g. experiments/shop/cpu")
    options = parser.parse_args(arguments)
    try:
        for path in keep(options.run, options.dir):
            print(path)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
