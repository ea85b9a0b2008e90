"""`python -m morejax.experiments.multiwoz.keep RUN DIR`: the parts of a run that may be published.

Copies configuration, results, metrics and the figures, without checkpoints and without any text of the corpus (the
report and the sample dialogues hold some).
"""

from __future__ import annotations

from pathlib import Path

from morejax.experiments.shared import keep as shared
from morejax.training.figures import evaluation_figure

_WHAT = (
    "configuration, results, metrics and figures (the parts that may be published, without checkpoints and without any "
    "text of the corpus)"
)


def keep(run: Path, target: Path) -> list[Path]:
    """Copy them into `target`; returns the files written.

    Raises:
        FileNotFoundError: the run has no results yet.
    """
    return shared.keep(run, target, evaluation_figure)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return shared.command("multiwoz", _WHAT, keep, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
