"""The stages of the shop experiment, in order; each reads what the ones before it left in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from morejax import hosts
from morejax.experiments.shared.language_models import scaffold, supervised
from morejax.experiments.shared.naturalness import reward_heads
from morejax.experiments.shop.ab import ab_stage
from morejax.experiments.shop.evaluation import evaluate
from morejax.experiments.shop.generating import make_corpus
from morejax.experiments.shop.parts import ShopParts
from morejax.experiments.shop.policy import ppo
from morejax.experiments.shop.report import write_report
from morejax.training.run import write_json

Stage = Callable[[ShopParts], dict[str, Any]]
"""Does its work in the run's folder; what it returns is recorded in stages.json once it is done."""

STAGES: dict[str, Stage] = {
    "generate": make_corpus,
    "supervised": supervised,
    "scaffold": scaffold,
    "reward_heads": reward_heads,
    "ppo": ppo,
    "evaluate": evaluate,
    "ab": ab_stage,
}
_AGAIN = ("evaluate", "ab")
"""Stages that are made anew whenever they are asked for."""


def run_stages(parts: ShopParts) -> Path:
    """Run the stages that are asked for and not done (an evaluation is always made anew).

    Returns:
        The report's path, or the folder of a run that has no results yet.
    """
    for name in parts.config.stages:
        parts.stop.raise_if_set()
        if name not in _AGAIN and parts.run.stage_record(name) is not None:
            hosts.say(f"{name}: done before, skipped")
            continue
        with parts.run.stage(name) as record:
            record |= STAGES[name](parts)
    return Path(hosts.on_main(lambda: str(_report(parts))))


def _report(parts: ShopParts) -> Path:
    """The page; what the last stages took and found, which the results are to name, is known only now."""
    path = parts.dir / "results.json"
    if not path.is_file():
        return parts.dir
    results = json.loads(path.read_text()) | {"timings": parts.run.timings()}
    if (parts.dir / "ab.json").is_file():
        results["ab"] = json.loads((parts.dir / "ab.json").read_text())
    write_json(path, results)
    return write_report(parts.dir)
