"""What the stage `ppo` starts from, and what it says about the constraints at its end."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from morejax.config import StepConfig, StepNumbers
from morejax.experiments.shared.parts import RunParts
from morejax.models.lora import is_trained, partition
from morejax.models.split import Bound, Params, flatten, merge, split, unflatten, whole
from morejax.optimizers import optimizer
from morejax.state import TrainState, init_state
from morejax.training.initialise import initial_params, structure


def initial_state(parts: RunParts, supervised: Params, numbers: StepNumbers) -> TrainState:
    """The policy that PPO starts from (the supervised model, aloud the scaffold) with a fresh critic."""
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


def _state(parts: RunParts, model: nnx.Module, numbers: StepNumbers) -> TrainState:
    config = parts.config
    tx = optimizer(config.optimizer, config.weight_decay)
    return init_state(model, config.step, numbers, seed=config.seed, tx=tx)


def _adapted_state(parts: RunParts, graphdef: nnx.GraphDef, supervised: Params, numbers: StepNumbers) -> TrainState:
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


def constraint_table(step: StepConfig, progress: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Constraint -> its threshold, J of the first iteration, moving average and multiplier of the last."""
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
