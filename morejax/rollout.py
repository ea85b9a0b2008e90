"""The rollout batch that the step learns from, and the compiled sampler that makes one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from morejax.decoding import Read, Sample, decode_replies
from morejax.models.split import Params, merge
from morejax.sampling import SamplerConfig, draw

__all__ = ["Rollout", "Sample", "SamplerConfig", "compile_sampler", "draw", "sample", "token_logp"]


class Rollout(struct.PyTreeNode):
    """S sampled sequences: C context and T response positions, K objectives, M constraints, H = K + M streams.

    All arrays have the sequences in front, so one sharding fits all. Streams stand in the order of
    `StepConfig.objectives + StepConfig.constraints` wherever an axis H occurs.
    """

    tokens: jax.Array
    """i32[S, C+T]: left-padded context, then right-padded response."""
    context_mask: jax.Array
    """bool[S, C]: real context tokens."""
    resp_mask: jax.Array
    """bool[S, T]: response tokens, the end-of-sequence token included."""
    logp_old: jax.Array
    """f32[S, T]: log-probability of each response token under the policy that sampled it, nats."""
    objectives: jax.Array
    """f32[S, T, K]: language rewards; sequence rewards on the last valid token, dense ones on their token."""
    constraints: jax.Array
    """f32[S, T, M]: reasoning rewards, written the same way."""
    applies: jax.Array
    """bool[S, K+M]: is this stream defined for this sequence? (A greeting has no phone number to check.)"""
    values_old: jax.Array | None = None
    """f32[S, T, H]: the critic's estimates before each response token, in units of the running scale; None without
    critic. With `kl = k1_reward` H is K + M + 1, the KL's last."""
    logp_ref: jax.Array | None = None
    """f32[S, T]: log-probability of each response token under the reference, for `kl = k1_reward | k2 | k3`."""
    ref_logps: jax.Array | None = None
    """f32[S, T, V]: the reference's whole distribution, for `kl = full`."""
    scores: jax.Array | None = None
    """f32[S, K+M]: what is averaged into J; None takes the sum of the sequence's rewards."""
    score_weights: jax.Array | None = None
    """f32[S, K+M]: weight of the sequence in that average; None weighs all alike. Turns of a dialogue share its one."""
    group: jax.Array | None = None
    """i32[S]: sequences sampled from one prompt share a number in [0, S over all devices), for group baselines."""
    dialogue: jax.Array | None = None
    """i32[S]: turns of one dialogue share a number, for discounting over turns."""
    turn: jax.Array | None = None
    """i32[S]: place of the turn in its dialogue."""

    @property
    def mask(self) -> jax.Array:
        """bool[S, C+T]: real tokens."""
        return jnp.concatenate([self.context_mask, self.resp_mask], axis=1)


def sample(
    graphdef: nnx.GraphDef,
    params: Params,
    prompts: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    config: SamplerConfig,
) -> Sample:
    """Prefill the prompts, then decode in a `while_loop` until every row has ended or T tokens are drawn.

    Args:
      graphdef, params: an `ActorCritic`.
      prompts, mask: i32[S, C], bool[S, C], left-padded.
      key: one PRNG key for the batch.
      config: static settings.

    Returns:
      a `Sample` of S x `config.samples` rows; the replies to a prompt stand behind one another.
    """
    model = merge(graphdef, params)
    read = repeat_rows(read_prompts(model, prompts, mask, config), config.samples)
    uniforms = uniform_numbers(key, prompts.shape[0] * config.samples, config.max_new_tokens)
    return decode_replies(model, read, uniforms, config)[0]


def read_prompts(model: Any, prompts: jax.Array, mask: jax.Array, config: SamplerConfig) -> Read:
    """Prefill: the prompts' last hidden states and a cache with room for replies."""
    length = prompts.shape[1] + config.max_new_tokens
    hidden, cache = model.trunk.prefill(prompts, mask, length, config.cache_dtype)
    return Read(
        hidden=hidden,
        cache=cache,
        key_mask=jnp.pad(mask, ((0, 0), (0, config.max_new_tokens))),
        position=mask.sum(-1).astype(jnp.int32),
        slot=jnp.int32(prompts.shape[1]),
        # Left-padded: real wherever there is a prompt at all.
        last=prompts[:, -1],
        seen=tokens_seen(prompts, mask, model.trunk.config.vocab_rows) if config.repetition_penalty != 1 else None,
    )


def tokens_seen(tokens: jax.Array, mask: jax.Array, vocab: int) -> jax.Array:
    """bool[B, V]: does this token stand among the real ones of a row, i32[B, Q] and bool[B, Q]?"""
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], vocab), bool).at[rows, tokens].max(mask)


def repeat_rows(read: Read, times: int) -> Read:
    """Every row several times, one behind the other: a prompt is read once, however many replies it gets."""
    if times == 1:
        return read

    def repeat(x: jax.Array, axis: int = 0) -> jax.Array:
        wide = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), (*x.shape[: axis + 1], times, *x.shape[axis + 1 :]))
        return wide.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])

    return Read(
        hidden=repeat(read.hidden),
        cache=jax.tree.map(lambda x: repeat(x, 1), read.cache),
        key_mask=repeat(read.key_mask),
        position=repeat(read.position),
        slot=read.slot,
        last=repeat(read.last),
        seen=None if read.seen is None else repeat(read.seen),
    )


def uniform_numbers(key: jax.Array, rows: int, steps: int) -> jax.Array:
    """f32[B, T] in [0, 1), drawn per row: the same prompt gets the same text wherever its shard lies."""
    return jax.vmap(lambda k: jax.random.uniform(k, (steps,)))(jax.random.split(key, rows))


def compile_sampler(graphdef: nnx.GraphDef, config: SamplerConfig) -> Callable[..., Sample]:
    """`sample` jitted with the structure bound.

    Args:
      graphdef: of an `ActorCritic`.
      config: static settings.

    Returns:
      A function of (params, prompts i32[S, C], mask bool[S, C], key) that compiles once for each shape. Parameters and
      prompts may lie on a mesh: the program runs where they are.
    """
    return jax.jit(partial(_bound_sample, graphdef, config))


def _bound_sample(graphdef, config, params, prompts, mask, key):
    return sample(graphdef, params, prompts, mask, key, config)


def token_logp(logps: jax.Array, tokens: jax.Array) -> jax.Array:
    """f32[..., V] log-probabilities at i32[...] tokens."""
    return jnp.take_along_axis(logps, tokens[..., None], axis=-1)[..., 0]
