"""Other ways to read a reply off a trained policy than the greedy one: how much of the score is decoding?

    python experiments/multiwoz/decoding.py --save decoding.json -- --preset cpu --data-dir DATA --out runs/mwz

What follows `--` is the command of a finished run (policy track, without `--context.given`, which the cpu preset has:
`--context.no-given`); nothing is trained. Its last model answers the
turns of the split that choices are made on, n times each and once greedily, and one reply a turn is chosen:

    greedy      the likeliest token at each place: what every other table reports
    sampled     the first of the n
    likeliest   of all, the one with the highest mean log-probability of a token under the frozen supervised model
    natural     of all, the one that the naturalness head finds most human
    consensus   minimum Bayes risk (Kumar and Byrne 2004, Eikema and Aziz 2020): the one whose sentence BLEU against
                the others is highest in the mean
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from finished_run import COLUMNS, command_line, read

from morejax.experiments.multiwoz.config import MultiwozConfig
from morejax.experiments.multiwoz.parts import Parts
from morejax.experiments.shared.naturalness import features, load_head
from morejax.experiments.shared.systems import systems
from morejax.tasks.device_rewards import overlap_on_host
from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.training.interrupt import StopRequest
from morejax.training.progress import Progress
from morejax.training.reward_heads import head_logits
from morejax.training.task import Ids, TurnPrompts

# Rows of `features_of`.
_BATCH = 256


def consensus(replies: Sequence[Ids]) -> np.ndarray:
    """Mean sentence BLEU of every reply, f64[n], with each of the others as the reference."""
    # Equal replies are compared once.
    kinds, which, count = np.unique(np.array([repr(ids) for ids in replies]), return_inverse=True, return_counts=True)
    first = [replies[int(np.argmax(which == kind))] for kind in range(len(kinds))]
    table = np.array([[overlap_on_host(said, other) for other in first] for said in first])
    # A reply is no reference for itself, but its equals are.
    return ((table @ count - np.diag(table)) / max(len(replies) - 1, 1))[which]


def choices(greedy: Sequence[Ids], drawn: Sequence[Sequence[Ids]], likely: np.ndarray, natural: np.ndarray):
    """One reply a turn by each rule.

    Args:
        greedy: N replies.
        drawn: N lists of n replies.
        likely, natural: f32[N, 1 + n], of the greedy reply and of those that were drawn.

    Yields:
        Name of the rule and its N replies.
    """
    everything = [(first, *others) for first, others in zip(greedy, drawn, strict=True)]
    yield "greedy", list(greedy)
    yield "sampled", [others[0] for others in drawn]
    yield "likeliest", [replies[best] for replies, best in zip(everything, likely.argmax(1), strict=True)]
    yield "natural", [replies[best] for replies, best in zip(everything, natural.argmax(1), strict=True)]
    with Progress("consensus", len(everything)) as bar:
        chosen = []
        for replies in everything:
            chosen.append(replies[int(consensus(replies).argmax())])
            bar.update(len(chosen))
    yield "consensus", chosen


def judged(parts: Parts, prompts: Sequence[TurnPrompts], drawn: Sequence[Sequence[Ids]]):
    """Mean log-likelihood and naturalness, f32[N, n] each, of n replies to each prompt."""
    params, head = parts.load("supervised"), load_head(parts)
    likely, natural = [], []
    with Progress("judged", len(prompts)) as bar:
        # As many prompts at a time as a batch has rows, so that n full batches hold their replies.
        for start in range(0, len(prompts), _BATCH):
            some = zip(prompts[start : start + _BATCH], drawn[start : start + _BATCH], strict=True)
            asked, said = zip(*((prompt.direct, ids) for prompt, replies in some for ids in replies), strict=True)
            logp, found = features(parts, params, asked, said)
            likely.append(logp.reshape(-1, len(drawn[0])))
            natural.append(head_logits(*head, found).reshape(-1, len(drawn[0])))
            bar.update(min(start + _BATCH, len(prompts)))
    return np.concatenate(likely), np.concatenate(natural)


def run(config: MultiwozConfig, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Answer, choose, score and print; a row a rule.

    Raises:
        ValueError: not the command of a run on the policy track.
        FileNotFoundError: the run is not finished.
    """
    if config.track != "policy":
        raise ValueError(f"--track {config.track}: replies are chosen for gold states, so only policy can be read here")
    if config.context.given:
        raise ValueError("--context.given: a prompt would need the replies before it, and all are asked at once here")
    if config.aloud:
        raise ValueError("--aloud: replies are drawn from a policy that answers directly only")
    if options.samples < 2:
        raise ValueError(f"--samples {options.samples}: at least 2 are needed to compare them")
    with StopRequest() as stop:
        parts = Parts(config, stop, read_only=True)
        name, system = list(systems(parts).items())[-1]
        prompts = [
            prompt for dialogue in parts.corpus.dialogues(parts.select) for prompt in parts.task.prompts(dialogue)
        ]
        asked = [prompt.direct for prompt in prompts]
        greedy = parts.decoding.answer(system.params, f"{name}, greedy")(asked)
        sampler = parts.decoding.generator(temperature=options.temperature, samples=options.samples)
        with Progress(f"{name}, drawn", len(asked)) as bar:
            flat = sampler(system.params, asked, seed=options.seed, progress=bar)
    drawn = [flat[start : start + options.samples] for start in range(0, len(flat), options.samples)]
    everything = [(first, *others) for first, others in zip(greedy, drawn, strict=True)]
    rows = []
    print("| decoding | Inform | Success | BLEU | Combined | distinct 3-grams | tokens |\n|---|" + "---:|" * 6)
    for rule, replies in choices(greedy, drawn, *judged(parts, prompts, everything)):
        predictions: dict[str, list[dict[str, str]]] = {}
        for prompt, ids in zip(prompts, replies, strict=True):
            text = vocabulary.decode(parts.task.tokenizer, ids)
            predictions.setdefault(prompt.dialogue.id, []).append({"response": text})
        scores = parts.task.score(predictions, parts.select)
        tokens = float(np.mean([len(ids) for ids in replies]))
        row = {"decoding": rule, "system": name, "split": parts.select} | {key: scores[key] for key in COLUMNS}
        row |= {"num_trigrams": scores["richness"]["num_trigrams"], "tokens": tokens}
        row |= {"samples": options.samples, "temperature": options.temperature, "seed": options.seed}
        rows.append(row)
        cells = (f"{row[key]:.1f}" for key in (*COLUMNS, "num_trigrams", "tokens"))
        print(f"| {rule} | {' | '.join(cells)} |", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command_line(__doc__)
    parser.add_argument("--samples", type=int, default=16, help="n")
    parser.add_argument("--temperature", type=float, default=0.7, help="at which they are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    read(parser, arguments, run)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
