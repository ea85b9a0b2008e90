"""The decode loop: one token a row and turn, until every row has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from morejax.models.attention import additive, token_positions
from morejax.models.block import Block
from morejax.models.decoder import Decoder, KVCache
from morejax.sampling import SamplerConfig, draw, filter_logits, penalise


class Sample(NamedTuple):
    """Drawn replies."""

    tokens: jax.Array
    """i32[S, T], padded after the end token."""
    mask: jax.Array
    """bool[S, T], True up to and with the end token."""
    logp: jax.Array
    """f32[S, T], log-probability of each token under the (tempered) policy, before the repetition penalty and the
    filters, nats; 0 on padding. This is PPO's `logp_old`: the ratio to the policy that is trained then starts at 1."""
    values: jax.Array | None = None
    """f32[S, T, H], the critic's estimate before each token, when it reads the policy's hidden states anyway."""
    logp_drawn: jax.Array | None = None
    """f32[S, T], log-probability under the distribution drawn from, penalty and filters applied, nats; 0 on padding and
    when greedy. Equal to `logp` with penalty and filters off."""


class Read(NamedTuple):
    """What a model has read so far."""

    hidden: jax.Array
    """f32[B, D], of the last position."""
    cache: KVCache
    """Keys and values of P positions."""
    key_mask: jax.Array
    """bool[B, P], positions that may be attended to."""
    position: jax.Array
    """i32[B], position of the next token (real tokens before it)."""
    slot: jax.Array
    """i32[], where in the cache the next token goes, the same for all rows."""
    last: jax.Array
    """i32[B], the last token that was read."""
    seen: jax.Array | None = None
    """bool[B, V], tokens read, for the repetition penalty."""


class _Written(NamedTuple):
    tokens: jax.Array
    mask: jax.Array
    logp: jax.Array
    values: jax.Array | None
    logp_drawn: jax.Array | None
    done: jax.Array


def decode_replies(
    model: Any, read: Read, uniforms: jax.Array, config: SamplerConfig
) -> tuple[Sample, Read, jax.Array]:
    """Draw replies in a `while_loop` that ends as soon as every row has ended, or T tokens are drawn.

    Args:
      model: an `ActorCritic`.
      read: the prompts; room for T - 1 more positions in the cache from `slot` on.
      uniforms: f32[B, T] in [0, 1), one for each token.
      config: static settings.

    Returns:
      The replies; the cache with them; i32[], how many of the reply's tokens it holds (the last one drawn is not read
      unless it was followed by another).
    """
    step_of, cache = _decoder(model.trunk, read.cache)
    rows, steps = uniforms.shape
    begin = read.slot

    def turn(state):
        step, read, written = state
        token, read, written = _write(model, read, uniforms, step, written, config)
        slot = begin + step
        key_mask = jax.lax.dynamic_update_slice(read.key_mask, jnp.ones((rows, 1), bool), (0, slot))
        hidden, cache = step_of(token, read.last, read.position + step, slot, key_mask, read.cache)
        return step + 1, read._replace(hidden=hidden, cache=cache, key_mask=key_mask, last=token), written

    def unfinished(state):
        step, _, written = state
        return (step < steps - 1) & ~written.done.all()

    start = (jnp.int32(0), read._replace(cache=cache), _blank(model, rows, config))
    step, read, written = jax.lax.while_loop(unfinished, turn, start)
    # The last token needs no decode after it.
    _, read, written = _write(model, read, uniforms, step, written, config)
    read = read._replace(cache=_stacked(read.cache), position=read.position + step, slot=begin + step)
    return Sample(*written[:-1]), read, step


def _write(
    model: Any, read: Read, uniforms: jax.Array, step: jax.Array, written: _Written, config: SamplerConfig
) -> tuple[jax.Array, Read, _Written]:
    """Choose the next token of every row, and write down what is asked for about it."""
    token, logp, logp_drawn = _choose(model.logits(read.hidden), uniforms[:, step], read.seen, config)
    done = written.done
    token = jnp.where(done, config.pad_id, token)
    if read.seen is not None:
        read = read._replace(seen=read.seen.at[jnp.arange(token.shape[0]), token].set(True))

    def at_step(array: jax.Array | None, new: jax.Array | None) -> Any:
        return None if array is None or new is None else array.at[:, step].set(new)

    return (
        token,
        read,
        _Written(
            tokens=at_step(written.tokens, token),
            mask=at_step(written.mask, ~done),
            logp=at_step(written.logp, jnp.where(done, 0.0, logp)),
            values=None if written.values is None else at_step(written.values, model.value.head(read.hidden)),
            logp_drawn=at_step(written.logp_drawn, jnp.where(done, 0.0, logp_drawn)),
            done=done | (token == config.eos_id),
        ),
    )


