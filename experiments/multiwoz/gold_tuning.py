r"""Do the exactly annotated dialogues deserve the last word? The supervised model, trained on those alone.

    python experiments/multiwoz/gold_tuning.py --epochs 1 --learning-rate 5e-4 -- --preset cpu --data-dir DATA \
        --out runs/mwz

What follows `--` is the command of a run whose supervised stage is done. Scores the model before and after on the
split that choices are made on, prints both as Markdown, and keeps nothing of the run's changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from tuning import people, tune

from morejax.experiments.multiwoz.__main__ import parse
from morejax.experiments.multiwoz.config import MultiwozConfig
from morejax.experiments.multiwoz.parts import Parts
from morejax.training.interrupt import Interrupted, StopRequest


def run(config: MultiwozConfig, options: argparse.Namespace) -> None:
    """Score, train, score.

    Raises:
        ValueError: the corpus has no such split.
        FileNotFoundError: there is no supervised model.
    """
    with StopRequest() as stop:
        parts = Parts(config, stop, read_only=True)
        numbers = replace(config.supervised, epochs=options.epochs, learning_rate=options.learning_rate)
        params, train = parts.load("supervised"), people(parts, options.split)
        after = f"then {options.epochs:g} x {options.split}"
        tune(parts, stop, params, train, numbers, before="supervised", after=after)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="gold_fit", help="what is learnt from")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="peak of the schedule")
    parser.add_argument("run", nargs="+", metavar="FLAG", help="behind --: the command of the run")
    options = parser.parse_args(arguments)
    try:
        run(parse([*options.run, "--resume"]), options)
    except (ValueError, OSError, Interrupted) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
