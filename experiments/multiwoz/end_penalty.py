r"""Greedy replies with something taken off the logit of the token that ends them: length, scores, variety.

    python experiments/multiwoz/end_penalty.py --penalties 0 0.35 0.7 1.4 --save end_penalty.json -- \
        --preset cpu --data-dir DATA --out runs/mwz

What follows `--` is the command of a finished run; its policy answers the split that choices are made on once for each
penalty. PPO judges sampled replies, and the greedy ones of the same policy may be shorter (a likely ending is always
taken) or longer. `length` is words of all replies over those of people: below 1 BLEU's brevity penalty takes its part.

--mean puts the mean of the policy and those of other runs from the same supervised model in its place (interpolate.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finished_run import COLUMNS, command_line, read
from interpolate import with_others

from morejax.experiments.multiwoz.config import MultiwozConfig
from morejax.experiments.multiwoz.parts import Parts
from morejax.experiments.shared.decoding import Decode
from morejax.experiments.shared.systems import systems
from morejax.models.split import Params
from morejax.tasks.multiwoz.rewards import unified
from morejax.training.interrupt import StopRequest

RICHNESS = ("num_unigrams", "num_trigrams", "cond_entropy")


def run(config: MultiwozConfig, penalties: Sequence[float], others: Sequence[Path]) -> list[dict[str, Any]]:
    """Answer, score and print; a row a penalty.

    Raises:
        ValueError: the run has no policy.
        FileNotFoundError: there is no such run.
    """
    rows = []
    with StopRequest() as stop:
        parts = Parts(config, stop, read_only=True)
        found = systems(parts)
        if "ppo" not in found:
            raise ValueError(f"{parts.dir} has no policy: finish the run first")
        policy = with_others(parts, found["ppo"].params, others)
        people = sum(len(unified(t.delex).split()) for d in parts.corpus.dialogues(parts.select) for t in d.turns)
        print("| penalty | Inform | Success | BLEU | Combined | length | words | 3-grams | cond. entropy |")
        print("|---|" + "---:|" * 8)
        for penalty in penalties:
            # End to end the policy writes its states, too, and those end as they always do.
            answer, write_states = _answer(parts, policy, penalty), parts.decoding.write_states(policy)
            said = parts.task.predict(parts.select, answer, write_states)
            scores = parts.task.score(said, parts.select)
            words = sum(len(unified(turn["response"]).split()) for turns in said.values() for turn in turns)
            row = {"penalty": penalty, "split": parts.select, "policies": 1 + len(others), "length": words / people}
            row |= {key: scores[key] for key in COLUMNS} | {key: scores["richness"][key] for key in RICHNESS}
            rows.append(row)
            cells = [*(f"{row[key]:.2f}" for key in (*COLUMNS, "length")), *(f"{row[key]:.4g}" for key in RICHNESS)]
            print(f"| {penalty:g} | {' | '.join(cells)} |", flush=True)
    return rows


def _answer(parts: Parts, policy: Params, penalty: float) -> Decode:
    if parts.aloud:
        return parts.decoding.reason_and_answer(policy, end_penalty=penalty)
    write = parts.decoding.generator(end_penalty=penalty)
    return lambda prompts: write(policy, prompts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command_line(__doc__)
    parser.add_argument("--penalties", type=float, nargs="+", default=[0, 0.35, 0.7, 1.4], help="nats")
    parser.add_argument("--mean", type=Path, nargs="+", default=[], metavar="RUN", help="more policies")
    read(parser, arguments, lambda config, options: run(config, options.penalties, options.mean))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
