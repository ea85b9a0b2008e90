"""The critic's loss on a batch and its gradient."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from morejax import losses
from morejax.batch import Batch, Scales
from morejax.config import StepConfig
from morejax.models.response import response_values
from morejax.models.split import Params, merge
from morejax.state import TrainState


def critic_gradient(
    state: TrainState,
    scales: Scales,
    config: StepConfig,
    actor: Params,
    critic: Params,
    for_critic: jax.Array,
    batch: Batch,
) -> tuple[jax.Array, Params]:
    """Loss of the critic f32[] and its gradient; 0 and nothing for a model without one.

    Args:
      state, scales, config: as in `minibatch.update`.
      actor, critic: both parts' parameters; only the critic's get a gradient.
      for_critic: what a critic on the policy's trunk reads (`policy_gradient.Forward`).
      batch: the sequences.
    """
    if not critic or batch.values_old is None:
        return jnp.float32(0.0), {}
    return jax.value_and_grad(
        lambda critic: _loss(state, merge(state.graphdef, actor | critic), batch, for_critic, scales, config)
    )(critic)


def _loss(
    state: TrainState, model: Any, batch: Batch, hidden: jax.Array, scales: Scales, config: StepConfig
) -> jax.Array:
    """Sum over streams of the mean clipped squared error, this batch's part of it."""
    values = response_values(model, batch.tokens, batch.mask, hidden, batch.context)
    clip = state.hyper.clip_value if config.value_clip else None
    assert batch.values_old is not None  # no critic is trained without
    # Masked before, not only after: the gradient of a NaN that `where` drops is still NaN.
    returns, values_old = (jnp.where(batch.valid, x, 0.0) for x in (batch.returns, batch.values_old))
    loss = losses.value_loss(values, returns, values_old, clip)
    share = batch.token_weights[..., None] / scales.stream_tokens[None, None, :]
    return jnp.where(batch.valid, loss * share, 0.0).sum()
