"""One decoder for all families: pre-norm blocks, their parameters stacked on a leading axis.

Shape letters: B batch, Q query positions, P key positions (cache length), L layers, D width, K heads of keys and
values, E head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from morejax.models.attention import additive, causal_bias, token_positions, window_bias
from morejax.models.block import Block, Sight, norm
from morejax.models.decoder_config import DecoderConfig
from morejax.models.dropout import Dropout, dropped
from morejax.models.heads import vocabulary_logits
from morejax.models.rope import rotation


class KVCache(NamedTuple):
    """Keys (rotated, where positions are) and values of all layers, each `[L, B, K, P, E]`."""

    keys: jax.Array
    values: jax.Array


class Decoder(nnx.Module):
    """Token ids to final (normalised) hidden states, with or without a key-value cache."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        keys = jax.random.split(rngs.params(), config.layers)
        self.embedding = _table(config.vocab_rows, config, rngs)
        self.positions = _table(config.max_length, config, rngs) if config.positions == "learned" else None
        self.shift = nnx.Param(jnp.full((config.width,), 0.5, jnp.float32)) if config.shift else None
        self.blocks = jax.vmap(lambda key: Block(config, nnx.Rngs(key)))(keys)
        self.final_norm = norm(config, rngs)

    def embed(
        self, tokens: jax.Array, mask: jax.Array, positions: jax.Array, before: jax.Array | None = None
    ) -> jax.Array:
        """Token embedding, plus a share of that of the token before, plus that of learned positions.

        Args:
          tokens, mask, positions: `[B, Q]`, token, is it real, and its position.
          before: i32[B], the real token before the first of these, below 0 where there is none; None: there is none.

        Returns:
          `[B, Q, D]` in the compute type.
        """
        x = self.embedding[...][tokens]
        if self.shift is not None:
            first = jnp.zeros_like(x[:, 0]) if before is None else self.embedding[...][before] * (before >= 0)[:, None]
            x = x + self.shift[...][None, None] * _previous(x, mask, first)
        if self.positions is not None:
            x = x + self.positions[...][positions]
        return x.astype(jnp.dtype(self.config.dtype))

    def hidden(self, tokens: jax.Array, mask: jax.Array, start: int = 0, dropout: Dropout | None = None) -> jax.Array:
        """Final hidden states after the last norm.

        Args:
          tokens: i32[B, Q].
          mask: bool[B, Q], True on real tokens; padding may stand anywhere, positions count real tokens only.
          start: first position that is wanted. Nobody reads what the last block makes of those before it: unrolled, it
            computes their keys and values alone. (Under `scan` it is one of many, and all positions go through.)
          dropout: of embeddings and of what every block adds; None: none.

        Returns:
          f32[B, Q - start, D]; rows of padding are finite and meaningless.
        """
        positions = token_positions(mask)
        x, sight = self.embed(tokens, mask, positions), self.sight(causal_bias(mask), positions, positions)
        x = dropped(x, dropout, self.config.layers)

        def layer(x, block, index, windowed, start=0):
            here = None if dropout is None else dropout.at(index)
            return block(x, sight, windowed, start, here)[0]

        if self.config.scan:

            def step(carry, block, windowed):
                index, x = carry
                return (index + 1, layer(x, block, index, windowed)), None

            (_, x), _ = self._scan(step, (jnp.int32(0), x))
            return self.final_norm(x[:, start:])
        for index in range(self.config.layers):
            windowed, begin = self.config.windowed(index), start if index == self.config.layers - 1 else 0
            call = _remat(lambda x, block, i=index, w=windowed, b=begin: layer(x, block, i, w, b), self.config.remat)
            x = call(x, self._layer(index))
        return self.final_norm(x)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Tied head: hidden E^T in the compute type, float32 out."""
        return vocabulary_logits(hidden, self.embedding[...], self.config)

    def prefill(
        self, tokens: jax.Array, mask: jax.Array, cache_length: int, cache_dtype: str | None = None
    ) -> tuple[jax.Array, KVCache]:
        """Read left-padded prompts.

        Args:
          tokens, mask: i32[B, Q], bool[B, Q].
          cache_length: P >= Q, room for the tokens that follow.
          cache_dtype: type that keys and values are kept in; None takes the compute type.

        Returns:
          the last position's hidden state f32[B, D] and the cache, filled in [0, Q).
        """
        positions = token_positions(mask)
        x, sight = self.embed(tokens, mask, positions), self.sight(causal_bias(mask), positions, positions)
        dtype = jnp.dtype(cache_dtype or self.config.dtype)

        def kept(x: jax.Array) -> jax.Array:
            return jnp.pad(x.astype(dtype), ((0, 0), (0, 0), (0, cache_length - tokens.shape[1]), (0, 0)))

        if self.config.scan:

            def step(x, block, windowed):
                x, k, v = block(x, sight, windowed)
                return x, (kept(k), kept(v))

            x, (keys, values) = self._scan(step, x, remat="none")
        else:
            parts = []
            for index in range(self.config.layers):
                start = tokens.shape[1] - 1 if index == self.config.layers - 1 else 0
                x, k, v = self._layer(index)(x, sight, self.config.windowed(index), start)
                parts.append((kept(k), kept(v)))
            keys, values = (jnp.stack(part) for part in zip(*parts, strict=True))
        return self.final_norm(x[:, -1]), KVCache(keys, values)

    def decode(
        self,
        token: jax.Array,
        before: jax.Array,
        position: jax.Array,
        slot: jax.Array,
        key_mask: jax.Array,
        cache: KVCache,
    ) -> tuple[jax.Array, KVCache]:
        """Read one more token a row.

        Args:
          token, before: i32[B], and the token before it.
          position: i32[B], the token's position (real tokens before it).
          slot: i32[], where in the cache this token goes, the same for all rows.
          key_mask: bool[B, P], keys that may be attended to, this token's included.
          cache: updated in place when donated or carried.

        Returns:
          hidden state f32[B, D] and the cache.
        """
        positions = position[:, None]
        sight = self.sight(additive(key_mask[:, None]), positions, token_positions(key_mask))
        x, cache = self._cached(self.embed_one(token, before, positions), sight, slot, cache)
        return self.final_norm(x[:, 0]), cache

    def embed_one(self, token: jax.Array, before: jax.Array, positions: jax.Array) -> jax.Array:
        """`embed` of one more token a row: i32[B], i32[B], i32[B, 1] to `[B, 1, D]`."""
        return self.embed(token[:, None], jnp.ones((token.shape[0], 1), bool), positions, before)

    def extend(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        before: jax.Array,
        position: jax.Array,
        slot: jax.Array,
        key_mask: jax.Array,
        cache: KVCache,
    ) -> tuple[jax.Array, KVCache]:
        """Read a block of more tokens a row: the next turn of a conversation whose earlier ones are in the cache.

        Args:
          tokens, mask: i32[B, Q], bool[B, Q], left-padded.
          before: i32[B], the last token read before, below 0 where there is none.
          position: i32[B], position of the first real new token (real tokens before it).
          slot: i32[], where in the cache the block goes, [slot, slot + Q), behind everything that is filled.
          key_mask: bool[B, P], keys filled before that may be attended to.
          cache: updated in place when donated or carried.

        Returns:
          the last position's hidden state f32[B, D] and the cache.
        """
        length = tokens.shape[1]
        positions = position[:, None] + token_positions(mask)
        block = jnp.tril(jnp.ones((length, length), bool))[None] & mask[:, None, :]
        earlier = jnp.broadcast_to(key_mask[:, None, :], (*tokens.shape, key_mask.shape[1]))
        sees = jax.lax.dynamic_update_slice(earlier, block, (0, 0, slot))
        key_positions = jax.lax.dynamic_update_slice(token_positions(key_mask), positions, (0, slot))
        sight = self.sight(additive(sees), positions, key_positions)
        x, cache = self._cached(self.embed(tokens, mask, positions, before), sight, slot, cache, start=length - 1)
        return self.final_norm(x[:, -1]), cache

    def _cached(
        self, x: jax.Array, sight: Sight, slot: jax.Array, cache: KVCache, start: int = 0
    ) -> tuple[jax.Array, KVCache]:
        """All blocks, their keys and values written from `slot` on, attention over the whole cache."""

        def layer(x, block, index, windowed, cache, start=0):
            q, k, v = block.attention.project(block.norm1(x), sight.rotation, start)
            cache = KVCache(*(_write(whole, new, index, slot) for whole, new in zip(cache, (k, v), strict=True)))
            bias = sight.bias(windowed, start)
            mixed = block.attention.attend(q, cache.keys[index], cache.values[index], bias)
            return block.mlp(x[:, start:] + mixed), cache

        if not self.config.scan:
            for index in range(self.config.layers):
                begin = start if index == self.config.layers - 1 else 0
                x, cache = layer(x, self._layer(index), index, self.config.windowed(index), cache, begin)
            return x, cache

        def step(carry, block, windowed):
            index, x, cache = carry
            return (index + 1, *layer(x, block, index, windowed, cache)), None

        (_, x, cache), _ = self._scan(step, (jnp.int32(0), x, cache), remat="none")
        return x, cache

    def sight(self, bias: jax.Array, positions: jax.Array, key_positions: jax.Array) -> Sight:
        """Biases and angles of queries at i32[B, Q] and keys at i32[B, P], given full attention's bias."""
        config = self.config
        return Sight(
            full=bias,
            # No key lies further back than there are keys.
            windowed=window_bias(bias, positions, key_positions, config.window)
            if 0 < config.window < key_positions.shape[1]
            else None,
            rotation=rotation(config.rope, config.head_width, positions) if config.positions == "rope" else None,
        )

    def _layer(self, index: int) -> Block:
        return jax.tree.map(lambda leaf: leaf[index], self.blocks)

    def _scan(self, step: Callable, carry: Any, remat: str | None = None) -> tuple[Any, Any]:
        """`step(carry, block, windowed) -> (carry, out)` over the stacked layers."""
        windowed = [self.config.windowed(index) for index in range(self.config.layers)]
        policy = self.config.remat if remat is None else remat
        if len(set(windowed)) == 1:
            call = _remat(lambda carry, block: step(carry, block, windowed[0]), policy)
            return jax.lax.scan(call, carry, self.blocks)
        call = _remat(lambda carry, inputs: step(carry, *inputs), policy)
        return jax.lax.scan(call, carry, (self.blocks, jnp.array(windowed)))


