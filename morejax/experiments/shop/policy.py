"""The stage `ppo`: constrained PPO from the supervised policy, anchored to the scaffold."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from morejax import iterate
from morejax.experiments.shared import naturalness, thresholds
from morejax.experiments.shared.policy_state import constraint_table, initial_state
from morejax.experiments.shop.evaluation import quick_scores
from morejax.experiments.shop.parts import ShopParts
from morejax.experiments.shop.prompt_table import PromptTable
from morejax.experiments.shop.task import ShopTask
from morejax.models.temperature import at_temperature
from morejax.rollout import SamplerConfig
from morejax.state import TrainState
from morejax.tasks.shop import on_device
from morejax.training import ppo as on_host
from morejax.training import ppo_on_device
from morejax.training.ppo_loop import Watch
from morejax.training.rollouts import Frozen, static_shapes


def ppo(parts: ShopParts) -> dict[str, Any]:
    """Train the policy; returns its best evaluation and what became of the constraints."""
    config = parts.config
    supervised, scaffold = parts.load("supervised"), parts.load("scaffold")
    head_graphdef, head = naturalness.load_head(parts)
    task = parts.task_with(parts.reward_streams, naturalness.fluency_range(parts))
    measured = thresholds.reference_scores(parts, task, supervised, scaffold, head_graphdef, head)
    numbers = thresholds.fill_numbers(config.step, config.numbers, measured, config.threshold_margin)
    device = runs_on_device(parts)
    parts.run.describe(thresholds=dict(numbers.thresholds), targets=dict(numbers.targets), rewards_on_device=device)
    start = at_temperature(supervised, config.ppo.temperature)
    reference = at_temperature(scaffold, config.ppo.temperature) if config.ppo.ref_context == "reasoned" else start
    frozen = Frozen(parts.language_model[0], reference, supervised, head_graphdef, head)
    # Evaluations between iterations are not left in the middle: the loop saves first.
    with parts.decoding.uninterrupted():
        progress = (_on_device if device else _on_host)(parts, task, frozen, initial_state(parts, start, numbers))
    return {"best": progress["best"], "constraints": constraint_table(config.step, progress), "on_device": device}


def runs_on_device(parts: ShopParts) -> bool:
    """Can every stream be computed on the device, with turns that stand on their own?"""
    config, numbers = parts.config, parts.config.numbers
    known = {*on_device.OBJECTIVES, *on_device.CONSTRAINTS}
    later_turns = numbers.gamma_turn > 0 or any(value > 0 for value in numbers.stream_gamma_turn.values())
    return config.on_device == "auto" and known.issuperset(parts.reward_streams) and not later_turns


def _on_device(parts: ShopParts, task: ShopTask, frozen: Frozen, state: TrainState) -> dict[str, Any]:
    """One program an iteration."""
    config = parts.config
    prompts = [prompt for dialogue in parts.corpus.dialogues(parts.fit) for prompt in task.prompts(dialogue)]
    table = PromptTable(
        parts.corpus.split(parts.fit),
        prompts,
        rows=config.ppo.turns,
        samples=config.ppo.samples,
        reply=config.context.max_reply,
        reasoned=config.ppo.ref_context == "reasoned",
        pad_id=task.pad_id,
        seed=config.seed,
    )
    judges = on_device.shop_judges(
        fluency_range=jnp.asarray(task.context.fluency_range, jnp.float32),
        language_model=frozen.language_model,
        head=frozen.head,
    )
    return ppo_on_device.fit(
        state,
        iterate.Frozen(frozen.reference, frozen.graphdef, judges),
        table,
        _reward(parts, frozen.graphdef, frozen.head_graphdef),
        config.step,
        SamplerConfig(config.context.max_reply, eos_id=task.eos_id, pad_id=task.pad_id),
        config.ppo,
        _watch(parts),
    )


def _reward(parts: ShopParts, graphdef: nnx.GraphDef, head_graphdef: nnx.GraphDef) -> iterate.RewardFn:
    step = parts.config.step
    return on_device.shop_rewards(step.objectives, step.constraints, graphdef, head_graphdef)


def _on_host(parts: ShopParts, task: ShopTask, frozen: Frozen, state: TrainState) -> dict[str, Any]:
    """Whole dialogues, rewards on the host."""
    config = parts.config
    prompts = [task.prompts(dialogue) for dialogue in parts.corpus.dialogues(parts.fit)]
    return on_host.fit(
        task,
        state,
        frozen,
        prompts,
        config.step,
        config.ppo,
        static_shapes(prompts, config.ppo.turns, config.context.max_reply),
        _watch(parts),
        seed=config.seed,
    )


def _watch(parts: ShopParts) -> Watch:
    return Watch(parts.dir, parts.stop, lambda params: quick_scores(parts, parts.actor(params)), parts.placement)
