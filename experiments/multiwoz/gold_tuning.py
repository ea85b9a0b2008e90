r"""Do the exactly annotated dialogues deserve the last word? The supervised model, trained on those alone.

    python experiments/multiwoz/gold_tuning.py --epochs 1 --learning-rate 5e-4 -- --preset cpu --data-dir DATA \
        --out runs/mwz

What follows `--` is the command of a run whose supervised stage is done. Scores the model before and after on the
split that choices are made on, prints both as Markdown, and keeps nothing of the run's changed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from morejax.experiments.multiwoz.__main__ import parse
from morejax.experiments.multiwoz.config import MultiwozConfig
from morejax.experiments.multiwoz.parts import Parts
from morejax.models.split import Params
from morejax.training import language_model
from morejax.training.batching import Sequences
from morejax.training.interrupt import Interrupted, StopRequest

COLUMNS = ("inform", "success", "bleu", "combined")


def run(config: MultiwozConfig, options: argparse.Namespace) -> None:
    """Score, train, score.

    Raises:
        ValueError: the corpus has no such split.
        FileNotFoundError: there is no supervised model.
    """
    with StopRequest() as stop:
        parts = Parts(config, stop, read_only=True)
        params = parts.load("supervised")
        train, watched = (_sequences(parts, part) for part in (options.split, parts.select))
        print("| model | loss | Inform | Success | BLEU | Combined |\n|---|" + "---:|" * 5)
        numbers = replace(config.supervised, epochs=options.epochs, learning_rate=options.learning_rate)
        graphdef, pad = parts.language_model[0], parts.task.pad_id
        before = language_model.evaluate_loss(graphdef, params, watched, numbers, pad)
        _show(parts, "supervised", params, before)
        with tempfile.TemporaryDirectory() as folder:
            tuned, found = language_model.fit(
                "supervised",
                graphdef,
                params,
                train,
                watched,
                numbers,
                run_dir=Path(folder),
                seed=config.seed,
                pad_id=pad,
                drop_id=parts.task.drop_id,
                stop=stop,
            )
        _show(parts, f"then {options.epochs:g} x {options.split}", tuned, found["dev_loss"])


def _sequences(parts: Parts, split: str) -> Sequences:
    examples = parts.task.examples(split, reasoned=False)
    return Sequences(tuple(e.sequence for e in examples), tuple(e.target_mask for e in examples))


def _show(parts: Parts, name: str, params: Params, loss: float) -> None:
    scores = parts.task.score(parts.decoding.predict(params, parts.select, label=name), parts.select)
    print(f"| {name} | {loss:.4f} | {' | '.join(f'{scores[key]:.2f}' for key in COLUMNS)} |", flush=True)


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