def _choose(
    logits: jax.Array, uniform: jax.Array, seen: jax.Array | None, config: SamplerConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens i32[B], and their log-probabilities under the tempered policy and under what they are drawn from."""
    drawn_from = logits.at[:, config.eos_id].add(-config.end_penalty) if config.end_penalty else logits
    drawn_from = drawn_from if seen is None else penalise(drawn_from, seen, config.repetition_penalty)
    if config.temperature == 0:
        token = jnp.argmax(drawn_from, axis=-1).astype(jnp.int32)
        return token, _logp(logits, token), jnp.zeros(token.shape)
    logits = logits / config.temperature
    if not config.filtered:
        token = draw(logits, uniform)
        logp = _logp(logits, token)
        return token, logp, logp
    drawn_from = filter_logits(drawn_from / config.temperature, config)
    token = draw(drawn_from, uniform)
    return token, _logp(logits, token), _logp(drawn_from, token)


def _logp(logits: jax.Array, token: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(logits, token[:, None], 1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _blank(model: Any, rows: int, config: SamplerConfig) -> _Written:
    """Room for the replies."""
    shape = (rows, config.max_new_tokens)
    return _Written(
        tokens=jnp.full(shape, config.pad_id, jnp.int32),
        mask=jnp.zeros(shape, bool),
        logp=jnp.zeros(shape, jnp.float32),
        values=_no_values(model, shape) if config.values else None,
        logp_drawn=jnp.zeros(shape, jnp.float32) if config.logp_drawn else None,
        done=jnp.zeros((rows,), bool),
    )


def _no_values(model: Any, shape: tuple[int, int]) -> jax.Array:
    """Room for the values; a critic with a trunk of its own has nothing to say about the policy's hidden states."""
    if model.value is None or model.value.trunk is not None:
        raise ValueError("SamplerConfig.values needs a model with critic.kind = shared")
    return jnp.zeros((*shape, model.value.head.outer.out_features), jnp.float32)


# ---- layers that stand apart ---------------------------------------------------------------------------------------


def _decoder(trunk: Decoder, cache: KVCache) -> tuple[Callable, Any]:
    """A function like `Decoder.decode`, and the cache in the form it takes.

    Unrolled layers get arrays of their own before the loop, once. Cut out of the stacked ones in every turn, a layer's
    weights, keys and values would be copied each time: half of the time of a step on a CPU. The price is a copy of
    the blocks' weights (in the compute type) while replies are drawn; scanned layers stay stacked and pay in time.
    """
    if trunk.config.scan:
        return trunk.decode, cache
    dtype = jnp.dtype(trunk.config.dtype)
    # Matrices in the type they are multiplied in; vectors stay as they are, some belong to norms.
    blocks = [
        jax.tree.map(lambda leaf, i=index: leaf[i].astype(dtype) if leaf.ndim > 2 else leaf[i], trunk.blocks)
        for index in range(trunk.config.layers)
    ]

    def decode(token, before, position, slot, key_mask, cache):
        return _decode_apart(trunk, blocks, token, before, position, slot, key_mask, cache)

    return decode, tuple(KVCache(*layer) for layer in zip(*cache, strict=True))


def _decode_apart(
    trunk: Decoder,
    blocks: list[Block],
    token: jax.Array,
    before: jax.Array,
    position: jax.Array,
    slot: jax.Array,
    key_mask: jax.Array,
    caches: tuple[KVCache, ...],
) -> tuple[jax.Array, tuple[KVCache, ...]]:
    """`Decoder.decode` over a list of blocks and their caches."""
    positions = position[:, None]
    sight = trunk.sight(additive(key_mask[:, None]), positions, token_positions(key_mask))
    x, kept = trunk.embed_one(token, before, positions), []
    for index, (block, cache) in enumerate(zip(blocks, caches, strict=True)):
        q, *new = block.attention.project(block.norm1(x), sight.rotation)
        cache = KVCache(*(_write_at(whole, part, slot) for whole, part in zip(cache, new, strict=True)))
        x = block.mlp(x + block.attention.attend(q, *cache, sight.bias(trunk.config.windowed(index))))
        kept.append(cache)
    return trunk.final_norm(x[:, 0]), tuple(kept)


def _write_at(whole: jax.Array, new: jax.Array, slot: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(whole, new.astype(whole.dtype), (0, 0, slot, 0))


def _stacked(cache: KVCache | tuple[KVCache, ...]) -> KVCache:
    if isinstance(cache, KVCache):
        return cache
    return KVCache(*(jnp.stack(parts) for parts in zip(*cache, strict=True)))
