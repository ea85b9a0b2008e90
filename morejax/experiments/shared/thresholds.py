"""Thresholds and targets that were not given, from what people and the scaffold reach on the selection split."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np
from flax import nnx

from morejax import hosts
from morejax.config import StepConfig, StepNumbers
from morejax.experiments.shared.naturalness import features
from morejax.experiments.shared.parts import RunParts
from morejax.lagrange import relative_thresholds
from morejax.models.split import Params
from morejax.training.reward_heads import head_logits
from morejax.training.rollouts import score_replies
from morejax.training.run import write_json
from morejax.training.task import Ids, Task, TurnPrompts

logger = logging.getLogger("morejax")

Scores = Mapping[str, Mapping[str, float]]
"""human | scaffold -> stream -> J; dialogues -> count."""


def reference_scores(
    parts: RunParts, task: Task, supervised: Params, scaffold: Params, head_graphdef: nnx.GraphDef, head: Params
) -> Scores:
    """J of every stream on the selection split for corpus replies and for the scaffold's greedy ones.

    Measured once and kept in the run as reference_scores.json, unless the streams have changed since. All turns are
    answered at once, after the corpus's earlier replies, also where rollouts go turn by turn.
    """
    path = parts.dir / "reference_scores.json"
    scores = hosts.on_main(lambda: json.loads(path.read_text()) if path.is_file() else None)
    if scores is not None and set(scores["human"]) == set(task.streams):
        return scores
    dialogues = parts.corpus.dialogues(parts.select)
    prompts = [prompt for dialogue in dialogues for prompt in task.prompts(dialogue)]
    answer = parts.decoding.reason_and_answer(scaffold, "scaffold sets the thresholds")
    replies = {
        "human": [prompt.reference for prompt in prompts],
        "scaffold": answer([prompt.direct for prompt in prompts]),
    }

    def logits(found: np.ndarray) -> np.ndarray:
        return head_logits(head_graphdef, head, found)

    scores = {who: _means(parts, task, supervised, logits, prompts, said) for who, said in replies.items()}
    scores["dialogues"] = {"count": float(len(dialogues))}
    hosts.on_main(lambda: write_json(path, scores))
    return scores


def _means(
    parts: RunParts,
    task: Task,
    supervised: Params,
    logits: Callable[[np.ndarray], np.ndarray],
    prompts: Sequence[TurnPrompts],
    replies: Sequence[Ids],
) -> dict[str, float]:
    """J of every stream for these replies."""
    logp, found = features(parts, supervised, [prompt.direct for prompt in prompts], replies)
    natural = np.asarray(jax.nn.sigmoid(logits(found)))
    streams = score_replies(task, prompts, replies, logp, natural, parts.config.context.max_reply)
    weights = streams.weights * streams.applies
    means = (weights * streams.scores).sum(0) / np.maximum(weights.sum(0), 1e-9)
    return {name: float(mean) for name, mean in zip(task.streams, means, strict=True)}


def fill_numbers(step: StepConfig, numbers: StepNumbers, measured: Scores, margin: float) -> StepNumbers:
    """The step's numbers with thresholds and targets that were not given taken from measurements.

    Args:
        step: structure of the step.
        numbers: as configured.
        measured: from `reference_scores`.
        margin: how far below the scaffold's J a threshold lies, but at 0 or above.
    """
    scaffold, human = measured["scaffold"], measured["human"]
    own = relative_thresholds({name: scaffold[name] for name in step.constraints}, margin)
    thresholds = own | dict(numbers.thresholds)
    for name in step.constraints:
        _warn_out_of_reach(name, thresholds[name], scaffold[name], measured["dialogues"]["count"])
    # Human replies are the target where they can be scored; likeness to them is 1 by definition.
    targets = {name: 1.0 if name == "likeness" else human[name] for name in step.objectives}
    return replace(numbers, thresholds=thresholds, targets=targets | dict(numbers.targets))


def _warn_out_of_reach(name: str, threshold: float, scaffold: float, dialogues: float) -> None:
    """Say so where the scaffold stays more than two standard errors below a threshold."""
    error = math.sqrt(max(scaffold * (1 - scaffold), 0.0) / dialogues)
    if threshold > scaffold + 2 * error and hosts.is_main():
        logger.warning(
            "threshold %s >= %.3f lies %.3f above what the scaffold reaches (%.3f): it may be out of reach",
            name,
            threshold,
            threshold - scaffold,
            scaffold,
        )
