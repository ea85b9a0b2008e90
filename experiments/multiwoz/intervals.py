r"""How far the luck of the dialogues reaches: paired bootstrap intervals of MultiWOZ scores.

    python experiments/multiwoz/intervals.py --data-dir DATA --split select \
        more=runs/grid/more-seed0/predictions/select.json mixed=runs/grid/mixed-0.25-seed0/predictions/select.json

Dialogues are drawn again with replacement, the same for all systems; the first system is what the others are compared
with. 95 % percentile intervals (Efron 1979; Koehn 2004 for BLEU). Says nothing of what another training seed would do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from errors import read_replies
from sacrebleu.metrics import BLEU

from morejax.tasks.corpus_bleu import corpus_bleu
from morejax.tasks.multiwoz.dataset import load_corpus
from morejax.tasks.multiwoz.records import Corpus, Dialogue
from morejax.tasks.multiwoz.rewards import judge_dialogue, unified
from morejax.tasks.streams import SampledTurn

COLUMNS = ("Inform", "Success", "BLEU", "Combined")
_BLEU = BLEU(effective_order=True)


def statistics(dialogues: Sequence[Dialogue], said: dict[str, list[str]], corpus: Corpus) -> np.ndarray:
    """What the scores are made of, f64[D, 12]: Inform, Success, 4 matches, 4 totals, words of replies, of people's."""
    rows = []
    for dialogue in dialogues:
        replies = said[dialogue.id]
        turns = [
            SampledTurn(dialogue, t, reply, (0,), t.state) for t, reply in zip(dialogue.turns, replies, strict=True)
        ]
        verdict = judge_dialogue(turns, corpus.database).sampled
        found = [_BLEU.sentence_score(unified(one.text), [unified(one.turn.delex)]) for one in turns]
        words = [[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found]
        rows.append([verdict.inform, verdict.success, *np.sum(words, axis=0)])
    return np.array(rows, np.float64)


def scores(rows: np.ndarray) -> np.ndarray:
    """Inform, Success, BLEU and Combined, f64[4], in per cent."""
    inform, success = 100 * rows[:, :2].mean(0)
    bleu = 100 * corpus_bleu(rows[:, 2:6], rows[:, 6:10], rows[:, 10], rows[:, 11])
    return np.array([inform, success, bleu, (inform + success) / 2 + bleu])


def half_width(draws: np.ndarray) -> np.ndarray:
    """Half of the 95 % percentile interval of every column."""
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    return (high - low) / 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", metavar="NAME=FILE", help="predictions in the standard format")
    parser.add_argument("--data-dir", type=Path, required=True, help="corpus folder")
    parser.add_argument("--split", default="select")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    options = parser.parse_args(arguments)
    try:
        corpus = load_corpus(options.data_dir)
        dialogues = corpus.dialogues(options.split)
        replies = {system.partition("=")[0]: read_replies(system, dialogues) for system in options.systems}
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    which = np.random.default_rng(options.seed).integers(len(dialogues), size=(options.draws, len(dialogues)))
    print(f"| system | {' | '.join(COLUMNS)} | Combined minus the first |\n|---|" + "---:|" * 5)
    first = None
    for name, said in replies.items():
        rows = statistics(dialogues, said, corpus)
        whole, draws = scores(rows), np.array([scores(rows[drawn]) for drawn in which])
        cells = [f"{value:.1f} ± {half:.1f}" for value, half in zip(whole, half_width(draws), strict=True)]
        cells.append("" if first is None else f"{whole[3] - first[0]:+.1f} ± {half_width(draws[:, 3] - first[1]):.1f}")
        first = first or (whole[3], draws[:, 3])
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
