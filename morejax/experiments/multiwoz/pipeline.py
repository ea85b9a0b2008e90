"""The stages of the MultiWOZ experiment, in order; each reads what the ones before it left in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from morejax import hosts
from morejax.experiments.multiwoz.evaluation import evaluate
from morejax.experiments.multiwoz.parts import Parts
from morejax.experiments.multiwoz.policy import ppo
from morejax.experiments.shared.language_models import scaffold, supervised
from morejax.experiments.shared.naturalness import reward_heads
from morejax.tasks.multiwoz.board import nearest_rows
from morejax.tasks.multiwoz.records import REAL_CORPUS_NAME
from morejax.training.report import write_report
from morejax.training.run import write_json

Stage = Callable[[Parts], dict[str, Any]]
"""Does its work in the run's folder; what it returns is recorded in stages.json once it is done."""

STAGES: dict[str, Stage] = {
    "supervised": supervised,
    "scaffold": scaffold,
    "reward_heads": reward_heads,
    "ppo": ppo,
    "evaluate": evaluate,
}


def run_stages(parts: Parts) -> Path:
    """Run the stages that are asked for and not done (an evaluation is always made anew).

    Returns:
        The report's path, or the folder of a run that has no results yet.
    """
    for name in parts.config.stages:
        parts.stop.raise_if_set()
        if name != "evaluate" and parts.run.stage_record(name) is not None:
            hosts.say(f"{name}: done before, skipped")
            continue
        with parts.run.stage(name) as record:
            record |= STAGES[name](parts)
    return Path(hosts.on_main(lambda: str(_report(parts))))


def _report(parts: Parts) -> Path:
    """The page; the evaluation's own time, which the results are to name, is known only now."""
    path = parts.dir / "results.json"
    if not path.is_file():
        return parts.dir
    write_json(path, json.loads(path.read_text()) | {"timings": parts.run.timings()})
    board = nearest_rows(parts.config.track) if parts.corpus.name == REAL_CORPUS_NAME else None
    return write_report(parts.dir, board=board)
