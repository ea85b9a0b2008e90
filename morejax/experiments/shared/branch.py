"""A run that shares another's stages before PPO.

Baselines and ablations differ in PPO alone: they start from the same supervised policy, scaffold and reward heads. This
copies those from a finished run into a new folder, where `--out OUT --resume` goes on with PPO.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from morejax.experiments.shared.command import print_made
from morejax.training.run import write_json
from morejax.training.writers import METRICS_FILE

SHARED = ("supervised", "scaffold", "reward_heads")
"""Stages that are taken over."""
_FILES = ("reference_scores.json", "reward_heads.json")
ANSWERS = "shared_predictions"
"""Folder of a branched run with what the models it shares have answered already: <system>/<split>.json."""


def branch(run: Path, out: Path, seed: int | None = None) -> Path:
    """Copy what the stages before PPO left.

    Args:
      run: folder of a run that has finished them.
      out: a new folder.
      seed: of PPO in the new run; None keeps the run's own.

    Returns:
      `out`.

    Raises:
      FileNotFoundError: `run` is no run.
      ValueError: `run` lacks a stage, or `out` is not empty.
    """
    stages = _read(run / "stages.json")
    missing = [stage for stage in SHARED if stage not in stages]
    if missing:
        raise ValueError(f"{run}: stage {', '.join(missing)} is not finished: run it first (--resume --stages ...)")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: name another folder, or continue that run with --resume")
    document = _read(run / "config.json")
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for stage in SHARED:
        shutil.copytree(run / "checkpoints" / f"{stage}-final", part / "checkpoints" / f"{stage}-final")
    shutil.copytree(run / "tokenizer", part / "tokenizer")
    for name in _FILES:
        if (run / name).is_file():
            shutil.copyfile(run / name, part / name)
    _copy_answers(run, part / ANSWERS)
    if seed is not None:
        document["config"]["seed"] = seed
    write_json(part / "config.json", document | {"branched_from": document.get("command", "")})
    write_json(part / "stages.json", {stage: stages[stage] for stage in SHARED})
    lines = (run / METRICS_FILE).read_text().splitlines()
    kept = [line for line in lines if json.loads(line).get("stage") in SHARED]
    (part / METRICS_FILE).write_text("".join(line + "\n" for line in kept))
    # Last, and at once: a folder that is there is whole.
    part.replace(out)
    return out


def _copy_answers(run: Path, target: Path) -> None:
    """Answers of supervised model and scaffold; an experiment that keeps none in `predictions` has none to copy."""
    results = run / "results.json"
    final = _read(results).get("system") if results.is_file() else None
    for system in ("supervised", "scaffold"):
        for path in sorted((run / "predictions" / ("" if system == final else system)).glob("*.json")):
            (target / system).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / system / path.name)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; name the folder of a run")
    return json.loads(path.read_text())


def command(experiment: str, arguments: list[str] | None) -> int:
    """The command line of an experiment's `branch`; returns the exit status.

    Args:
      experiment: name of its package.
      arguments: of the command line.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m morejax.experiments.{experiment}.branch",
        description="Start a run from another one's supervised policy, scaffold and reward heads.",
        epilog=f"example: python -m morejax.experiments.{experiment}.branch runs/more runs/mixed --seed 1, then the "
        "first run's command with --out runs/mixed --seed 1 --method mixed --resume",
    )
    parser.add_argument("run", type=Path, help="folder of a run that has finished its stages before PPO")
    parser.add_argument("out", type=Path, help="folder of the new run")
    parser.add_argument("--seed", type=int, help="of PPO in the new run; default: the run's own")
    options = parser.parse_args(arguments)
    return print_made(lambda: [branch(options.run, options.out, options.seed)])
