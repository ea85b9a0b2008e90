"""Advantages per reward stream: GAE, group baselines, discounting over turns, normalisation, running scales.

Every function keeps the H streams (objectives and constraints) apart on the last axis; they are mixed
only in the policy loss, so that multipliers and weights may change without making a value stale.
"""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp

from morejax.collectives import masked_moments, psum
from morejax.losses import mix_streams

NORMALISATIONS = ("stream", "center", "none")
GROUP_ADVANTAGES = ("mean", "leave_one_out", "standardised")

# Below these a standard deviation is float32 rounding noise, not signal.
_ABSOLUTE_FLOOR = 1e-8
_ROUNDING_FLOOR = 1e-4  # times |mean|
_EQUAL_RETURNS = 1e-6  # times |mean|: a group whose returns differ by less has equal ones
_GROUP_EPSILON = 1e-4  # added to a group's standard deviation, as GRPO's and GDPO's reference code does


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


def group_advantages(
    returns: jax.Array, applies: jax.Array, group: jax.Array, how: str, axis_name: str | None, groups: int
) -> jax.Array:
    """Advantage of every sequence over the others sampled from its prompt: a baseline without a critic.

        mean            R_s - mean_g                                   g: the n members of the group of s
        leave_one_out   R_s - mean of the other n - 1 = n / (n - 1) (R_s - mean_g)
        standardised    (R_s - mean_g) / (std_g + 1e-4)                std_g with n - 1

    Only the sequences that a stream applies to are members of its groups. One alone in its group has nothing to
    be compared with and gets 0, and so do equal returns (std_g up to 1e-6 |mean_g|: rounding). A group may lie on
    several devices.

    Where sequences are sampled turn by turn a group holds the samples of one turn, each behind a history of its own.
    Their mean is still a baseline: it does not depend on what the sequence itself does, and the gradient stays that
    of the returns (times (n - 1) / n for ``mean``). It only takes away less of the noise.

    Args:
        returns: f32[S, H], return of each sequence in each stream, reward units.
        applies: bool[S, H], is the stream defined for the sequence? Other entries may hold anything.
        group: i32[S], number of the sequence's prompt, in [0, groups); the same number on every device.
        how: ``"mean"``, ``"leave_one_out"`` or ``"standardised"``.
        axis_name: device axis to reduce over, or ``None``.
        groups: number of groups over all devices; static.

    Returns:
        f32[S, H], the same for every token of the sequence; 0 where the stream does not apply. NaN for a sequence
        whose group number is out of range: a mistake must not pass for an advantage.

    Raises:
        ValueError: if ``how`` is unknown.

    Source: GRPO, arXiv 2402.03300, sec. 4.1.2 (standardised; mean alone: Dr. GRPO, arXiv 2503.20783); RLOO, arXiv
    2402.14740; GDPO, arXiv 2601.05242, standardises every reward alone. The papers write only "std"; their
    code has n - 1 (torch) and the 1e-4.
    """
    if how not in GROUP_ADVANTAGES:
        raise ValueError(f"group advantages are {how!r}, expected one of {', '.join(GROUP_ADVANTAGES)}")
    chex.assert_rank(returns, 2)
    chex.assert_equal_shape([returns, applies])
    chex.assert_shape(group, returns.shape[:1])
    total = partial(_group_sum, group=group, groups=groups, axis_name=axis_name)
    count = total(applies.astype(jnp.float32))
    mean = total(jnp.where(applies, returns, 0.0)) / jnp.maximum(count, 1.0)
    centred = jnp.where(applies, returns - mean, 0.0)
    others = jnp.maximum(count - 1.0, 1.0)
    spread = jnp.sqrt(total(jnp.square(centred)) / others)
    # Normalisation would make a signal of the rounding of equal returns.
    centred = jnp.where(spread > _EQUAL_RETURNS * jnp.abs(mean), centred, 0.0)
    if how == "leave_one_out":
        centred = centred * (count / others)
    if how == "standardised":
        centred = centred / (spread + _GROUP_EPSILON)
    known = jnp.broadcast_to(((group >= 0) & (group < groups))[:, None], returns.shape)
    return jnp.where(known | ~applies, centred, jnp.nan)


