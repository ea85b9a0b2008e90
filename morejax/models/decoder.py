"""A GPT-2 style decoder: pre-norm, learned positions, layers stacked on a leading axis.

Shape letters: B batch, Q query positions, P key positions (cache length), L layers, D width, N heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

_NEGATIVE = -1e9  # finite: a fully masked row (padding) then averages its keys and stays finite


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and numerics of a decoder."""

    vocab_size: int = 4096
    """Number of token ids; a multiple of 64 keeps sampling fast."""
    max_length: int = 256
    """Largest number of positions (context + response)."""
    layers: int = 4
    """Number of transformer blocks."""
    width: int = 192
    """Width of the residual stream; a multiple of `heads`."""
    heads: int = 6
    """Attention heads."""
    mlp_ratio: int = 4
    """Hidden width of the MLP over `width`."""
    dtype: str = "float32"
    """Compute type, float32 or bfloat16; parameters, norms, softmax and logits stay float32."""
    scan: bool = False
    """Run the stacked layers by `lax.scan` (compile time flat in depth) instead of unrolling them (faster on CPU)."""
    remat: str = "none"
    """Rematerialisation of a block in the backward pass: none, dots (keep matrix products) or full."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"--model.width {self.width} must be a multiple of --model.heads {self.heads}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"--model.dtype must be float32 or bfloat16, not {self.dtype!r}")
        if self.remat not in ("none", "dots", "full"):
            raise ValueError(f"--model.remat must be none, dots or full, not {self.remat!r}")
        for name in ("vocab_size", "max_length", "layers", "width", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"--model.{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")


class KVCache(NamedTuple):
    """Keys and values of all layers, each `[L, B, N, P, E]`."""

    keys: jax.Array
    values: jax.Array


def _normal(scale: float):
    return nnx.initializers.normal(scale)


class Attention(nnx.Module):
    """Causal multi-head attention with one fused projection."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.heads = config.heads
        dtype = jnp.dtype(config.dtype)
        out_scale = 0.02 / (2 * config.layers) ** 0.5
        self.qkv = nnx.Linear(config.width, 3 * config.width, dtype=dtype, kernel_init=_normal(0.02), rngs=rngs)
        self.out = nnx.Linear(config.width, config.width, dtype=dtype, kernel_init=_normal(out_scale), rngs=rngs)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`[B, Q, D]` to queries, keys and values `[B, N, Q, E]`."""
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = jnp.moveaxis(qkv, (2, 3), (0, 2))
        return q, k, v

    def project_tail(self, x: jax.Array, start: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """As `project`, with queries of positions from `start` on only."""
        if start == 0:
            return self.project(x)
        width = x.shape[-1]
        assert self.qkv.bias is not None  # `nnx.Linear` has one unless told otherwise
        kernel, bias = self.qkv.kernel[...], self.qkv.bias[...]
        dtype = self.qkv.dtype

        def heads(x, columns):
            y = jnp.dot(x.astype(dtype), kernel[:, columns].astype(dtype)) + bias[columns].astype(dtype)[None, None, :]
            return jnp.moveaxis(y.reshape(*y.shape[:2], -1, self.heads, width // self.heads), (2, 3), (0, 2))

        (q,) = heads(x[:, start:], slice(0, width))
        k, v = heads(x, slice(width, None))
        return q, k, v

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
        """softmax(q k^T / sqrt(E) + bias) v, with `bias` broadcast to `[B, 1, Q, P]`; the softmax is float32."""
        scores = jnp.einsum("bnqe,bnpe->bnqp", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * (q.shape[-1] ** -0.5) + bias, axis=-1).astype(v.dtype)
        mixed = jnp.einsum("bnqp,bnpe->bqne", weights, v)
        return self.out(mixed.reshape(*mixed.shape[:2], -1))


class Block(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        hidden = config.mlp_ratio * config.width
        out_scale = 0.02 / (2 * config.layers) ** 0.5
        self.norm1 = nnx.LayerNorm(config.width, dtype=jnp.float32, rngs=rngs)
        self.attention = Attention(config, rngs)
        self.norm2 = nnx.LayerNorm(config.width, dtype=jnp.float32, rngs=rngs)
        self.up = nnx.Linear(config.width, hidden, dtype=dtype, kernel_init=_normal(0.02), rngs=rngs)
        self.down = nnx.Linear(hidden, config.width, dtype=dtype, kernel_init=_normal(out_scale), rngs=rngs)

    def mlp(self, x: jax.Array) -> jax.Array:
        return x + self.down(jax.nn.gelu(self.up(self.norm2(x))))

    def __call__(self, x: jax.Array, bias: jax.Array, start: int = 0) -> jax.Array:
        return self.with_keys(x, bias, start)[0]

    def with_keys(self, x: jax.Array, bias: jax.Array, start: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The block's output at positions from `start` on, and keys and values `[B, N, Q, E]` of all of them."""
        q, k, v = self.attention.project_tail(self.norm1(x), start)
        return self.mlp(x[:, start:] + self.attention.attend(q, k, v, bias[:, :, start:])), k, v


