"""`python -m morejax.experiments.multiwoz.keep RUN DIR`: the parts of a run that may be published.

Copies configuration, results, metrics, the final system's replies and the figures, without checkpoints and without any
text of the corpus (the report and the sample dialogues hold some, and states written end to end users' words).
"""

from __future__ import annotations

import json
from pathlib import Path

from morejax.experiments.shared import keep as shared
from morejax.training.figures import evaluation_figure
from morejax.training.run import write_json

_WHAT = (
    "configuration, results, metrics, replies and figures (the parts that may be published, without checkpoints and "
    "without any text of the corpus)"
)


def keep(run: Path, target: Path) -> list[Path]:
    """Copy them into `target`; replies to a split become `predictions_SPLIT.json`, which `morejax.evaluate` scores.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: the run has no results yet.
    """
    written = shared.keep(run, target, evaluation_figure)
    return written + [_replies(path, target) for path in sorted((run / "predictions").glob("*.json"))]


def _replies(predictions: Path, target: Path) -> Path:
    """Replies without the states beside them, which are words of the corpus's users."""
    said = json.loads(predictions.read_text())
    replies = {name: [{"response": turn["response"]} for turn in turns] for name, turns in said.items()}
    path = target / f"predictions_{predictions.name}"
    write_json(path, replies)
    return path


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return shared.command("multiwoz", _WHAT, keep, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