def _group_sum(x: jax.Array, group: jax.Array, groups: int, axis_name: str | None) -> jax.Array:
    """f32[S, H]: for every sequence the sum of x f32[S, H] over its whole group."""
    return psum(jax.ops.segment_sum(x, group, groups), axis_name)[group]


def discount_over_turns(
    reward: jax.Array,
    dialogue: jax.Array,
    turn: jax.Array,
    gamma_turn: jax.Array,
    axis_name: str | None = None,
) -> jax.Array:
    """What the later turns of its dialogue bring a turn: ``sum_{s' later} gamma_turn^(turn_s' - turn_s) reward_s'``.

    Its own reward is not in the sum; added to it on the turn's last token the turn's return is the dialogue's
    discounted one. Turns may lie on any device and in any order; missing turns still count in the exponent.
    Several samples of one turn under one dialogue number add up: number their dialogues apart.

    Args:
        reward: f32[S, H], reward of each turn in each stream.
        dialogue: i32[S], number of the dialogue; the same number on every device.
        turn: i32[S], place of the turn in its dialogue.
        gamma_turn: f32[H], discount per turn; 0 leaves nothing of later turns.
        axis_name: device axis to gather over, or ``None``.

    Returns:
        f32[S, H], reward units; 0 for a dialogue's last turn.

    Source: the discounted return, Sutton and Barto, "Reinforcement Learning", eq. 3.8, with turns as time steps.
    """
    chex.assert_rank(reward, 2)
    chex.assert_shape([dialogue, turn], reward.shape[:1])
    chex.assert_shape(gamma_turn, reward.shape[1:])
    all_turns = (reward, dialogue, turn)
    if axis_name is not None:
        all_turns = jax.lax.all_gather(all_turns, axis_name, tiled=True)
    rewards, dialogues, turns = all_turns
    # All pairs, not a scan along each dialogue: quadratic in S, but one parallel expression that any mesh can cut.
    ahead = turns[None, :] - turn[:, None]
    later = (ahead > 0) & (dialogues[None, :] == dialogue[:, None])
    exponent = jnp.where(later, ahead, 1).astype(jnp.float32)[:, :, None]
    discounted = jnp.power(gamma_turn[None, None, :], exponent) * rewards[None, :, :]
    # Under a mask: a reward of another dialogue may be anything, NaN included.
    return jnp.where(later[:, :, None], discounted, 0.0).sum(1)


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


def whiten_mixture(
    advantages: jax.Array,
    mask: jax.Array,
    resp_mask: jax.Array,
    mix: jax.Array,
    axis_name: str | None = None,
) -> jax.Array:
    """Centre every stream, then divide all of them by the standard deviation of their mixture.

        A_i' = (A_i - mu_i) / std(sum_j a_j (A_j - mu_j))

    The mixture ``sum_i a_i A_i'`` then has mean 0 and variance 1 over the response tokens, as if it had been
    whitened itself, while every stream can still be clipped and weighed alone. Where all streams apply, centring
    them and centring the mixture are the same.

    Args:
        advantages: f32[S, T, H].
        mask: bool[S, T, H], response token and stream defined for the sequence.
        resp_mask: bool[S, T], response tokens: over them the mixture's deviation is taken.
        mix: f32[H], mixing coefficients a; of either sign.
        axis_name: device axis to reduce over, or ``None``.

    Returns:
        f32[S, T, H], 0 outside the mask. A mixture without variance is divided by 1e-4 of its streams' means, or
        1e-8: what is left of a constant is rounding, not signal.

    Source: the batch normalisation of GDPO, arXiv 2601.05242 (there after the group's); whitened advantages of a
    summed reward, as in PPO's reference code.
    """
    chex.assert_rank(advantages, 3)
    chex.assert_equal_shape([advantages, mask])
    chex.assert_shape(resp_mask, advantages.shape[:2])
    chex.assert_shape(mix, advantages.shape[2:])
    mean, _, _ = masked_moments(advantages, mask, axis_name)
    centred = jnp.where(mask, advantages - mean[None, None, :], 0.0)
    mixture = mix_streams(centred, mix)
    _, sigma, _ = masked_moments(mixture[:, :, None], resp_mask[:, :, None], axis_name)
    rounding = _ROUNDING_FLOOR * jnp.sum(jnp.abs(mix * mean))
    return centred / jnp.maximum(jnp.maximum(sigma[0], rounding), _ABSOLUTE_FLOOR)


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