class Decoder(nnx.Module):
    """Token ids to final (normalised) hidden states, with or without a key-value cache."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        keys = jax.random.split(rngs.params(), config.layers)
        self.embedding = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (config.vocab_size, config.width), jnp.float32)
        )
        self.positions = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (config.max_length, config.width), jnp.float32)
        )
        self.blocks = jax.vmap(lambda key: Block(config, nnx.Rngs(key)))(keys)
        self.final_norm = nnx.LayerNorm(config.width, dtype=jnp.float32, rngs=rngs)

    def embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """Token plus position embedding, `[B, Q, D]` in the compute type."""
        x = self.embedding[...][tokens] + self.positions[...][positions]
        return x.astype(jnp.dtype(self.config.dtype))

    def _layer(self, index: int) -> Block:
        return jax.tree.map(lambda leaf: leaf[index], self.blocks)

    def hidden(self, tokens: jax.Array, mask: jax.Array, start: int = 0) -> jax.Array:
        """Final hidden states after the last norm.

        Args:
          tokens: i32[B, Q].
          mask: bool[B, Q], True on real tokens; padding may stand anywhere, positions count real tokens only.
          start: first position that is wanted. Nobody reads what the last block makes of those before it: unrolled, it
            computes their keys and values alone. (Under `scan` it is one of many, and all positions go through.)

        Returns:
          f32[B, Q - start, D]; rows of padding are finite and meaningless.
        """
        x = self.embed(tokens, token_positions(mask))
        bias = causal_bias(mask)
        if self.config.scan:
            step = _remat(lambda carry, block: (block(carry, bias), None), self.config.remat)
            x, _ = jax.lax.scan(step, x, self.blocks)
            return self.final_norm(x[:, start:])
        call = _remat(lambda block, carry: block(carry, bias), self.config.remat)
        for index in range(self.config.layers - 1):
            x = call(self._layer(index), x)
        call = _remat(lambda block, carry: block(carry, bias, start), self.config.remat)
        return self.final_norm(call(self._layer(self.config.layers - 1), x))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Tied head: hidden E^T in the compute type, float32 out."""
        # The transpose outside of the product: the table's gradient then needs no transposed copy of the logits'.
        dtype = jnp.dtype(self.config.dtype)
        table = self.embedding[...].astype(dtype)
        return jnp.einsum("...d,dv->...v", hidden.astype(dtype), table.T, preferred_element_type=jnp.float32)

    def prefill(self, tokens: jax.Array, mask: jax.Array, cache_length: int) -> tuple[jax.Array, KVCache]:
        """Read left-padded prompts.

        Args:
          tokens, mask: i32[B, Q], bool[B, Q].
          cache_length: P >= Q, room for the tokens that follow.

        Returns:
          the last position's hidden state f32[B, D] and the cache, filled in [0, Q).
        """
        x = self.embed(tokens, token_positions(mask))
        bias = causal_bias(mask)
        room = ((0, 0), (0, 0), (0, cache_length - tokens.shape[1]), (0, 0))
        if self.config.scan:

            def step(carry, block):
                carry, k, v = block.with_keys(carry, bias)
                return carry, (jnp.pad(k, room), jnp.pad(v, room))

            x, (keys, values) = jax.lax.scan(step, x, self.blocks)
        else:
            parts = []
            for index in range(self.config.layers):
                start = tokens.shape[1] - 1 if index == self.config.layers - 1 else 0
                x, k, v = self._layer(index).with_keys(x, bias, start)
                parts.append((jnp.pad(k, room), jnp.pad(v, room)))
            keys, values = (jnp.stack(part) for part in zip(*parts, strict=True))
        return self.final_norm(x[:, -1]), KVCache(keys, values)

    def decode(
        self, token: jax.Array, position: jax.Array, slot: jax.Array, key_mask: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Read one more token a row.

        Args:
          token: i32[B]; position: i32[B], the token's position (real tokens before it).
          slot: i32[], where in the cache this token goes, the same for all rows.
          key_mask: bool[B, P], keys that may be attended to, this token's included.
          cache: updated in place when donated or carried.

        Returns:
          hidden state f32[B, D] and the cache.
        """
        x = self.embed(token[:, None], position[:, None])
        bias = jnp.where(key_mask, 0.0, _NEGATIVE)[:, None, None, :]

        def layer(x, block, index, cache):
            q, k, v = block.attention.project(block.norm1(x))
            cache = KVCache(
                jax.lax.dynamic_update_slice(cache.keys, k[None], (index, 0, 0, slot, 0)),
                jax.lax.dynamic_update_slice(cache.values, v[None], (index, 0, 0, slot, 0)),
            )
            mixed = block.attention.attend(q, cache.keys[index], cache.values[index], bias)
            return block.mlp(x + mixed), cache

        if self.config.scan:

            def step(carry, inputs):
                block, index = inputs
                return layer(carry[0], block, index, carry[1]), None

            (x, cache), _ = jax.lax.scan(step, (x, cache), (self.blocks, jnp.arange(self.config.layers)))
        else:
            for index in range(self.config.layers):
                x, cache = layer(x, self._layer(index), index, cache)
        return self.final_norm(x[:, 0]), cache


def token_positions(mask: jax.Array) -> jax.Array:
    """Position of every real token, counting real tokens only: i32 of `mask`'s shape `[B, Q]`."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)


def causal_bias(mask: jax.Array) -> jax.Array:
    """Additive attention bias f32[B, 1, Q, Q]: query q sees real keys p <= q."""
    length = mask.shape[-1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return jnp.where(causal[None] & mask[:, None, :], 0.0, _NEGATIVE)[:, None]


def _remat(function: Any, policy: str) -> Any:
    if policy == "none":
        return function
    if policy == "dots":
        return jax.checkpoint(function, policy=jax.checkpoint_policies.checkpoint_dots)
    return jax.checkpoint(function)
