"""A run whose policy is the mean of the policies of several runs.

PPO runs from one supervised model end in one basin: the mean of their parameters often scores above each of them, since
what noise has moved them apart by goes and what they have in common stays. They may differ in seed and recipe
(thresholds, temperature, length). After Wortsman et al. 2022, "Model soups", arXiv 2203.05482, and Ramé et al. 2024,
WARP, arXiv 2406.16768.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from morejax.experiments.shared.branch import branch
from morejax.experiments.shared.command import print_made
from morejax.models.split import Params
from morejax.training.checkpoint import save_params
from morejax.training.run import write_json


def merge(out: Path, runs: Sequence[Path]) -> Path:
    """Make a run with the stages before PPO of the first run and the mean of all runs' final policies.

    Args:
        out: a new folder. The first run's command with this as --out and with --resume --stages evaluate scores it.
        runs: folders of two or more runs from one supervised model (see `branch`) that have finished PPO.

    Returns:
        `out`.

    Raises:
        FileNotFoundError: one of them is no run.
        ValueError: fewer than two, one twice, one without a policy, with adapters (the product of their two factors
            is what counts, and the mean of products is not the product of means), from another supervised model or of
            another shape than the first; or `out` is not empty.
    """
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
        raise ValueError(f"{' '.join(map(str, runs))}: expected two or more runs, each of them once")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: name another folder")
    mean = mean_policy(runs)
    documents = [json.loads((run / "config.json").read_text()) for run in runs]
    part = out.with_name(out.name + ".merging")
    shutil.rmtree(part, ignore_errors=True)
    try:
        branch(runs[0], part)
        save_params(part / "checkpoints" / "ppo-final", mean, {"merged": len(runs)})
        stages = json.loads((part / "stages.json").read_text())
        seconds = sum(json.loads((run / "stages.json").read_text())["ppo"]["seconds"] for run in runs)
        ppo = {"best": None, "constraints": {}, "merged": len(runs), "seconds": seconds}
        write_json(part / "stages.json", stages | {"ppo": ppo})
        document = json.loads((part / "config.json").read_text())
        merged = [{key: one.get(key) for key in ("command", "commit")} for one in documents]
        write_json(part / "config.json", document | {"merged_from": merged})
        # Last, and at once: a folder that is there is whole.
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def mean_policy(runs: Sequence[Path]) -> Params:
    """The mean of the final policies of runs from one supervised model, critics included, as NumPy arrays.

    Raises:
        FileNotFoundError: one of them is no run.
        ValueError: one is without a policy, has adapters, or differs from the first in supervised model or shape.
    """
    for run in runs:
        _check(run)
    began = _began(runs[0])
    start, policy = (_read(runs[0], stage) for stage in (began, "ppo"))
    total = policy
    for run in runs[1:]:
        if _began(run) != began:
            raise ValueError(f"{run} started from its {_began(run)} model, {runs[0]} from its {began} model (--aloud)")
        if not _same(start, _read(run, began)):
            raise ValueError(f"{run} started from another {began} model than {runs[0]}")
        other = _read(run, "ppo")
        if _shapes(other) != _shapes(policy):
            raise ValueError(f"the policy of {run} has another shape than that of {runs[0]} (another critic, say)")
        total = jax.tree.map(np.add, total, other)
    return jax.tree.map(lambda leaf: (leaf / len(runs)).astype(leaf.dtype), total)


def _check(run: Path) -> None:
    """Refuse what is no run with a policy that can be averaged."""
    for name in ("stages.json", "config.json"):
        if not (run / name).is_file():
            raise FileNotFoundError(f"{run / name}: not there; name the folder of a run")
    if "ppo" not in json.loads((run / "stages.json").read_text()):
        raise ValueError(f"{run} has no policy: its stage ppo is not finished")
    if json.loads((run / "config.json").read_text())["config"].get("model", {}).get("lora", {}).get("rank"):
        raise ValueError(f"{run} has adapters (--model.lora.rank): the mean of adapters is not that of the models")


def _began(run: Path) -> str:
    """The stage whose model the policy started from."""
    return "scaffold" if json.loads((run / "config.json").read_text())["config"].get("aloud") else "supervised"


def _read(run: Path, stage: str) -> Any:
    """Final parameters of a stage as NumPy arrays, in the structure that they were saved in."""
    folder = (run / "checkpoints" / f"{stage}-final" / "params").absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: not there; the run's stage {stage} has left no parameters")
    with ocp.PyTreeCheckpointer() as checkpointer:
        meta = checkpointer.metadata(folder).item_metadata.tree
        wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), meta)
        return checkpointer.restore(folder, restore_args=wanted)


def _shapes(tree: Any) -> Any:
    return jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def _same(one: Any, other: Any) -> bool:
    return _shapes(one) == _shapes(other) and all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def command(experiment: str, arguments: Sequence[str] | None) -> int:
    """The command line of an experiment's `merge`; returns the exit status.

    Args:
        experiment: name of its package.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m morejax.experiments.{experiment}.merge",
        description="Make a run whose policy is the mean of the policies of several runs from one supervised model.",
        epilog=f"example: python -m morejax.experiments.{experiment}.merge runs/mean runs/one runs/two, then the "
        "command of runs/one with --out runs/mean --resume --stages evaluate",
    )
    parser.add_argument("out", type=Path, help="folder of the new run")
    parser.add_argument("runs", type=Path, nargs="+", metavar="run", help="folders of runs that have finished PPO")
    options = parser.parse_args(arguments)
    return print_made(lambda: [merge(options.out, options.runs)])
