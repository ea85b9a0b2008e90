"""What a run leaves for people and scripts: results.json and sample dialogues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from morejax.experiments.multiwoz.config import MultiwozConfig
from morejax.tasks.multiwoz.records import Dialogue
from morejax.training.run import Run, write_json


def collect_results(
    config: MultiwozConfig,
    corpus: str,
    fit: str,
    select: str,
    scores: Sequence[Mapping[str, Any]],
    final: str,
    run: Run,
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        config: of the run.
        corpus: its name.
        fit, select: splits learnt from and chosen on.
        scores: one row of the standard scorer's numbers for every system and split.
        final: the system that the run is about.
        run: for timings and what PPO recorded.

    Returns:
        Top-level numbers are those of the final system on test where there is one, else on dev, else on `select`.
    """
    rows = {row["split"]: row for row in scores if row["system"] == final}
    main = next(rows[name] for name in ("test", "dev", *rows) if name in rows)
    ppo = run.stage_record("ppo") or {}
    return {
        "method": config.method,
        "track": config.track,
        "corpus": corpus,
        "preset": config.preset,
        "seed": config.seed,
        "fit": fit,
        "select": select,
        "split": main["split"],
        "system": final,
        **{name: main[name] for name in ("inform", "success", "bleu", "combined", "dialogues")},
        "scores": list(scores),
        "constraints": ppo.get("constraints", {}),
        "chosen": ppo.get("best"),
        "timings": run.timings(),
    }


def write_samples(
    path: Path,
    dialogues: Sequence[Dialogue],
    before: Mapping[str, Sequence[Mapping[str, Any]]],
    after: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Dialogues side by side: corpus, supervised model, final policy."""
    samples = [
        {
            "id": dialogue.id,
            "goal": dialogue.goal,
            "turns": [
                {
                    "user": turn.user,
                    "reference": turn.delex,
                    "before": before[dialogue.id][turn.index]["response"],
                    "after": after[dialogue.id][turn.index]["response"],
                    "state": after[dialogue.id][turn.index].get("state", turn.state),
                }
                for turn in dialogue.turns
            ],
        }
        for dialogue in dialogues
    ]
    write_json(path, samples)
