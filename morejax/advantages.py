"""Advantages per reward stream: generalised advantage estimation, normalisation, running scales.

Every function keeps the H streams (objectives and constraints) apart on the last axis; they are mixed
only in the policy loss, so that multipliers and weights may change without making a value stale.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from morejax.collectives import masked_moments

NORMALISATIONS = ("stream", "center", "none")

# Below these a standard deviation is float32 rounding noise, not signal.
_ABSOLUTE_FLOOR = 1e-8
_ROUNDING_FLOOR = 1e-4  # times |mean|


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: jax.Array, lam: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation for every stream, in one reverse scan.

        delta_t = r_t + gamma V_{t+1} m_{t+1} - V_t
        A_t     = m_t (delta_t + gamma lam A_{t+1}),      R_t = A_t + V_t

    The value after the last valid token is 0 (the sequence ends there). Positions outside the mask get 0
    and are never read.

    Args:
        rewards: f32[S, T, H], reward of each token in each stream.
        values: f32[S, T, H], critic value before each token, in reward units.
        mask: bool[S, T], valid response tokens (one contiguous run per sequence).
        gamma: f32[H], discount per token.
        lam: f32[H], GAE lambda, 0 (one-step) to 1 (Monte Carlo).

    Returns:
        advantages f32[S, T, H] and returns f32[S, T, H], both in reward units.

    Source: Schulman et al., "High-Dimensional Continuous Control Using GAE", arXiv 1506.02438, eq. 16.
    """
    chex.assert_rank(rewards, 3)
    chex.assert_equal_shape([rewards, values])
    sequences, tokens, streams = rewards.shape
    chex.assert_shape(mask, (sequences, tokens))
    chex.assert_shape([gamma, lam], (streams,))
    valid = jnp.broadcast_to(mask[:, :, None], rewards.shape)
    values = jnp.where(valid, values, 0.0)
    next_values = jnp.concatenate([values[:, 1:], jnp.zeros_like(values[:, :1])], axis=1)
    deltas = jnp.where(valid, rewards + gamma[None, None, :] * next_values - values, 0.0)
    decay = jnp.broadcast_to(gamma * lam, (sequences, streams))

    def step(following: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, inside = now
        advantage = jnp.where(inside, delta + decay * following, 0.0)
        return advantage, advantage

    by_token = (jnp.swapaxes(deltas, 0, 1), jnp.swapaxes(valid, 0, 1))
    # zeros_like of a slice, not zeros(): under shard_map the carry must vary over devices like the deltas.
    _, advantages = jax.lax.scan(step, jnp.zeros_like(deltas[:, 0]), by_token, reverse=True)
    advantages = jnp.swapaxes(advantages, 0, 1)
    return advantages, advantages + values


def normalise(
    advantages: jax.Array,
    mask: jax.Array,
    running_sigma: jax.Array,
    how: str,
    floor: float | jax.Array = 0.1,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Centre, and by default whiten, the advantages of every stream over its valid tokens.

        stream   (A - mu) / max(sigma, floor * running_sigma, 1e-4 |mu|, 1e-8)
        center    A - mu
        none      A

    The floor matters: a satisfied constraint has sigma -> 0, and whitening without a floor turns its noise
    into a unit-variance signal. The ``1e-4 |mu|`` term does the same for the rounding of a constant stream.

    Args:
        advantages: f32[S, T, H].
        mask: bool[S, T, H], valid token and stream defined for the sequence.
        running_sigma: f32[H], running scale of each stream; 0 before the first update.
        how: ``"stream"``, ``"center"`` or ``"none"``.
        floor: share of the running scale below which sigma is not believed.
        axis_name: device axis to reduce over, or ``None``.

    Returns:
        advantages f32[S, T, H], 0 outside the mask, and sigma f32[H] of this batch (``running_sigma``
        for a stream without any entry).

    Raises:
        ValueError: if ``how`` is unknown.
    """
    if how not in NORMALISATIONS:
        raise ValueError(f"adv_norm is {how!r}, expected one of {', '.join(NORMALISATIONS)}")
    chex.assert_rank(advantages, 3)
    chex.assert_shape(running_sigma, advantages.shape[-1:])
    mean, sigma, count = masked_moments(advantages, mask, axis_name)
    shift = jnp.zeros_like(mean) if how == "none" else mean
    scale = jnp.ones_like(sigma)
    if how == "stream":
        lowest = jnp.maximum(floor * running_sigma, _ROUNDING_FLOOR * jnp.abs(mean))
        scale = jnp.maximum(jnp.maximum(sigma, lowest), _ABSOLUTE_FLOOR)
    normalised = (advantages - shift[None, None, :]) / scale[None, None, :]
    return jnp.where(mask, normalised, 0.0), jnp.where(count > 0, sigma, running_sigma)


def update_running_sigma(
    running_sigma: jax.Array, sigma: jax.Array, count: jax.Array, decay: float | jax.Array
) -> jax.Array:
    """Move the running scale of every stream: ``s <- decay * s + (1 - decay) * sigma``.

    Serves both scales of a stream: that of its advantages (the floor in `normalise`) and that of its
    returns (the unit of the value head's targets). The first update adopts ``sigma``, so there is no bias
    towards zero; a stream with ``count`` 0 keeps what it has.

    Args:
        running_sigma: f32[H], 0 means not yet measured.
        sigma: f32[H], standard deviation measured on this batch (see `collectives.masked_moments`).
        count: f32[H], number of entries behind ``sigma``.
        decay: share of the old scale that stays, in [0, 1).

    Returns:
        f32[H].
    """
    chex.assert_equal_shape([running_sigma, sigma, count])
    moved = jnp.where(running_sigma > 0, decay * running_sigma + (1.0 - decay) * sigma, sigma)
    return jnp.where(count > 0, moved, running_sigma)


def value_scale(running_sigma: jax.Array, minimum: float = 1e-3) -> jax.Array:
    """Unit of the value head's targets: the running scale of the returns, 1 until it is measured.

    Args:
        running_sigma: f32[H], running standard deviation of the returns, 0 means not yet measured.
        minimum: smallest unit, in reward units; a constant stream must not blow up its value head.

    Returns:
        f32[H] > 0; the critic learns ``returns / value_scale``.
    """
    return jnp.where(running_sigma > 0, jnp.maximum(running_sigma, minimum), 1.0)
