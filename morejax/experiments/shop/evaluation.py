"""The stage `evaluate`: every model of the run answers every split; reasoning function by function, and language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from morejax import hosts
from morejax.experiments.shared import naturalness
from morejax.experiments.shared.systems import System, systems
from morejax.experiments.shop.config import OBJECTIVES
from morejax.experiments.shop.parts import ShopParts
from morejax.experiments.shop.results import write_results
from morejax.models.split import Params
from morejax.tasks.shop.context import Ids, TurnPrompts
from morejax.tasks.shop.ontology import FUNCTIONS
from morejax.tasks.streams import StackedStreams
from morejax.training.reward_heads import head_logits

RULES = ("overlap", "concision", "empathy")
"""Language scores that need no model."""


def evaluate(parts: ShopParts) -> dict[str, Any]:
    """Answer and score; writes results.json and samples.json."""
    rows, replies = [], {}
    judge = _language_judge(parts)
    found = systems(parts)
    missing = [name for name in parts.config.score if name not in found]
    if missing:
        raise ValueError(f"--score {' '.join(missing)}: the run has no such model, only {', '.join(found)}")
    wanted = {name: system for name, system in found.items() if name in (parts.config.score or found)}
    for name, system in wanted.items():
        for split in parts.eval_splits:
            prompts = _prompts(parts, split)
            made = _answers(parts, system, prompts, f"{name} answers {split}")
            logp, natural = judge(prompts, made) if judge else (None, None)
            streams = (*(OBJECTIVES if judge else RULES), *FUNCTIONS)
            row = {"system": name, "split": split} | _scores(parts, streams, prompts, made, logp, natural)
            hosts.say(_line(row))
            rows.append(row)
            replies[name, split] = {(p.dialogue.id, p.turn): ids for p, ids in zip(prompts, made, strict=True)}
    write_results(parts, rows, replies)
    return {"splits": list(parts.eval_splits)}


def quick_scores(parts: ShopParts, params: Params) -> dict[str, float]:
    """Greedy percentages on (a part of) the selection split: each function, their mean, language, and `combined`."""
    prompts = _prompts(parts, parts.select, parts.config.ppo.eval_dialogues)
    made = parts.decoding.answer(params)([prompt.direct for prompt in prompts])
    row = _scores(parts, (*RULES, *FUNCTIONS), prompts, made)
    language = float(np.mean(list(row["language"].values())))
    percent = {name: 100 * value for name, value in row["functions"].items()}
    percent |= {"reasoning": 100 * row["reasoning"], "language": 100 * language}
    return percent | {"combined": (percent["reasoning"] + percent["language"]) / 2}


def _prompts(parts: ShopParts, split: str, dialogues: int = 0) -> list[TurnPrompts]:
    chosen = parts.corpus.dialogues(split)[: dialogues or None]
    return [prompt for dialogue in chosen for prompt in parts.task.prompts(dialogue)]


def _answers(parts: ShopParts, system: System, prompts: Sequence[TurnPrompts], label: str) -> list[Ids]:
    write = parts.decoding.reason_and_answer if system.reasoned else parts.decoding.answer
    return write(system.params, label)([prompt.direct for prompt in prompts])


def _language_judge(parts: ShopParts):
    """(prompts, replies) -> log-probabilities and naturalness f32[N]; None without reward heads."""
    if parts.run.stage_record("reward_heads") is None:
        return None
    supervised, (graphdef, head) = parts.load("supervised"), naturalness.load_head(parts)

    def judge(prompts: Sequence[TurnPrompts], replies: Sequence[Ids]) -> tuple[np.ndarray, np.ndarray]:
        logp, found = naturalness.features(parts, supervised, [prompt.direct for prompt in prompts], replies)
        return logp, np.asarray(jax.nn.sigmoid(head_logits(graphdef, head, found)))

    return judge


def _scores(
    parts: ShopParts,
    streams: Sequence[str],
    prompts: Sequence[TurnPrompts],
    replies: Sequence[Ids],
    logp: np.ndarray | None = None,
    natural: np.ndarray | None = None,
) -> dict[str, Any]:
    fluency_range = None if logp is None else naturalness.fluency_range(parts)
    task = parts.task_with(streams, fluency_range)
    return summary(task.rewards(task.sampled(prompts, replies, logp, natural), parts.config.context.max_reply), replies)


def summary(scored: StackedStreams, replies: Sequence[Ids]) -> dict[str, Any]:
    """Means of the streams over the replies that they apply to, reasoning and language apart.

    Returns:
        `functions` and `language` (stream -> mean), `reasoning` (mean over the functions), `all_right` (share of the
        replies with something to check in which all of it is right), `reply_tokens`, `turns`.
    """
    counts = scored.applies.sum(0)
    means = (scored.scores * scored.applies).sum(0) / np.maximum(counts, 1)
    by_name = {name: float(means[h]) for h, name in enumerate(scored.names)}
    functions = [h for h, name in enumerate(scored.names) if name in FUNCTIONS]
    applies, right = scored.applies[:, functions], scored.scores[:, functions] > 0.5
    all_right = np.all(right | ~applies, axis=1)[applies.any(1)]
    return {
        "functions": {name: by_name[name] for name in FUNCTIONS},
        "language": {name: value for name, value in by_name.items() if name not in FUNCTIONS},
        # A function that nothing asks for has no accuracy.
        "reasoning": float(np.mean([means[h] for h in functions if counts[h]] or [0.0])),
        "all_right": float(all_right.mean()) if len(all_right) else 0.0,
        "reply_tokens": float(np.mean([len(ids) for ids in replies])),
        "turns": len(replies),
    }


def _line(row: Mapping[str, Any]) -> str:
    functions = "  ".join(f"{name} {100 * value:.0f}" for name, value in row["functions"].items())
    return (
        f"{row['system']:>10} on {row['split']:<8} reasoning {100 * row['reasoning']:5.1f}  "
        f"all right {100 * row['all_right']:5.1f}  ({functions})  likeness {row['language']['overlap']:.3f}"
    )
