"""Causal self-attention: who sees whom, and the attention of one layer.

Shape letters: B batch, Q query positions, P key positions, D width, N heads, K heads of keys and values, E head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from morejax.models.decoder_config import DecoderConfig
from morejax.models.dot_product import causal_attention, dot_product_attention
from morejax.models.linear import Linear
from morejax.models.rope import Rotation, rotate

_NEGATIVE = -1e9  # finite: a fully masked row (padding) then averages its keys and stays finite


def token_positions(mask: jax.Array) -> jax.Array:
    """Position of every real token, counting real tokens only: i32 of `mask`'s shape `[B, Q]`."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)


def causal_bias(mask: jax.Array) -> jax.Array:
    """Additive attention bias f32[B, 1, Q, Q]: query q sees real keys p <= q."""
    length = mask.shape[-1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return additive(causal[None] & mask[:, None, :])


def additive(sees: jax.Array) -> jax.Array:
    """Additive attention bias f32[B, 1, Q, P] of bool[B, Q, P]."""
    return jnp.where(sees, 0.0, _NEGATIVE)[:, None]


def window_bias(bias: jax.Array, positions: jax.Array, key_positions: jax.Array, window: int) -> jax.Array:
    """`bias` f32[B, 1, Q, P], with keys hidden that lie `window` positions back or more.

    Args:
      bias: of full attention.
      positions: i32[B, Q] of the queries.
      key_positions: i32[B, P]; real tokens are counted, so padding widens no window.
      window: positions that are seen, the query's own included.
    """
    near = positions[:, :, None] - key_positions[:, None, :] < window
    return jnp.where(near[:, None], bias, _NEGATIVE)


class Attention(nnx.Module):
    """Causal attention with one fused projection, whose columns are queries, keys, values, each head after head."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.heads, self.key_heads, self.head_width = config.heads, config.key_heads, config.head_width
        self.queries = config.heads * config.head_width
        keys = config.key_heads * config.head_width
        columns = {"q": self.queries, "k": keys, "v": keys}
        self.qkv = Linear(config.width, columns, 0.02, config.qkv_bias, config, rngs)
        self.out = Linear(self.queries, {"out": config.width}, out_scale(config), config.out_bias, config, rngs)
        self.q_norm = rms_norm(config.head_width, config, rngs) if config.qk_norm else None
        self.k_norm = rms_norm(config.head_width, config, rngs) if config.qk_norm else None

    def project(
        self, x: jax.Array, rotation: Rotation | None = None, start: int = 0
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`[B, Q, D]` to queries `[B, N, Q - start, E]` of positions from `start` on, keys and values `[B, K, Q, E]`.

        Args:
          x: normalised input.
          rotation: of all positions; None with learned ones.
          start: first position whose queries are wanted.
        """
        if start == 0:
            q, k, v = self._split(self.qkv(x))
        else:
            q = self._heads(self.qkv.some(x[:, start:], 0, 1))
            k, v = jnp.split(self._heads(self.qkv.some(x, 1, 3)), 2, axis=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).astype(q.dtype), self.k_norm(k).astype(k.dtype)
        if rotation is not None:
            q, k = rotate(q, rotation.tail(start)), rotate(k, rotation)
        return q, k, v

    def _split(self, qkv: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        if self.key_heads == self.heads:
            q, k, v = jnp.moveaxis(qkv.reshape(*qkv.shape[:2], 3, self.heads, self.head_width), (2, 3), (0, 2))
            return q, k, v
        q, k, v = jnp.split(self._heads(qkv), (self.heads, self.heads + self.key_heads), axis=1)
        return q, k, v

    def _heads(self, y: jax.Array) -> jax.Array:
        """`[B, Q, heads E]` to `[B, heads, Q, E]`."""
        return jnp.moveaxis(y.reshape(*y.shape[:2], -1, self.head_width), 2, 1)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, causal: bool = False) -> jax.Array:
        """Attention with `bias` f32[B, 1, Q, P], and the output projection: `[B, Q, D]`.

        With `causal` the queries are those of the last Q of the P positions, and the bias hides what is behind them.
        """
        attention = causal_attention if causal else dot_product_attention
        mixed = attention(q, k.astype(q.dtype), v.astype(q.dtype), bias)
        return self.out(jnp.moveaxis(mixed, 1, 2).reshape(q.shape[0], q.shape[2], -1))


def out_scale(config: DecoderConfig) -> float:
    """Standard deviation of the first weights that write into the residual stream: smaller the more layers write."""
    return 0.02 / (2 * config.layers) ** 0.5


def rms_norm(width: int, config: DecoderConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """x / sqrt(mean x^2 + eps) times a scale, in float32."""
    return nnx.RMSNorm(width, epsilon=config.norm_eps, dtype=jnp.float32, rngs=rngs)
