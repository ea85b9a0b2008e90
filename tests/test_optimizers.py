"""Optimizers by name: what they keep, that they descend, that they lie on a mesh, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from morejax.compile import compile_step
from morejax.optimizers import OPTIMIZERS, optimizer
from morejax.sharding import make_mesh, rollout_sharding, state_shardings

# Bytes of state for a float32 matrix of 256 x 128, without counters.
MATRIX = {
    "adam": 8 * 256 * 128,
    "adam_bf16": 6 * 256 * 128,
    "lion": 2 * 256 * 128,
    "adafactor": 4 * (256 + 128 + 1),
    "sgd": 4 * 256 * 128,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_kept_of_a_matrix(name):
    state = jax.eval_shape(optimizer(name).init, jnp.zeros((256, 128)))
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.ndim) == MATRIX[name]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_bowl_is_descended(name):
    """f(x) = |x|^2 / 2 from x = 1 with the rate 0.02: the updates are not multiplied by a rate of their own."""
    tx, x = optimizer(name), jnp.ones((4, 4))
    state = tx.init(x)
    for _ in range(100):
        update, state = tx.update(x, state, x)
        x = x - 0.02 * update
    assert float(jnp.abs(x).max()) < 0.2


def test_weight_decay_is_decoupled():
    """On a gradient of 0 Adam stands still, and the update is decay x parameter."""
    tx, x = optimizer("adam", 0.1), jnp.array([2.0, -3.0])
    update, _ = tx.update(jnp.zeros(2), tx.init(x), x)
    np.testing.assert_allclose(update, [0.2, -0.3], rtol=1e-6)


def test_one_object_for_each_choice():
    """Another would be another static structure of the state, and so another compilation."""
    assert optimizer("lion") is optimizer("lion")
    assert optimizer("lion") is not optimizer("lion", 0.1)


def test_adafactor_on_a_mesh_is_adafactor_on_one_device(core):
    """Matrices of 128 are factored: their means have fewer dimensions than the rule of their matrix."""
    config = core.config(minibatches=1)
    model = core.model(width=128, vocab_size=64, heads=2, layers=1)
    state = core.state(config, model=model, tx=optimizer("adafactor"))
    mesh, options = make_mesh(2, 2, 2), core.fast_compile()
    rollout = core.rollout()
    shardings = state_shardings(mesh, state)
    placed = jax.device_put(state, shardings)
    alone, _ = compile_step(config, donate=False, compiler_options=options)(state, rollout)
    jax.block_until_ready(alone)
    step = compile_step(config, mesh=mesh, state=state, donate=False, compiler_options=options)
    spread, _ = step(placed, jax.device_put(rollout, rollout_sharding(mesh)))
    assert any(leaf.shape == (1, 128) for leaf in jax.tree.leaves(state.opt_state))
    for (path, a), b in zip(jax.tree.leaves_with_path(alone.params), jax.tree.leaves(spread.params), strict=True):
        name = jax.tree_util.keystr(path)
        if "qkv']['bias" not in name:  # keys' biases have a gradient of rounding errors alone, which it scales up
            np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("adamw",), "--optimizer must be one of adam, adam_bf16, lion, adafactor, sgd, not 'adamw'"),
        (("adam", -0.1), "--weight-decay must not be negative: -0.1"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimizer(*arguments)
