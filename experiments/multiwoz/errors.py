r"""What systems get wrong on MultiWOZ, and where they play to the metric: counts from their predictions.

    python experiments/multiwoz/errors.py --data-dir DATA --split select --save errors.json \
        supervised=runs/mwz/predictions/supervised/select.json more=runs/mwz/predictions/select.json

People's own replies come first, under `human`. Two blocks: of dialogues, why Inform or Success is lost (a dialogue may
count under several); of turns, habits that a metric rewards or does not see. Gold states (policy track).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from morejax.experiments.multiwoz.samples import read_predictions
from morejax.tasks.multiwoz.dataset import load_corpus
from morejax.tasks.multiwoz.faults import FAULTS, HABITS, faults, habits
from morejax.tasks.multiwoz.records import Corpus, Dialogue
from morejax.tasks.multiwoz.rewards import unified
from morejax.tasks.streams import SampledTurn

_STOCK = 10
"""Turns that share one reply before it counts as a stock phrase."""
_STOCK_PHRASE = "a reply that at least ten turns get"


def counts(dialogues: Sequence[Dialogue], said: Mapping[str, Sequence[str]], corpus: Corpus) -> dict[str, float]:
    """Shares in per cent, of dialogues or of turns.

    Args:
      dialogues: with goals and people's replies.
      said: dialogue id -> the replies of a system, one a turn.
      corpus: whose database answers.
    """
    lost: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    used = Counter(unified(reply) for dialogue in dialogues for reply in said[dialogue.id])
    turns = words = 0
    for dialogue in dialogues:
        sampled = tuple(
            SampledTurn(dialogue, turn, reply, (0,), turn.state)
            for turn, reply in zip(dialogue.turns, said[dialogue.id], strict=True)
        )
        lost.update(fault.kind for fault in faults(sampled, corpus.database))
        for one in sampled:
            shown.update(habits(one, corpus.database))
            shown[_STOCK_PHRASE] += used[unified(one.text)] >= _STOCK
            words += len(one.text.split())
        turns += len(sampled)
    of_dialogues = {name: 100 * lost[name] / len(dialogues) for name in FAULTS}
    of_turns = {name: 100 * shown[name] / turns for name in (*HABITS, _STOCK_PHRASE)}
    return of_dialogues | of_turns | {"words a turn": words / turns}


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown, a column a system."""
    lines = [f"| per cent | {' | '.join(found)} |", "|---|" + "---:|" * len(found)]
    for name in next(iter(found.values())):
        kind = "" if name.startswith("words") else " of dialogues" if name in FAULTS else " of turns"
        heading = f"{name} ({kind.strip()})" if kind else name
        lines.append(f"| {heading} | {' | '.join(f'{one[name]:.1f}' for one in found.values())} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", metavar="NAME=FILE", help="predictions in the standard format")
    parser.add_argument("--data-dir", type=Path, required=True, help="corpus folder")
    parser.add_argument("--split", default="select")
    parser.add_argument("--save", type=Path, help="file for the counts as JSON")
    options = parser.parse_args(arguments)
    if options.save and not options.save.absolute().parent.is_dir():
        parser.error(f"--save {options.save}: its folder is not there")
    try:
        corpus = load_corpus(options.data_dir)
        dialogues = corpus.dialogues(options.split)
        found = {"human": counts(dialogues, {d.id: [turn.delex for turn in d.turns] for d in dialogues}, corpus)}
        for system in options.systems:
            found[system.partition("=")[0]] = counts(dialogues, read_replies(system, dialogues), corpus)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(found))
    if options.save:
        options.save.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def read_replies(system: str, dialogues: Sequence[Dialogue]) -> dict[str, list[str]]:
    """Replies of every dialogue, from a file in the standard format.

    Args:
      system: NAME=FILE.
      dialogues: which are to be read.

    Raises:
        ValueError: not NAME=FILE, the file is not there, or it lacks a turn.
    """
    path = system.partition("=")[2]
    if not path:
        raise ValueError(f"{system!r}: expected NAME=FILE")
    found = read_predictions(Path(path), dialogues)
    return {dialogue.id: [turn["response"] for turn in found[dialogue.id]] for dialogue in dialogues}


if __name__ == "__main__":
    raise SystemExit(main())
