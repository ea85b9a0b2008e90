"""The stage `ppo`: constrained PPO from the supervised policy (aloud: from the scaffold), anchored to the scaffold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from morejax.experiments.multiwoz.parts import Parts
from morejax.experiments.shared import naturalness, thresholds
from morejax.experiments.shared.policy_state import constraint_table, initial_state
from morejax.models.split import Params
from morejax.models.temperature import at_temperature
from morejax.tasks.multiwoz.aloud import AloudTask
from morejax.tasks.multiwoz.task import MultiwozTask, TurnPrompts
from morejax.training import ppo as loop
from morejax.training.ppo_loop import Watch
from morejax.training.rollouts import Frozen, Shapes, static_shapes


def ppo(parts: Parts) -> dict[str, Any]:
    """Train the policy; returns its best evaluation and what became of the constraints."""
    config = parts.config
    supervised, scaffold = parts.load("supervised"), parts.load("scaffold")
    head_graphdef, head = naturalness.load_head(parts)
    task = parts.task.with_context(replace(parts.task.context, fluency_range=naturalness.fluency_range(parts)))
    measured = thresholds.reference_scores(parts, task, supervised, scaffold, head_graphdef, head)
    numbers = thresholds.fill_numbers(config.step, config.numbers, measured, config.threshold_margin)
    parts.run.describe(thresholds=dict(numbers.thresholds), targets=dict(numbers.targets))
    begun = scaffold if config.aloud else supervised
    prompts = _prompts(parts, task, begun)
    asked: MultiwozTask | AloudTask = task
    if config.aloud:
        asked = aloud = AloudTask(task)
        prompts = [list(map(aloud.opened, turns)) for turns in prompts]
    start = at_temperature(begun, config.ppo.temperature)
    reference = at_temperature(scaffold, config.ppo.temperature) if config.ppo.ref_context == "reasoned" else start
    # Evaluations between iterations are not left in the middle: the loop saves first.
    with parts.decoding.uninterrupted():
        progress = loop.fit(
            asked,
            initial_state(parts, start, numbers),
            Frozen(parts.language_model[0], reference, supervised, head_graphdef, head),
            prompts,
            config.step,
            config.ppo,
            _shapes(parts, prompts),
            Watch(parts.dir, parts.stop, lambda params: _quick_scores(parts, params), parts.placement),
            seed=config.seed,
        )
    return {"best": progress["best"], "constraints": constraint_table(config.step, progress)}


def _prompts(parts: Parts, task: MultiwozTask, begun: Params) -> list[list[TurnPrompts]]:
    """Prompts of all dialogues to sample from; end to end, their states are those of the model that PPO begins with."""
    dialogues = parts.corpus.dialogues(parts.ppo_split)
    if parts.config.track == "policy":
        return [task.prompts(dialogue) for dialogue in dialogues]
    contexts = [context for dialogue in dialogues for context in task.corpus_history(dialogue)]
    states = iter(task.track_states(contexts, parts.decoding.write_states(begun)))
    return [task.prompts(dialogue, [next(states) for _ in dialogue.turns]) for dialogue in dialogues]


def _shapes(parts: Parts, prompts: list[list[TurnPrompts]]) -> Shapes:
    """Static sizes; prompts that depend on what the policy says may be as long as any."""
    config = parts.config
    least = config.context.max_context if parts.task.turn_by_turn else 0
    written = config.context.max_reply + (config.max_acts if config.aloud else 0)
    return static_shapes(prompts, config.ppo.turns, written, least=least)


def _quick_scores(parts: Parts, params: Params) -> dict[str, float]:
    """Greedy Inform, Success, BLEU and Combined on (a part of) the selection split."""
    limit = parts.config.ppo.eval_dialogues
    predictions = parts.decoding.predict(parts.actor(params), parts.select, reasoned=parts.aloud, limit=limit)
    scores = parts.task.score(predictions, parts.select)
    return {name: scores[name] for name in ("inform", "success", "bleu", "combined")}
