"""Score MultiWOZ predictions: ``python -m morejax.evaluate PREDICTIONS.json --data-dir DIR``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.errors import CorpusError
from morejax.tasks.multiwoz.metrics import ScoringError
from morejax.tasks.multiwoz.scorer import (
    ScoringData,
    derive_scoring_data,
    has_scoring_data,
    load_scoring_data,
    score,
)

FORMAT = '{"sng0073": [{"response": "...", "state": {...}, "active_domains": [...]}, ...], ...}'

_DESCRIPTION = """\
Score delexicalised MultiWOZ replies: Inform, Success (in total and per domain), BLEU, Combined, lexical
richness and, where every turn has a state, joint goal accuracy and slot F1. The numbers are those of the
standard scorer.
"""

_EPILOG = f"""\
predictions:
  {FORMAT}

  One entry per system turn, in order; ids are lower case, without .json. Placeholders may be spelled in any
  published way ([name], [hotel_name], [value_name]). "state" and "active_domains" are optional: if a turn
  lacks a state, the gold states are used for all; if a turn lacks domains, they are estimated from the change
  of the state.
  Only the dialogues predicted are scored.

example:
  python -m morejax.evaluate runs/multiwoz/mine/predictions/dev.json --data-dir data/multiwoz22 --split dev
"""


def evaluate_file(
    path: Path | str, data_dir: Path | str, split: str = "test", *, subset: bool = False
) -> dict[str, Any]:
    """Score a file of predictions.

    Args:
        path: JSON file in the standard format.
        data_dir: corpus folder; ``scoring/SPLIT/`` is used where it exists, otherwise the same is derived
            from the raw files.
        split: ``dev``, ``test`` or any split of the corpus, also a part of dev such as ``select``.
        subset: leave out predicted dialogues that are not in the split, instead of refusing them.

    Returns:
        As `morejax.tasks.multiwoz.scorer.score`, with ``split`` and ``missing`` (number of dialogues of the
        split that are not predicted).

    Raises:
        ScoringError: the file is missing, broken or cannot be scored.
        CorpusError: the data folder is missing or broken.
    """
    predictions = read_predictions(path)
    references, database = scoring_data(data_dir, split)
    if subset:
        predictions = {i: turns for i, turns in predictions.items() if references.has(i)}
    try:
        scores = score(predictions, references, database)
    except ScoringError as error:
        raise ScoringError(f"{path}: {error}") from error
    return {"split": split, **scores, "missing": len(references.goals) - len(predictions)}


def read_predictions(path: Path | str) -> dict[str, Any]:
    """Read a JSON object of predictions.

    Raises:
        ScoringError: the file is missing, not JSON, or not an object.
    """
    try:
        content = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ScoringError(f"{path}: not UTF-8 text at byte {error.start}; expected JSON {FORMAT}") from error
    except OSError as error:
        raise ScoringError(f"{path}: cannot be read ({error.strerror}); expected a JSON file {FORMAT}") from error
    try:
        predictions = json.loads(content)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno} of {len(content)} characters"
        raise ScoringError(f"{path}: not valid JSON at {where} ({error.msg}); expected {FORMAT}") from error
    if not isinstance(predictions, dict):
        raise ScoringError(f"{path}: the outermost value is a {type(predictions).__name__}; expected {FORMAT}")
    return predictions


def scoring_data(data_dir: Path | str, split: str) -> tuple[ScoringData, Database]:
    """What a split is scored against, and the database.

    Raises:
        CorpusError: the folder does not hold the split or something in it is broken.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise CorpusError(f"{data_dir}: no such folder; expected a corpus folder")
    if has_scoring_data(data_dir, split):
        return load_scoring_data(data_dir, split), Database.load(data_dir)
    # Only this path needs the reader.
    from morejax.tasks.multiwoz.reader import read_corpus

    corpus = read_corpus(data_dir, split)
    return derive_scoring_data(corpus, split), corpus.database


def format_scores(scores: Mapping[str, Any]) -> str:
    """Scores as a text table."""
    dialogues = f"{scores['dialogues']} dialogues, {scores['turns']} turns"
    missing = f" ({scores['missing']} of the split not predicted)" if scores.get("missing") else ""
    lines = [f"{scores.get('split', '')}: {dialogues}{missing}".removeprefix(": "), ""]
    lines += _row("", "inform", "success", "BLEU", "combined")
    lines += _row("total", *(scores[name] for name in ("inform", "success", "bleu", "combined")))
    rates = scores["per_domain"]
    for domain in sorted(set(rates["inform"]) - {"total"}):
        lines += _row(domain, rates["inform"][domain], rates["success"][domain])
    lines += ["", *_named("richness", scores["richness"])]
    if scores["dst"] is not None:
        lines += ["", *_named("state tracking", scores["dst"])]
    return "\n".join(lines)


def _row(name: str, *values: float | str) -> list[str]:
    return [f"{name:<12}" + "".join(f"{v:>10}" if isinstance(v, str) else f"{v:>10.2f}" for v in values)]


def _named(title: str, values: Mapping[str, float]) -> list[str]:
    shown = (f"  {k:<16}{v:>10}" if isinstance(v, int) else f"  {k:<16}{v:>10.4f}" for k, v in values.items())
    return [title, *shown]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ends the process with code 2 on wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m morejax.evaluate",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS.json", help="file of predictions")
    parser.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="corpus folder; DIR/scoring/SPLIT is used where it exists, otherwise the raw files",
    )
    parser.add_argument("--split", default="test", help="test (default), dev, or a part of dev such as select")
    parser.add_argument("--subset", action="store_true", help="leave out predicted dialogues that are not in the split")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 2 if something could not be read or scored."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        scores = evaluate_file(options.predictions, options.data_dir, options.split, subset=options.subset)
    except (ScoringError, CorpusError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(scores) if options.json else format_scores(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
