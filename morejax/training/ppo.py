"""The PPO stage: sample replies to whole dialogues, score them on the host, take one compiled step; again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from morejax.compile import compile_step
from morejax.config import StepConfig
from morejax.models.split import whole
from morejax.state import TrainState
from morejax.tasks.streams import NonFiniteStream
from morejax.training import ppo_loop
from morejax.training.language_model import NonFinite
from morejax.training.ppo_config import PPOConfig
from morejax.training.ppo_loop import Advance, Watch
from morejax.training.rollouts import Frozen, Sampler, Shapes, plan
from morejax.training.task import Task, TurnPrompts


def fit(
    task: Task,
    state: TrainState,
    frozen: Frozen,
    prompts: Sequence[Sequence[TurnPrompts]],
    step: StepConfig,
    ppo: PPOConfig,
    shapes: Shapes,
    watch: Watch,
    *,
    seed: int,
) -> dict[str, Any]:
    """Run the loop; resumes from the newest checkpoint of the stage.

    Args:
        task: streams and tokens.
        state: fresh train state.
        frozen: reference, language model, head.
        prompts: of every dialogue to sample from.
        step: structure of the step.
        ppo: numbers of the loop.
        shapes: static sizes.
        watch: folder, signals, evaluation and placement.
        seed: of the order of dialogues.

    Returns:
        {"best": {...}, "first": metrics of the first iteration, "last": of the last}.

    Raises:
        NonFinite: a number is NaN or infinite; names stream and iteration. The last checkpoint is from before.
        Interrupted: after a signal, once a checkpoint is written.
    """

    def make_advance(state: TrainState, done: int) -> Advance:
        sampler = Sampler(task, state, frozen, step, shapes, ppo, watch.placement)
        train = compile_step(step, mesh=watch.placement.mesh, state=state)
        batches = plan([len(turns) * ppo.samples for turns in prompts], shapes.turns, seed)
        for _ in range(done):
            next(batches)

        def advance(state: TrainState, iteration: int):
            rows = [prompt for number in next(batches) for _ in range(ppo.samples) for prompt in prompts[number]]
            key, sample_key = jax.random.split(state.key)
            try:
                rollout, count = sampler(whole(state.graphdef, state.params), rows, sample_key)
            except NonFiniteStream as error:
                raise NonFinite(f"ppo, iteration {iteration}: {error}; the checkpoint before it is kept") from error
            return *train(state.replace(key=key), rollout), count

        return advance

    return ppo_loop.run(state, make_advance, ppo, watch)
