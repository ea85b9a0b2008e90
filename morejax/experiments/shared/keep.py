"""The parts of a run that are worth keeping: configuration, results, metrics and figures, without checkpoints."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from morejax.experiments.shared.command import print_made
from morejax.training import figures
from morejax.training.writers import METRICS_FILE, read_metrics, read_stages

_FILES = ("config.json", "results.json", "stages.json", "reference_scores.json", "reward_heads.json", METRICS_FILE)
Evaluation = Callable[..., figures.Figure | None]
"""PPO's metrics to a figure of the evaluations on the way."""


def keep(run: Path, target: Path, evaluation: Evaluation, files: Sequence[str] = ()) -> list[Path]:
    """Copy what may be kept of `run` into `target`, figures as PNG.

    Args:
        run: its folder.
        target: where to.
        evaluation: the experiment's own figure.
        files: the experiment's own files, as far as they are there.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: the run has no results yet.
    """
    if not (run / "results.json").is_file():
        raise FileNotFoundError(f"{run / 'results.json'}: not there; finish the run (stage evaluate) first")
    target.mkdir(parents=True, exist_ok=True)
    there = [name for name in (*_FILES, *files) if (run / name).is_file()]
    written = [Path(shutil.copyfile(run / name, target / name)) for name in there]
    _without_folders(target / "config.json")
    stages = read_stages(run)
    drawn = {"supervised": figures.supervised_figure(stages)}
    if "ppo" in stages:
        ppo = read_metrics(run, "ppo")
        drawn |= {
            "overview": figures.overview_figure(ppo),
            "constraints": figures.constraints_figure(ppo),
            "norms": figures.norms_figure(ppo),
            "kl": figures.kl_entropy_figure(ppo),
            "evaluation": evaluation(ppo),
        }
    for name, figure in drawn.items():
        if figure is not None:
            written.append(figures.save_figure(figure, target / f"{name}.png"))
    return written


def _without_folders(path: Path) -> None:
    """Write DATA for the data's folder and runs/NAME for runs': where they lay is this machine's affair."""
    if not path.is_file():
        return
    text = path.read_text()
    config = json.loads(text)["config"]
    out, data = config.get("out") or "", config.get("data_dir") or ""
    # Absolute ones wherever they stand, a relative one is no more than a word: where it is a value or a flag's.
    for folder, name in ((data, "DATA"), (out, f"runs/{Path(out).name}")):
        text = text.replace(folder, name) if Path(folder).is_absolute() else text
    text = re.sub(r"(\"data_dir\": \"|--data-dir[ =])[^\s\"]+", r"\1DATA", text)
    path.write_text(re.sub(r"(\"out\": \"|--out[ =])[^\s\"]*?([^/\s\"]+)/?(?=[\s\"])", r"\1runs/\2", text))


def command(experiment: str, what: str, keep: Callable[[Path, Path], list[Path]], arguments: list[str] | None) -> int:
    """The command line of an experiment's `keep`; returns the exit status.

    Args:
        experiment: name of its package.
        what: is copied.
        keep: copies a run.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m morejax.experiments.{experiment}.keep",
        description=f"Copy {what} of a run.",
        epilog=f"example: python -m morejax.experiments.{experiment}.keep runs/more experiments/{experiment}/cpu",
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("dir", type=Path, help=f"where to put what is kept, e.g. experiments/{experiment}/cpu")
    options = parser.parse_args(arguments)
    return print_made(lambda: keep(options.run, options.dir))
