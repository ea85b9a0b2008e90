"""Variants of the policy loss: the dual clip, and the mean over tokens or over sequences."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morejax import losses
from morejax.collectives import masked_mean

LOW, HIGH = 0.2, 0.3
DUAL = 2.0


def test_dual_clip_by_hand():
    """c = 2, clip to [0.8, 1.3]. A = -1: max(min(-rho, -clip), -2); A = +1 and A = 0 as without it.

    rho        0.5     1.5      2.5     4.0
    A = +1     .5      1.3      1.3     1.3
    A = -1     -.8     -1.5     -2      -2      (PPO alone: -2.5, -4)
    """
    rho = jnp.array([0.5, 1.5, 2.5, 4.0])
    advantages = jnp.broadcast_to(jnp.array([1.0, -1.0, 0.0]), (4, 3))
    surrogate = losses.clipped_surrogate(rho, advantages, LOW, HIGH, DUAL)
    np.testing.assert_allclose(surrogate, [[0.5, -0.8, 0], [1.3, -1.5, 0], [1.3, -2, 0], [1.3, -2, 0]], rtol=1e-6)
    coefficients = losses.surrogate_coefficients(rho, advantages, LOW, HIGH, DUAL)
    np.testing.assert_allclose(coefficients, [[0.5, 0, 0], [0, -1.5, 0], [0, 0, 0], [0, 0, 0]], rtol=1e-6)


def wide_tokens(seed, shape=(4, 6), streams=3):
    """Ratios from 1/20 to 20, so that many pass the dual clip, and some advantages of exactly 0."""
    rng = np.random.default_rng(seed)
    logp_old = rng.normal(-2.0, 1.0, size=shape)
    logp = logp_old + rng.normal(0.0, 1.6, size=shape)
    advantages = rng.normal(size=(*shape, streams))
    advantages[0, 0] = 0.0
    return [jnp.asarray(x, jnp.float32) for x in (logp, logp_old, advantages)]


@given(st.integers(0, 2**31 - 1), st.floats(1.01, 5.0))
def test_dual_clip_is_the_papers_maximum(seed, dual):
    """max(min(rho A, clip A), c A) for A < 0, also for c inside the clip range."""
    logp, logp_old, advantages = wide_tokens(seed)
    rho = losses.ratio(logp, logp_old)
    plain = losses.clipped_surrogate(rho, advantages, LOW, HIGH)
    expected = jnp.where(advantages < 0, jnp.maximum(plain, dual * advantages), plain)
    got = losses.clipped_surrogate(rho, advantages, LOW, HIGH, dual)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert bool(jnp.all(got >= plain))


@given(st.integers(0, 2**31 - 1))
def test_dual_clipped_coefficients_are_the_derivative(seed):
    logp, logp_old, advantages = wide_tokens(seed)
    weights = jnp.array([0.2, -0.3, 0.5])
    rho = losses.ratio(logp, logp_old)

    def surrogate(logp, advantages):
        return jnp.sum(losses.clipped_surrogate(losses.ratio(logp, logp_old), advantages, LOW, HIGH, DUAL))

    per_stream = losses.surrogate_coefficients(rho, advantages, LOW, HIGH, DUAL)
    for h in range(advantages.shape[-1]):
        automatic = jax.grad(surrogate)(logp, advantages[..., h : h + 1])
        np.testing.assert_allclose(per_stream[..., h], automatic, rtol=1e-5, atol=1e-6)
    mixed = losses.mixed_coefficients(rho, advantages, weights, LOW, HIGH, DUAL)
    automatic = jax.grad(surrogate)(logp, losses.mix_streams(advantages, weights)[..., None])
    np.testing.assert_allclose(mixed, automatic, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 2**31 - 1))
def test_an_infinite_dual_clip_is_ppo_bit_for_bit(seed):
    """The formulas as they stand without it; A = 0 with c = inf is where c A would be NaN, in value and gradient."""
    logp, logp_old, advantages = wide_tokens(seed)
    rho = losses.ratio(logp, logp_old)
    wide = rho[..., None]
    plain = jnp.minimum(wide * advantages, jnp.clip(wide, 1.0 - LOW, 1.0 + HIGH) * advantages)
    follows = jnp.where(advantages >= 0, wide <= 1.0 + HIGH, wide >= 1.0 - LOW)
    for dual in ((), (jnp.float32(jnp.inf),)):
        np.testing.assert_array_equal(losses.clipped_surrogate(rho, advantages, LOW, HIGH, *dual), plain)
        coefficients = losses.surrogate_coefficients(rho, advantages, LOW, HIGH, *dual)
        np.testing.assert_array_equal(coefficients, jnp.where(follows, advantages * wide, 0.0))
    grad = jax.grad(lambda a: jnp.sum(losses.clipped_surrogate(rho, a, LOW, HIGH, jnp.float32(jnp.inf))))(advantages)
    assert bool(jnp.all(jnp.isfinite(grad)))


def test_changing_the_dual_clip_compiles_nothing_new():
    logp, logp_old, advantages = wide_tokens(0)
    jitted = jax.jit(chex.assert_max_traces(losses.surrogate_coefficients, n=1))
    rho = losses.ratio(logp, logp_old)
    off, on = (jitted(rho, advantages, LOW, HIGH, jnp.float32(c)) for c in (jnp.inf, DUAL))
    beyond = (rho > DUAL)[..., None] & (advantages < 0)
    assert bool(jnp.any(beyond))
    np.testing.assert_array_equal(on, jnp.where(beyond, 0.0, off))


def test_token_weights_by_hand():
    """Lengths 2, 4, 0. Losses 1, 3 and 2, 2, 2, 6: token mean 16/6, mean of the sequences' means (2 + 3)/2."""
    mask = jnp.arange(4)[None, :] < jnp.array([2, 4, 0])[:, None]
    loss = jnp.array([[1.0, 3.0, 9.0, 9.0], [2.0, 2.0, 2.0, 6.0], [9.0] * 4])
    token, sequence = (losses.token_weights(mask, how) for how in losses.LOSS_MEANS)
    np.testing.assert_array_equal(token, mask.astype(jnp.float32))
    np.testing.assert_array_equal(sequence, [[0.5, 0.5, 0, 0], [0.25] * 4, [0] * 4])
    np.testing.assert_allclose(masked_mean(loss, token), 16 / 6, rtol=1e-6)
    np.testing.assert_allclose(masked_mean(loss, sequence), 2.5, rtol=1e-6)


