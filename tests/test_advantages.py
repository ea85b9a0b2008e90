"""GAE, normalisation and running scales: by hand, against a plain loop, and on padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from morejax.advantages import NORMALISATIONS, gae, normalise, update_running_sigma, value_scale

jitted_gae = jax.jit(gae)
jitted_normalise = jax.jit(normalise, static_argnames="how")


def gae_loop(rewards, values, mask, gamma, lam):
    """GAE as the paper's sum, one sequence and stream at a time: A_t = sum_l (gamma lam)^l delta_{t+l}."""
    advantages = np.zeros_like(rewards)
    for s, h in np.ndindex(rewards.shape[0], rewards.shape[2]):
        steps = np.flatnonzero(mask[s])
        for t in steps:
            for k in steps[steps >= t]:
                following = values[s, k + 1, h] if k + 1 in steps else 0.0
                delta = rewards[s, k, h] + gamma[h] * following - values[s, k, h]
                advantages[s, t, h] += (gamma[h] * lam[h]) ** (k - t) * delta
    return advantages


def batch(seed, sequences=3, tokens=5, streams=2):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, sequences, tokens, streams)).astype(np.float32)
    lengths = rng.integers(0, tokens + 1, size=sequences)
    mask = np.arange(tokens)[None] < lengths[:, None]
    return rewards, values, mask, np.array([1.0, 0.9], np.float32), np.array([0.95, 0.5], np.float32)


def test_gae_by_hand():
    """One stream, gamma 0.5, lambda 0.5, two valid tokens and one of padding.

    V = (1, 2), r = (0, 3); the value 100 of the padding must not be bootstrapped from.
        delta_1 = 3 + 0 - 2 = 1                 A_1 = 1                      R_1 = 3
        delta_0 = 0 + 0.5*2 - 1 = 0             A_0 = 0 + 0.25*1 = 0.25      R_0 = 1.25
    """
    rewards = jnp.array([[[0.0], [3.0], [50.0]]])
    values = jnp.array([[[1.0], [2.0], [100.0]]])
    mask = jnp.array([[True, True, False]])
    half = jnp.array([0.5])
    advantages, returns = gae(rewards, values, mask, half, half)
    np.testing.assert_allclose(advantages[0, :, 0], [0.25, 1.0, 0.0])
    np.testing.assert_allclose(returns[0, :, 0], [1.25, 3.0, 0.0])


def test_gae_limits():
    """lambda = 0 is the one-step error, lambda = 1 the Monte Carlo return minus the value."""
    rewards = jnp.array([[[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]]])
    values = jnp.array([[[0.5, 0.5], [1.0, 1.0], [1.5, 1.5]]])
    ones = jnp.ones(2)
    advantages, returns = gae(rewards, values, jnp.ones((1, 3), bool), ones, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(advantages[0, :, 0], [1.5, 2.5, 2.5])  # r + V' - V: 1+1-.5, 2+1.5-1, 4+0-1.5
    np.testing.assert_allclose(advantages[0, :, 1], [6.5, 5.0, 2.5])  # 7-.5, 6-1, 4-1.5
    np.testing.assert_allclose(returns[0, :, 1], [7.0, 6.0, 4.0])  # rewards to go


@given(st.integers(0, 2**31 - 1))
def test_gae_equals_the_papers_sum(seed):
    rewards, values, mask, gamma, lam = batch(seed)
    advantages, returns = jitted_gae(*map(jnp.asarray, (rewards, values, mask, gamma, lam)))
    expected = gae_loop(rewards, values, mask, gamma, lam)
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(returns, np.where(mask[..., None], expected + values, 0), rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**31 - 1))
def test_padding_never_changes_an_advantage(seed):
    rewards, values, mask, gamma, lam = batch(seed)
    plain = jitted_gae(*map(jnp.asarray, (rewards, values, mask, gamma, lam)))
    dirty = [np.where(mask[..., None], x, np.float32(np.nan)) for x in (rewards, values)]
    wider = [np.pad(x, ((0, 0), (0, 3), (0, 0)), constant_values=7.0) for x in dirty]
    padded = jitted_gae(*map(jnp.asarray, (*wider, np.pad(mask, ((0, 0), (0, 3))), gamma, lam)))
    for before, after in zip(plain, padded, strict=True):
        np.testing.assert_array_equal(before, after[:, :5])
        np.testing.assert_array_equal(after[:, 5:], 0)


@given(st.integers(0, 2**31 - 1))
def test_permuting_sequences_permutes_everything(seed):
    rewards, values, mask, gamma, lam = batch(seed, sequences=4)
    order = np.random.default_rng(seed).permutation(4)
    straight = jitted_gae(*map(jnp.asarray, (rewards, values, mask, gamma, lam)))[0]
    shuffled = jitted_gae(*map(jnp.asarray, (rewards[order], values[order], mask[order], gamma, lam)))[0]
    np.testing.assert_array_equal(straight[order], shuffled)
    full = jnp.broadcast_to(jnp.asarray(mask)[..., None], straight.shape)
    white, sigma = jitted_normalise(straight, full, jnp.ones(2), how="stream")
    white_shuffled, sigma_shuffled = jitted_normalise(shuffled, full[order], jnp.ones(2), how="stream")
    np.testing.assert_allclose(white[order], white_shuffled, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sigma, sigma_shuffled, rtol=1e-5)


def test_streams_do_not_mix():
    rewards, values, mask, gamma, lam = batch(1)
    both = gae(*map(jnp.asarray, (rewards, values, mask, gamma, lam)))[0]
    for h in range(2):
        alone = gae(
            *map(
                jnp.asarray,
                (rewards[..., h : h + 1], values[..., h : h + 1], mask, gamma[h : h + 1], lam[h : h + 1]),
            )
        )[0]
        np.testing.assert_allclose(both[..., h : h + 1], alone, rtol=1e-6)