def _table(rows: int, config: DecoderConfig, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, config.width), jnp.float32))


def _previous(x: jax.Array, mask: jax.Array, first: jax.Array) -> jax.Array:
    """Of every real position the row `[B, Q, D]` of the real one before it, wherever padding stands; first `[B, D]`."""
    # Number of the last real position before each, -1 where there is none.
    last = jax.lax.cummax(jnp.where(mask, jnp.arange(mask.shape[1]), -1), axis=1)
    last = jnp.pad(last, ((0, 0), (1, 0)), constant_values=-1)[:, :-1, None]
    return jnp.where(last < 0, first[:, None], jnp.take_along_axis(x, jnp.maximum(last, 0), axis=1))


def _write(whole: jax.Array, new: jax.Array, layer: jax.Array | int, slot: jax.Array) -> jax.Array:
    """Put `[B, K, Q, E]` into `[L, B, K, P, E]` at a layer, from a slot on."""
    return jax.lax.dynamic_update_slice(whole, new.astype(whole.dtype)[None], (layer, 0, 0, slot, 0))


def _remat(function: Any, policy: str) -> Any:
    if policy == "none":
        return function
    if policy == "dots":
        return jax.checkpoint(function, policy=jax.checkpoint_policies.checkpoint_dots)
    return jax.checkpoint(function)
