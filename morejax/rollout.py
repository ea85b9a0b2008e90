"""The rollout batch that the step learns from, and the compiled sampler that makes one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, struct

from morejax.models.split import Params, merge


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


@dataclass(frozen=True)
class SamplerConfig:
    """How replies are drawn."""

    max_new_tokens: int = 48
    """T: most tokens of a reply, the end token included."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    eos_id: int = 1
    """Token that ends a reply."""
    pad_id: int = 0
    """Token written after the end."""
    values: bool = False
    """Also return the values of a shared critic, which the hidden states give for next to nothing."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"--sampler.temperature must not be negative: {self.temperature}")


class Sample(NamedTuple):
    """Drawn replies."""

    tokens: jax.Array
    """i32[S, T], padded after the end token."""
    mask: jax.Array
    """bool[S, T], True up to and with the end token."""
    logp: jax.Array
    """f32[S, T], log-probability of each token under the sampled (tempered) distribution; 0 on padding."""
    values: jax.Array | None = None
    """f32[S, T, H], the critic's estimate before each token, when it reads the policy's hidden states anyway."""


def draw(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """Sample a row's categorical distribution with one uniform number by a two-level inverse CDF.

    The vocabulary is cut in blocks of 64; the block is found on the blocks' sums and the token inside the block, so
    that no pass over the whole vocabulary is sequential: some 25 times faster on CPU than Gumbel noise at V = 8192.

    Args:
      logits: f32[S, V], V a multiple of 64 (other sizes are padded).
      uniform: f32[S] in [0, 1).

    Returns:
      i32[S].
    """
    vocab = logits.shape[-1]
    short = -vocab % 64
    if short:
        logits = jnp.pad(logits, ((0, 0), (0, short)), constant_values=-jnp.inf)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True)).reshape(logits.shape[0], -1, 64)
    sums = weights.sum(-1)
    blocks = jnp.cumsum(sums, axis=-1)
    target = uniform * blocks[:, -1]
    block = _first_above(blocks, target, sums)
    before = jnp.where(block > 0, jnp.take_along_axis(blocks, jnp.maximum(block - 1, 0)[:, None], 1)[:, 0], 0.0)
    inside = jnp.take_along_axis(weights, block[:, None, None], 1)[:, 0]
    within = _first_above(jnp.cumsum(inside, axis=-1), target - before, inside)
    return (block * 64 + within).astype(jnp.int32)


def _first_above(cumulative: jax.Array, target: jax.Array, weights: jax.Array) -> jax.Array:
    """First index i32[S] of positive weight whose cumulative weight f32[S, N] passes the target f32[S].

    Cumulative sums are parallel, so rounding may let one grow at a zero weight, or end short of the target: an index
    without weight is never taken, and past the end it is the last one with any.
    """
    present = weights > 0
    passed = (cumulative > target[:, None]) & present
    last = weights.shape[-1] - 1 - jnp.argmax(present[:, ::-1], axis=-1)
    return jnp.where(passed.any(-1), jnp.argmax(passed, axis=-1), last)


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
      graphdef, params: an `ActorCritic` (or any module with `trunk.prefill`, `trunk.decode`, `logits`).
      prompts, mask: i32[S, C], bool[S, C], left-padded.
      key: one PRNG key for the batch.
      config: static settings.

    Returns:
      a `Sample`.
    """
    model = merge(graphdef, params)
    rows, context = prompts.shape
    steps = config.max_new_tokens
    hidden, cache = model.trunk.prefill(prompts, mask, context + steps)
    lengths = mask.sum(-1).astype(jnp.int32)
    key_mask = jnp.pad(mask, ((0, 0), (0, steps)))
    # One number a row and step, drawn per row: the same prompt gets the same text wherever its shard lies.
    uniforms = jax.vmap(lambda k: jax.random.uniform(k, (steps,)))(jax.random.split(key, rows))

    def choose(hidden, step):
        logits = model.logits(hidden)
        if config.temperature == 0:
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            logits = logits / config.temperature
            token = draw(logits, uniforms[:, step])
        chosen = jnp.take_along_axis(logits, token[:, None], 1)[:, 0]
        return token, chosen - jax.nn.logsumexp(logits, axis=-1)

    def write(carry, step):
        tokens, valid, logps, values, done, hidden, cache, key_mask = carry
        token, logp = choose(hidden, step)
        if values is not None:
            values = values.at[:, step].set(model.value.head(hidden))
        token = jnp.where(done, config.pad_id, token)
        tokens = tokens.at[:, step].set(token)
        valid = valid.at[:, step].set(~done)
        logps = logps.at[:, step].set(jnp.where(done, 0.0, logp))
        return token, (tokens, valid, logps, values, done | (token == config.eos_id), hidden, cache, key_mask)

    def body(state):
        step, carry = state
        token, carry = write(carry, step)
        *written, done, hidden, cache, key_mask = carry
        slot = context + step
        key_mask = jax.lax.dynamic_update_slice(key_mask, jnp.ones((rows, 1), bool), (0, slot))
        hidden, cache = model.trunk.decode(token, lengths + step, slot, key_mask, cache)
        return step + 1, (*written, done, hidden, cache, key_mask)

    def unfinished(state):
        step, carry = state
        return (step < steps - 1) & ~carry[4].all()

    carry = (
        jnp.full((rows, steps), config.pad_id, jnp.int32),
        jnp.zeros((rows, steps), bool),
        jnp.zeros((rows, steps), jnp.float32),
        _no_values(model, rows, steps) if config.values else None,
        jnp.zeros((rows,), bool),
        hidden,
        cache,
        key_mask,
    )
    step, carry = jax.lax.while_loop(unfinished, body, (jnp.int32(0), carry))
    # The last token needs no decode after it.
    _, carry = write(carry, step)
    return Sample(*carry[:4])


def _no_values(model, rows: int, steps: int) -> jax.Array:
    """Room for the values; a critic with a trunk of its own has nothing to say about the policy's hidden states."""
    if model.value is None or model.value.trunk is not None:
        raise ValueError("SamplerConfig.values needs a model with critic.kind = shared")
    return jnp.zeros((rows, steps, model.value.head.outer.out_features), jnp.float32)


def compile_sampler(graphdef: nnx.GraphDef, config: SamplerConfig):
    """`sample` jitted with the structure bound: call it with (params, prompts, mask, key)."""
    return jax.jit(partial(_bound_sample, graphdef, config))


def _bound_sample(graphdef, config, params, prompts, mask, key):
    return sample(graphdef, params, prompts, mask, key, config)


def token_logp(logps: jax.Array, tokens: jax.Array) -> jax.Array:
    """f32[..., V] log-probabilities at i32[...] tokens."""
    return jnp.take_along_axis(logps, tokens[..., None], axis=-1)[..., 0]
