"""What a reply costs: the policy (direct, or `--aloud`) beside the scaffold, which writes its acts first.

    python experiments/multiwoz/cost.py --save cost.json -- --preset cpu --data-dir DATA --out runs/mwz

What follows `--` is the command of a finished run (policy track). Both models answer the same turns of the split that
choices are made on, greedily: all of them in batches, which gives tokens and scores, and `--turns` of them one at a
time in turn with the other model, which gives the time that a person waits (compiled before it is taken). With
`--context.given` a prompt shows what was given before: in batches what the model gave itself, one at a time what people
did.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from finished_run import COLUMNS, command_line, read

from morejax.experiments.multiwoz.config import MultiwozConfig
from morejax.experiments.multiwoz.decoding import Predictions
from morejax.experiments.multiwoz.parts import Parts
from morejax.experiments.shared.systems import System, systems
from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.training.generate import Generator
from morejax.training.interrupt import StopRequest
from morejax.training.progress import Progress
from morejax.training.task import Ids


def waits(said: Mapping[str, Callable[[Ids], Any]], prompts: Sequence[Ids]) -> dict[str, list[float]]:
    """Seconds that each model takes to answer each prompt alone, the models taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in said}
    with Progress("one at a time", len(prompts)) as bar:
        for number, prompt in enumerate(prompts, 1):
            for name, answer in said.items():
                began = time.perf_counter()
                answer(prompt)
                taken[name].append(time.perf_counter() - began)
            bar.update(number)
    return taken


def row_of(name: str, written: Sequence[Ids], replies: Sequence[Ids], seconds: Sequence[float]) -> dict[str, Any]:
    """Tokens a turn, of them the reply's (the rest is reasoning), and milliseconds until it is there."""
    spoken, total = (float(np.mean([len(ids) for ids in one])) for one in (replies, written))
    percentiles = {f"p{share}": float(np.percentile(seconds, share)) * 1e3 for share in (50, 95)}
    return {
        "system": name,
        "tokens": total,
        "reply_tokens": spoken,
        "reasoning_tokens": total - spoken,
        "milliseconds": percentiles | {"mean": float(np.mean(seconds)) * 1e3},
    }


def run(config: MultiwozConfig, turns: int) -> list[dict[str, Any]]:
    """Answer, time, score and print; a row a model.

    Raises:
        ValueError: not the command of a run on the policy track, or a run without scaffold or policy.
        FileNotFoundError: there is no such run.
    """
    if config.track != "policy":
        raise ValueError(f"--track {config.track}: only the policy track can be read here")
    if turns < 1:
        raise ValueError(f"--turns {turns}: at least 1 is needed")
    with StopRequest() as stop:
        parts = Parts(config, stop, read_only=True)
        found = systems(parts)
        missing = [name for name in ("scaffold", "ppo") if name not in found]
        if missing:
            raise ValueError(f"{parts.dir} has no {' and no '.join(missing)}: finish the run first")
        dialogues = parts.corpus.dialogues(parts.select)
        prompts = [prompt for dialogue in dialogues for prompt in parts.task.prompts(dialogue)]
        compared = [found["scaffold"], found["ppo"]]
        alone = {name: _alone(parts, found[name]) for name in ("scaffold", "ppo")}
        asked = [prompt.direct for prompt in prompts]
        some = [asked[place] for place in np.linspace(0, len(asked) - 1, min(turns, len(asked))).astype(int)]
        # Every shape once, so that none is compiled while it is timed.
        step = parts.decoding.direct.step
        for prompt in {-(-len(prompt) // step): prompt for prompt in some}.values():
            for answer in alone.values():
                answer(prompt)
        taken = waits(alone, some)
        rows = []
        for name, system in zip(("scaffold", "ppo"), compared, strict=True):
            written, replies, predictions = _all(parts, system, len(asked), name)
            scores = parts.task.score(predictions, parts.select)
            row = row_of(name, written, replies, taken[name]) | {key: scores[key] for key in COLUMNS}
            rows.append(row | {"split": parts.select, "turns_timed": len(some), "device": jax.devices()[0].device_kind})
    return rows


def _alone(parts: Parts, system: System) -> Callable[[Ids], list[Ids]]:
    """Answer one prompt, in a batch of one."""
    whole = parts.decoding.reasoned if system.reasoned else parts.decoding.direct
    one = Generator(whole.graphdef, whole.config, batch=1, step=whole.step)
    return lambda prompt: one(system.params, [_opened(parts, system, prompt)])


def _all(parts: Parts, system: System, turns: int, name: str) -> tuple[list[Ids], list[Ids], Predictions]:
    """Everything that a model writes, the replies in it, and those as the evaluation of the run cuts them."""
    whole = parts.decoding.reasoned if system.reasoned else parts.decoding.direct
    written: list[Ids] = []
    replies: list[Ids] = []
    with Progress(f"{name} answers", turns) as bar:

        def answer(prompts: Sequence[Ids]) -> list[Ids]:
            new = whole(system.params, [_opened(parts, system, prompt) for prompt in prompts])
            said = [parts.task.split_reasoned(ids)[1] for ids in new] if system.reasoned else new
            written.extend(new)
            replies.extend(said)
            bar.update(len(written), tokens=sum(map(len, new)))
            return [ids[: parts.config.context.max_reply] for ids in said]

        predictions = parts.task.predict(parts.select, answer)
    return written, replies, predictions


def _opened(parts: Parts, system: System, prompt: Ids) -> Ids:
    """A model that reasons is asked for its acts."""
    return (*prompt[:-1], parts.task.serialiser.token(vocabulary.ACTS)) if system.reasoned else prompt


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    head = "| model | Inform | Success | BLEU | Combined | tokens | of them acts | ms, median | ms, 95 % |"
    lines = [head, "|---|" + "---:|" * 8]
    for row in rows:
        scores = " | ".join(f"{row[key]:.1f}" for key in COLUMNS)
        times = f"{row['milliseconds']['p50']:.0f} | {row['milliseconds']['p95']:.0f}"
        lines.append(f"| {row['system']} | {scores} | {row['tokens']:.1f} | {row['reasoning_tokens']:.1f} | {times} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command_line(__doc__)
    parser.add_argument("--turns", type=int, default=200, help="answered one at a time, at least 1")
    print(table(read(parser, arguments, lambda config, options: run(config, options.turns))[1]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
