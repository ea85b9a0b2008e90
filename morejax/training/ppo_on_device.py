"""The PPO stage where rewards run on the device: every iteration is one compiled program (`morejax.iterate`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from morejax.config import StepConfig
from morejax.iterate import Frozen, Prompts, RewardFn, compile_iteration
from morejax.rollout import SamplerConfig
from morejax.state import TrainState
from morejax.training import ppo_loop
from morejax.training.ppo_config import PPOConfig
from morejax.training.ppo_loop import Advance, Watch


def fit(
    state: TrainState,
    frozen: Frozen,
    prompts: Callable[[int], Prompts],
    reward_fn: RewardFn,
    step: StepConfig,
    sampler: SamplerConfig,
    ppo: PPOConfig,
    watch: Watch,
) -> dict[str, Any]:
    """Run the loop; resumes from the newest checkpoint of the stage.

    Args:
        state: fresh train state.
        frozen: reference, and what rewards read.
        prompts: iteration, from 1, to what it answers; a pure function, so that a resumed run goes on alike.
        reward_fn: judges replies.
        step, sampler: static settings.
        ppo: numbers of the loop.
        watch: folder, signals, evaluation and placement.

    Returns:
        {"best": {...}, "first": metrics of the first iteration, "last": of the last}.

    Raises:
        NonFinite: a number is NaN or infinite. The last checkpoint is from before.
        Interrupted: after a signal, once a checkpoint is written.
    """

    def make_advance(state: TrainState, _done: int) -> Advance:
        compiled = compile_iteration(reward_fn, step, sampler, mesh=watch.placement.mesh, state=state)

        def advance(state: TrainState, iteration: int):
            state, metrics = compiled(state, watch.placement.rows(prompts(iteration)), frozen)
            return state, metrics, metrics["response_tokens"]

        return advance

    return ppo_loop.run(state, make_advance, ppo, watch)
