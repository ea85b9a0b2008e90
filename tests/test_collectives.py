"""Masked sums and means: by hand, on NaN padding, and over 8 devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from morejax.collectives import masked_mean, masked_moments, masked_sum, psum


def test_eight_devices_are_available():
    assert jax.device_count() == 8


def test_psum_without_an_axis_is_the_identity():
    tree = {"a": jnp.arange(3.0), "b": (jnp.ones(()),)}
    assert psum(tree, None) is tree


def test_masked_mean_by_hand():
    x = jnp.array([[1.0, 2.0, 30.0], [4.0, 50.0, 60.0]])
    mask = jnp.array([[True, True, False], [True, False, False]])
    assert masked_sum(x, mask) == 7.0  # 1 + 2 + 4
    np.testing.assert_allclose(masked_mean(x, mask), 7.0 / 3.0, rtol=1e-6)
    np.testing.assert_allclose(masked_mean(x, mask, axis=1), [1.5, 4.0])  # (1 + 2)/2, 4/1
    np.testing.assert_allclose(masked_mean(x, mask, axis=0), [2.5, 2.0, 0.0])  # last column is empty


def test_float_weights_and_broadcast_mask():
    x = jnp.array([[1.0, 5.0], [3.0, 7.0]])
    weights = jnp.array([[0.5], [0.25]])
    # column 0: (0.5*1 + 0.25*3) / 0.75 = 5/3; column 1: (0.5*5 + 0.25*7) / 0.75 = 17/3
    np.testing.assert_allclose(masked_mean(x, weights, axis=0), [5 / 3, 17 / 3], rtol=1e-6)


def test_empty_mask_gives_zero_and_zero_gradient():
    def mean(x):
        return masked_mean(x, jnp.zeros(3, bool))

    value, grad = jax.value_and_grad(mean)(jnp.ones(3))
    assert value == 0.0
    np.testing.assert_array_equal(grad, np.zeros(3))


def test_padding_may_hold_nan_also_for_the_gradient():
    x = jnp.array([1.0, jnp.nan, 3.0])
    mask = jnp.array([True, False, True])
    value, grad = jax.value_and_grad(masked_mean)(x, mask)
    assert value == 2.0  # (1 + 3) / 2
    np.testing.assert_array_equal(grad, [0.5, 0.0, 0.5])


def test_moments_by_hand():
    x = jnp.array([[1.0, 4.0], [3.0, 4.0], [9.0, 9.0]])
    mask = jnp.array([[True, True], [True, True], [False, False]])
    mean, std, count = masked_moments(x, mask)
    np.testing.assert_allclose(mean, [2.0, 4.0])
    np.testing.assert_allclose(std, [1.0, 0.0])  # population: sqrt(((1-2)^2 + (3-2)^2)/2)
    np.testing.assert_allclose(count, [2.0, 2.0])


def test_moments_survive_a_large_mean():
    """E[x^2] - E[x]^2 would give 0 or NaN here: 1e8 + 1 is not a float32."""
    x = jnp.array([[9999.0], [10001.0]])
    _, std, _ = masked_moments(x, jnp.ones((2, 1), bool))
    np.testing.assert_allclose(std, [1.0])


def test_a_mask_of_another_rank_is_refused():
    with pytest.raises(AssertionError):
        masked_mean(jnp.ones((2, 3)), jnp.ones(3, bool))


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_devices_with_unequal_counts_give_the_global_mean(how):
    """A mean of per-device means would weigh the devices alike, whatever they hold."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 2, 5)).astype(np.float32)
    mask = rng.random((8, 2, 5)) < np.linspace(0, 1, 8)[:, None, None]  # device 0 holds nothing at all
    expected = x[mask].sum() / mask.sum()
    if how == "pmap":
        got = jax.pmap(lambda x, m: masked_mean(x, m, "data"), axis_name="data")(x, mask)
        np.testing.assert_allclose(got, np.full(8, expected), rtol=1e-5)
    else:
        mesh = Mesh(np.array(jax.devices()), ("data",))
        spec = PartitionSpec("data")
        mean = jax.shard_map(
            lambda x, m: masked_mean(x, m, "data"),
            mesh=mesh,
            in_specs=(spec, spec),
            out_specs=PartitionSpec(),
        )
        np.testing.assert_allclose(jax.jit(mean)(x, mask), expected, rtol=1e-5)
    np.testing.assert_allclose(masked_mean(jnp.asarray(x), jnp.asarray(mask)), expected, rtol=1e-5)


@given(st.integers(0, 2**31 - 1))
def test_padding_never_changes_a_number(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, 6)).astype(np.float32)
    mask = rng.random((4, 6)) < 0.5
    garbage = np.where(mask, x, rng.choice([np.nan, np.inf, 1e30], size=x.shape).astype(np.float32))
    plain = masked_mean(jnp.asarray(x), jnp.asarray(mask), axis=1)
    np.testing.assert_array_equal(plain, masked_mean(jnp.asarray(garbage), jnp.asarray(mask), axis=1))