@given(st.integers(0, 2**31 - 1))
def test_sequence_weights_sum_to_one_whatever_the_padding(seed):
    rng = np.random.default_rng(seed)
    mask = jnp.asarray(np.arange(7)[None] < rng.integers(0, 8, size=5)[:, None])
    weights = losses.token_weights(mask, "sequence")
    np.testing.assert_allclose(weights.sum(1), mask.any(1), rtol=1e-6)
    padded = losses.token_weights(jnp.pad(mask, ((0, 0), (0, 4))), "sequence")
    np.testing.assert_array_equal(padded, jnp.pad(weights, ((0, 0), (0, 4))))


def test_devices_with_unequal_lengths_give_the_mean_over_sequences():
    """Each sequence lies on one device, so the weights need no collective; the mean over them does."""
    rng = np.random.default_rng(1)
    loss = rng.normal(size=(16, 6)).astype(np.float32)
    mask = np.arange(6)[None] < rng.integers(0, 7, size=16)[:, None]
    expected = np.mean([row[kept].mean() for row, kept in zip(loss, mask, strict=True) if kept.any()])
    mean = jax.pmap(lambda x, m: masked_mean(x, losses.token_weights(m, "sequence"), "data"), axis_name="data")
    np.testing.assert_allclose(mean(loss.reshape(8, 2, 6), mask.reshape(8, 2, 6)), np.full(8, expected), rtol=1e-5)


def test_unknown_loss_mean_is_named():
    with pytest.raises(ValueError, match="loss_mean is 'batch', expected one of token, sequence"):
        losses.token_weights(jnp.ones((1, 2), bool), "batch")
