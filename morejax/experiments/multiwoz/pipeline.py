"""The stages of the MultiWOZ experiment, in order; each reads what the ones before it left in the run's folder."""

from __future__ import annotations

import json
from pathlib import Path

from morejax.experiments.multiwoz.evaluation import evaluate
from morejax.experiments.multiwoz.parts import Parts
from morejax.experiments.multiwoz.policy import ppo
from morejax.experiments.shared.language_models import scaffold, supervised
from morejax.experiments.shared.naturalness import reward_heads
from morejax.experiments.shared.stages import Stage, run_stages
from morejax.tasks.multiwoz.board import nearest_rows
from morejax.tasks.multiwoz.records import REAL_CORPUS_NAME
from morejax.training.report import write_report
from morejax.training.run import write_json

STAGES: dict[str, Stage] = {
    "supervised": supervised,
    "scaffold": scaffold,
    "reward_heads": reward_heads,
    "ppo": ppo,
    "evaluate": evaluate,
}


def run_pipeline(parts: Parts) -> Path:
    """Run the stages that are asked for; see `run_stages`."""

    def report(path: Path) -> Path:
        write_json(path, json.loads(path.read_text()) | {"timings": parts.run.timings()})
        board = nearest_rows(parts.config.track) if parts.corpus.name == REAL_CORPUS_NAME else None
        return write_report(parts.dir, board=board)

    return run_stages(parts, STAGES, report)
