"""The stage `ppo`: constrained PPO from the supervised policy, anchored to the scaffold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from morejax.config import StepConfig, StepNumbers
from morejax.experiments.multiwoz import naturalness, thresholds
from morejax.experiments.multiwoz.parts import Parts
from morejax.models.lora import is_trained, partition
from morejax.models.split import Bound, Params, flatten, merge, split, unflatten, whole
from morejax.optimizers import optimizer
from morejax.state import TrainState, init_state
from morejax.tasks.multiwoz.task import MultiwozTask, TurnPrompts
from morejax.training import ppo as loop
from morejax.training.initialise import initial_params, structure
from morejax.training.rollouts import Frozen, static_shapes


def ppo(parts: Parts) -> dict[str, Any]:
    """Train the policy; returns its best evaluation and what became of the constraints."""
    config = parts.config
    supervised, scaffold = parts.load("supervised"), parts.load("scaffold")
    head_graphdef, head = naturalness.load_head(parts)
    task = parts.task.with_context(replace(parts.task.context, fluency_range=naturalness.fluency_range(parts)))
    measured = thresholds.reference_scores(parts, task, supervised, scaffold, head_graphdef, head)
    numbers = thresholds.fill_numbers(config.step, config.numbers, measured, config.threshold_margin)
    parts.run.describe(thresholds=dict(numbers.thresholds), targets=dict(numbers.targets))
    prompts = _prompts(parts, task, supervised)
    reference = scaffold if config.ppo.ref_context == "reasoned" else supervised
    # Evaluations between iterations are not left in the middle: the loop saves first.
    with parts.decoding.uninterrupted():
        progress = loop.fit(
            task,
            _initial_state(parts, supervised, numbers),
            Frozen(parts.language_model[0], reference, supervised, head_graphdef, head),
            prompts,
            config.step,
            config.ppo,
            static_shapes(prompts, config.ppo.turns, config.context.max_reply),
            run_dir=parts.dir,
            seed=config.seed,
            stop=parts.stop,
            evaluate=lambda params: _quick_scores(parts, params),
            placement=parts.placement,
        )
    return {"best": progress["best"], "constraints": _constraint_table(config.step, progress)}


def _initial_state(parts: Parts, supervised: Params, numbers: StepNumbers) -> TrainState:
    """The supervised policy with a fresh critic."""
    graphdef, abstract = structure(parts.build_policy)
    if parts.model_config.lora.rank:
        return _adapted_state(parts, graphdef, supervised, numbers)
    fresh = initial_params(parts.build_policy, abstract.keys() - supervised.keys(), parts.placement.of_params)

    def make(params: Params) -> TrainState:
        # A copy: the state is donated, the frozen models stay.
        params = jax.tree.map(jnp.copy, params)
        return _state(parts, merge(graphdef, params), numbers)

    if parts.placement.mesh is None:
        return make(fresh | supervised)
    # Made where it is to lie: no device holds the whole of it.
    shardings = parts.placement.of_state(jax.eval_shape(make, fresh | supervised))
    return jax.jit(make, out_shardings=shardings)(fresh | supervised)


def _state(parts: Parts, model: nnx.Module, numbers: StepNumbers) -> TrainState:
    config = parts.config
    tx = optimizer(config.optimizer, config.weight_decay)
    return init_state(model, config.step, numbers, seed=config.seed, tx=tx)


def _adapted_state(parts: Parts, graphdef: nnx.GraphDef, supervised: Params, numbers: StepNumbers) -> TrainState:
    """Fresh adapters and a fresh critic on the supervised model, whose weights are not copied."""
    lora = parts.model_config.lora

    def make(supervised: Params) -> TrainState:
        trained = partition(split(parts.build_policy())[1], lora)[0]
        own = {name: leaf for name, leaf in flatten(supervised).items() if is_trained(name, lora)}
        params = whole(Bound(graphdef, supervised), unflatten(flatten(trained) | own))
        return _state(parts, merge(graphdef, params), numbers).replace(frozen=None)

    shardings = parts.placement.of_state(jax.eval_shape(make, supervised))
    state = jax.jit(make, out_shardings=shardings)(supervised)
    return state.replace(frozen=partition(supervised, lora)[1])


def _prompts(parts: Parts, task: MultiwozTask, supervised: Params) -> list[list[TurnPrompts]]:
    """Prompts of all dialogues to sample from; end to end, their states are the supervised model's."""
    dialogues = parts.corpus.dialogues(parts.ppo_split)
    if parts.config.track == "policy":
        return [task.prompts(dialogue) for dialogue in dialogues]
    contexts = [context for dialogue in dialogues for context in task.corpus_history(dialogue)]
    states = iter(task.track_states(contexts, parts.decoding.write_states(supervised)))
    return [task.prompts(dialogue, [next(states) for _ in dialogue.turns]) for dialogue in dialogues]


def _quick_scores(parts: Parts, params: Params) -> dict[str, float]:
    """Greedy Inform, Success, BLEU and Combined on (a part of) the selection split."""
    predictions = parts.decoding.predict(parts.actor(params), parts.select, limit=parts.config.ppo.eval_dialogues)
    scores = parts.task.score(predictions, parts.select)
    return {name: scores[name] for name in ("inform", "success", "bleu", "combined")}


def _constraint_table(step: StepConfig, progress: dict[str, Any]) -> dict[str, dict[str, float]]:
    first, last = progress["first"], progress["last"]
    return {
        name: {
            "threshold": last[f"constraint/{name}/threshold"],
            "first": first[f"J/{name}"],
            "last": last[f"constraint/{name}/score_ema"],
            "multiplier": last[f"multiplier/{name}"],
        }
        for name in step.constraints
    }
