r"""Can a policy be taught what choosing among its replies would gain? Trained on its own consensus.

    python experiments/multiwoz/consensus_tuning.py --replies consensus.json --epochs 1 -- \
        --preset cpu --data-dir DATA --out runs/mwz

What follows `--` is the command of a finished run (policy track, without `--context.given`, which the cpu preset has:
`--context.no-given`). Its last policy answers the turns of a split n times each; the reply whose sentence BLEU against
the others is highest in the mean (minimum Bayes risk, `decoding.py`) is what it then learns by maximum likelihood. No
annotation is used. After Finkelstein and Freitag 2023 (MBR finetuning). Scores the policy before and after, greedily,
on the split that choices are made on; nothing of the run is changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from decoding import consensus
from tuning import tune

from morejax.experiments.multiwoz.__main__ import parse
from morejax.experiments.multiwoz.config import MultiwozConfig
from morejax.experiments.multiwoz.parts import Parts
from morejax.experiments.shared.systems import systems
from morejax.models.split import Params
from morejax.training.batching import Sequences
from morejax.training.interrupt import Interrupted, StopRequest
from morejax.training.progress import Progress
from morejax.training.task import Ids


def run(config: MultiwozConfig, options: argparse.Namespace) -> None:
    """Choose, score, train, score.

    Raises:
        ValueError: not the command of a run on the policy track, or the file of replies is of other turns.
        FileNotFoundError: the run is not finished.
    """
    if config.track != "policy" or config.context.given:
        raise ValueError("--track and --context.given: replies are drawn for gold states and people's own turns only")
    if config.aloud:
        raise ValueError("--aloud: replies are drawn from a policy that answers directly only")
    with StopRequest() as stop:
        parts = Parts(config, stop, read_only=True)
        name, system = list(systems(parts).items())[-1]
        asked = _prompts(parts, options.split)
        replies = _chosen(parts, system.params, asked, options)
        train = _sequences(parts, asked, replies)
        numbers = replace(
            config.supervised, epochs=options.epochs, learning_rate=options.learning_rate, optimizer="adam"
        )
        after = f"then {options.epochs:g} x {options.split}"
        tune(parts, stop, system.params, train, numbers, before=name, after=after)


def _prompts(parts: Parts, split: str) -> list[Ids]:
    return [prompt.direct for dialogue in parts.corpus.dialogues(split) for prompt in parts.task.prompts(dialogue)]


def _chosen(parts: Parts, params: Params, asked: Sequence[Ids], options: argparse.Namespace) -> list[Ids]:
    """The consensus reply to every prompt, from the file where it is there."""
    if options.replies and options.replies.is_file():
        kept = json.loads(options.replies.read_text())
        found, expected = ((kept["split"], len(kept["replies"])), (options.split, len(asked)))
        if found != expected:
            raise ValueError(
                f"--replies {options.replies}: {found[1]} replies to {found[0]}, "
                f"expected {expected[1]} to {expected[0]}"
            )
        return [tuple(ids) for ids in kept["replies"]]
    sampler = parts.decoding.generator(temperature=options.temperature, samples=options.samples)
    with Progress("drawn", len(asked)) as bar:
        drawn = sampler(params, asked, seed=options.seed, progress=bar)
    replies = []
    with Progress("consensus", len(asked)) as bar:
        for start in range(0, len(drawn), options.samples):
            some = drawn[start : start + options.samples]
            replies.append(tuple(int(token) for token in some[int(np.argmax(consensus(some)))]))
            bar.update(len(replies))
    if options.replies:
        options.replies.write_text(json.dumps({"split": options.split, "replies": replies}))
    return replies


def _sequences(parts: Parts, asked: Sequence[Ids], replies: Sequence[Ids]) -> Sequences:
    """What is learnt: the reply, and that it ends, but where it was cut."""
    end, most = parts.task.eos_id, parts.config.context.max_reply
    said = [ids if end in ids or len(ids) >= most else (*ids, end) for ids in replies]
    tokens = tuple((*prompt, *ids) for prompt, ids in zip(asked, said, strict=True))
    marks = tuple((False,) * len(prompt) + (True,) * len(ids) for prompt, ids in zip(asked, said, strict=True))
    return Sequences(tokens, marks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="gold_fit", help="whose turns are answered and learnt from")
    parser.add_argument("--samples", type=int, default=16, help="n")
    parser.add_argument("--temperature", type=float, default=0.7, help="at which they are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--replies", type=Path, help="file for the chosen replies' tokens; read where it is there")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="peak of the schedule of Adam")
    parser.add_argument("run", nargs="+", metavar="FLAG", help="behind --: the command of the run")
    options = parser.parse_args(arguments)
    if options.replies and not options.replies.absolute().parent.is_dir():
        parser.error(f"--replies {options.replies}: its folder is not there")
    if options.samples < 2:
        parser.error(f"--samples {options.samples}: at least 2 are needed to compare them")
    try:
        run(parse([*options.run, "--resume"]), options)
    except (ValueError, OSError, Interrupted) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