def test_gae_refuses_wrong_shapes():
    with pytest.raises(AssertionError):
        gae(jnp.zeros((2, 3, 2)), jnp.zeros((2, 3, 2)), jnp.ones((2, 4), bool), jnp.ones(2), jnp.ones(2))


STREAM = jnp.array([[[1.0], [3.0]], [[5.0], [99.0]]])  # valid: 1, 3, 5
VALID = jnp.array([[[True], [True]], [[True], [False]]])


def test_whitening_by_hand():
    """mu = 3, sigma = sqrt((4 + 0 + 4)/3) = sqrt(8/3); the masked 99 counts for nothing."""
    white, sigma = normalise(STREAM, VALID, jnp.array([1.0]), "stream")
    np.testing.assert_allclose(sigma, [np.sqrt(8 / 3)], rtol=1e-6)
    z = 2 / np.sqrt(8 / 3)
    np.testing.assert_allclose(white[..., 0], [[-z, 0.0], [z, 0.0]], rtol=1e-6)


def test_floor_keeps_a_satisfied_constraint_quiet():
    """sigma 0.01 against a running scale of 1: divide by the floor 0.1, not by 0.01."""
    advantages = jnp.array([[[-0.01], [0.01]]])
    white, sigma = normalise(advantages, jnp.ones((1, 2, 1), bool), jnp.array([1.0]), "stream", floor=0.1)
    np.testing.assert_allclose(white[0, :, 0], [-0.1, 0.1], rtol=1e-5)
    np.testing.assert_allclose(sigma, [0.01], rtol=1e-5)


def test_rounding_of_a_constant_stream_is_not_whitened():
    """The float32 mean of 1,000 times 0.7 is 2e-7 off; while no scale is known that must not become 1."""
    white, _ = normalise(jnp.full((1, 1000, 1), 0.7), jnp.ones((1, 1000, 1), bool), jnp.zeros(1), "stream")
    assert float(jnp.max(jnp.abs(white))) < 0.05


def test_center_and_none_by_hand():
    centred, sigma = normalise(STREAM, VALID, jnp.array([1.0]), "center")
    np.testing.assert_allclose(centred[..., 0], [[-2.0, 0.0], [2.0, 0.0]])
    plain, same = normalise(STREAM, VALID, jnp.array([1.0]), "none")
    np.testing.assert_allclose(plain[..., 0], [[1.0, 3.0], [5.0, 0.0]])
    np.testing.assert_allclose(sigma, same)


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_a_stream_without_entries_gives_zeros_and_keeps_its_scale(how):
    advantages = jnp.concatenate([STREAM, jnp.full_like(STREAM, jnp.nan)], axis=-1)
    mask = jnp.concatenate([VALID, jnp.zeros_like(VALID)], axis=-1)
    got, sigma = normalise(advantages, mask, jnp.array([1.0, 0.7]), how)
    np.testing.assert_array_equal(got[..., 1], np.zeros((2, 2)))
    np.testing.assert_allclose(sigma[1], 0.7)
    assert bool(jnp.all(jnp.isfinite(got)))


def test_unknown_normalisation_is_named():
    with pytest.raises(ValueError, match="'whiten', expected one of stream, center, none"):
        normalise(STREAM, VALID, jnp.ones(1), "whiten")


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_eight_devices_normalise_like_one(how):
    rng = np.random.default_rng(3)
    advantages = rng.normal(2.0, 3.0, size=(16, 4, 2)).astype(np.float32)
    mask = rng.random((16, 4, 2)) < 0.6
    running = np.ones(2, np.float32)
    one, sigma = normalise(*map(jnp.asarray, (advantages, mask, running)), how)
    split = jax.pmap(lambda a, m: normalise(a, m, jnp.asarray(running), how, axis_name="data"), axis_name="data")
    many, sigmas = split(advantages.reshape(8, 2, 4, 2), mask.reshape(8, 2, 4, 2))
    np.testing.assert_allclose(many.reshape(16, 4, 2), one, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sigmas, np.broadcast_to(sigma, (8, 2)), rtol=1e-5)


def test_gae_runs_under_shard_map():
    rewards, values, mask, gamma, lam = map(jnp.asarray, batch(5, sequences=8))
    spec, whole = PartitionSpec("data"), PartitionSpec()
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split = jax.shard_map(gae, mesh=mesh, in_specs=(spec, spec, spec, whole, whole), out_specs=spec)
    for one, many in zip(gae(rewards, values, mask, gamma, lam), split(rewards, values, mask, gamma, lam), strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-6, atol=1e-7)


def test_jit_equals_no_jit():
    arguments = list(map(jnp.asarray, batch(7)))
    for eager, jitted in zip(gae(*arguments), jax.jit(gae)(*arguments), strict=True):
        np.testing.assert_allclose(eager, jitted, rtol=1e-5, atol=1e-6)


def test_running_sigma_by_hand():
    """Stream 0 is new and adopts 2; stream 1 moves 0.9*1 + 0.1*2 = 1.1; stream 2 had no entry."""
    got = update_running_sigma(jnp.array([0.0, 1.0, 5.0]), jnp.array([2.0, 2.0, 0.0]), jnp.array([3.0, 3.0, 0.0]), 0.9)
    np.testing.assert_allclose(got, [2.0, 1.1, 5.0], rtol=1e-6)


def test_value_scale_is_one_until_measured_and_never_tiny():
    np.testing.assert_allclose(value_scale(jnp.array([0.0, 2.0, 1e-9])), [1.0, 2.0, 1e-3])
