"""The stages of the shop experiment, in order; each reads what the ones before it left in the run's folder."""

from __future__ import annotations

import json
from pathlib import Path

from morejax.experiments.shared.language_models import scaffold, supervised
from morejax.experiments.shared.naturalness import reward_heads
from morejax.experiments.shared.stages import Stage, run_stages
from morejax.experiments.shop.ab import ab_stage
from morejax.experiments.shop.evaluation import evaluate
from morejax.experiments.shop.generating import make_corpus
from morejax.experiments.shop.parts import ShopParts
from morejax.experiments.shop.policy import ppo
from morejax.experiments.shop.report import write_report
from morejax.training.run import write_json

STAGES: dict[str, Stage] = {
    "generate": make_corpus,
    "supervised": supervised,
    "scaffold": scaffold,
    "reward_heads": reward_heads,
    "ppo": ppo,
    "evaluate": evaluate,
    "ab": ab_stage,
}


def run_pipeline(parts: ShopParts) -> Path:
    """Run the stages that are asked for; see `run_stages`."""

    def report(path: Path) -> Path:
        results = json.loads(path.read_text()) | {"timings": parts.run.timings()}
        if (parts.dir / "ab.json").is_file():
            results["ab"] = json.loads((parts.dir / "ab.json").read_text())
        write_json(path, results)
        return write_report(parts.dir)

    return run_stages(parts, STAGES, report, again=("evaluate", "ab"))
