"""Heads that read a decoder's final hidden states."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from morejax.models.decoder_config import DecoderConfig

_NEGATIVE = -1e9


def vocabulary_logits(hidden: jax.Array, table: jax.Array, config: DecoderConfig) -> jax.Array:
    """Token logits: hidden table^T in the compute type, float32 out; -1e9 on rows that only fill the table up.

    Args:
      hidden: f32[..., D].
      table: f32[R, D], R = `config.vocab_rows`.
      config: of the decoder.

    Returns:
      f32[..., R].
    """
    dtype = jnp.dtype(config.dtype)
    # The transpose outside of the product: the table's gradient then needs no transposed copy of the logits'.
    logits = jnp.einsum(
        "...d,dv->...v", hidden.astype(dtype), table.astype(dtype).T, preferred_element_type=jnp.float32
    )
    if config.vocab_rows == config.vocab_size:
        return logits
    real = jnp.arange(config.vocab_rows) < config.vocab_size
    return jnp.where(jnp.broadcast_to(real, logits.shape), logits, _NEGATIVE)


class PolicyHead(nnx.Module):
    """Hidden states to token logits; tied to the trunk's embedding, or with a matrix of its own."""

    def __init__(self, config: DecoderConfig, *, tied: bool, rngs: nnx.Rngs):
        self.config = config
        shape = (config.vocab_rows, config.width)
        self.kernel = None if tied else nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32))

    def __call__(self, hidden: jax.Array, trunk) -> jax.Array:
        """f32[..., D] to f32[..., V]."""
        if self.kernel is None:
            return trunk.logits(hidden)
        return vocabulary_logits(hidden, self.kernel[...], self.config)


class ValueHead(nnx.Module):
    """H value estimates per position, one for each stream: a two-layer MLP f32[..., D] to f32[..., H]."""

    def __init__(self, width: int, streams: int, *, hidden: int, rngs: nnx.Rngs):
        self.inner = nnx.Linear(width, hidden, rngs=rngs)
        # Zero at the start: the first advantages are then the returns themselves, not noise.
        self.outer = nnx.Linear(hidden, streams, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return self.outer(jax.nn.gelu(self.inner(hidden)))


class RewardHead(nnx.Module):
    """One logit per reply from pooled hidden states: f32[B, 2D] (see `pool`) to f32[B]."""

    def __init__(self, width: int, *, hidden: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(2 * width, rngs=rngs)
        self.inner = nnx.Linear(2 * width, hidden, rngs=rngs)
        self.outer = nnx.Linear(hidden, 1, rngs=rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        return self.outer(jax.nn.gelu(self.inner(self.norm(features))))[..., 0]


def pool(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean and maximum over a reply's positions: f32[B, T, D], bool[B, T] to f32[B, 2D]; zeros where it is empty."""
    weights = mask[..., None].astype(hidden.dtype)
    mean = (hidden * weights).sum(-2) / jnp.maximum(weights.sum(-2), 1.0)
    largest = jnp.where(mask[..., None], hidden, -jnp.inf).max(-2)
    return jnp.concatenate([mean, jnp.where(mask.any(-1, keepdims=True), largest, 0.0)], axis=-1)
