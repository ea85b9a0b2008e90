"""`python -m morejax.experiments.shop.keep RUN DIR`: the parts of a run that are worth keeping.

Copies configuration, results, metrics, figures, the A/B test and sample dialogues, without checkpoints. The corpus is
generated, so its texts may be published.
"""

from __future__ import annotations

from pathlib import Path

from morejax.experiments.shared import keep as shared
from morejax.experiments.shop.report import evaluation_figure

_FILES = ("corpus.json", "samples.json", "ab.json", "ab.md", "ab.png")
_WHAT = "configuration, results, metrics, figures, A/B test and sample dialogues, without checkpoints,"


def keep(run: Path, target: Path) -> list[Path]:
    """Copy them into `target`; returns the files written.

    Raises:
        FileNotFoundError: the run has no results yet.
    """
    return shared.keep(run, target, evaluation_figure, _FILES)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return shared.command("shop", _WHAT, keep, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
