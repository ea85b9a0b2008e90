"""`python -m morejax.experiments.multiwoz.keep RUN DIR`: the parts of a run that may be published.

Copies configuration, results, metrics and the figures, without checkpoints and without any text of the corpus (the
report and the sample dialogues hold some).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from morejax.training import figures
from morejax.training.writers import METRICS_FILE, read_metrics, read_stages

_FILES = ("config.json", "results.json", "stages.json", "reference_scores.json", "reward_heads.json", METRICS_FILE)


def keep(run: Path, target: Path) -> list[Path]:
    """Copy what may be kept of `run` into `target`, figures as PNG.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: the run has no results yet.
    """
    if not (run / "results.json").is_file():
        raise FileNotFoundError(f"{run / 'results.json'}: not there; finish the run (stage evaluate) first")
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name in _FILES:
        if (run / name).is_file():
            written.append(Path(shutil.copyfile(run / name, target / name)))
    stages = read_stages(run)
    drawn = {"supervised": figures.supervised_figure(stages)}
    if "ppo" in stages:
        ppo = read_metrics(run, "ppo")
        drawn |= {
            "overview": figures.overview_figure(ppo),
            "constraints": figures.constraints_figure(ppo),
            "norms": figures.norms_figure(ppo),
            "kl": figures.kl_entropy_figure(ppo),
            "evaluation": figures.evaluation_figure(ppo),
        }
    for name, figure in drawn.items():
        if figure is not None:
            figures.save_figure(figure, target / f"{name}.png")
            written.append(target / f"{name}.png")
    return written


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m morejax.experiments.multiwoz.keep",
        description="Copy configuration, results, metrics and figures of a run: the parts that may be published, "
        "without checkpoints and without any text of the corpus.",
        epilog="example: python -m morejax.experiments.multiwoz.keep runs/mwz experiments/multiwoz/cpu",
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("dir", type=Path, help="where to put what is kept, e.g. experiments/multiwoz/cpu")
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
