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
    "muon": 4 * 256 * 128,
    "sgd": 4 * 256 * 128,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_kept_of_a_matrix(name):
    state = jax.eval_shape(optimizer(name).init, {"kernel": jnp.zeros((256, 128))})
    # Counters and the three constants of muon's iteration are no arrays of a parameter.
    kept = [leaf for leaf in jax.tree.leaves(state) if leaf.size > 3]
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in kept) + (4 if name == "adafactor" else 0) == MATRIX[name]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_bowl_is_descended(name):
    """f(x) = |x|^2 / 2 from the unit matrix with the rate 0.02: updates are not multiplied by a rate of their own."""
    tx, x = optimizer(name), {"kernel": jnp.eye(4)}
    state = tx.init(x)

    @jax.jit
    def step(x, state):
        update, state = tx.update(x, state, x)
        return jax.tree.map(lambda x, update: x - 0.02 * update, x, update), state

    for _ in range(200):
        x, state = step(x, state)
    assert float(jnp.abs(x["kernel"]).max()) < 0.2


def test_muon_orthogonalises_each_layer():
    """Singular values of an update are alike, whatever the gradient's, and layers do not see each other."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(2, 8, 8)))[0] for _ in range(2))
    gradient = {
        "kernel": jnp.asarray(left * np.geomspace(1.0, 0.05, 8) @ right, jnp.float32),
        "bias": jnp.ones((2, 8)),
        "embedding": jnp.ones((9, 8)),
        "policy": {"kernel": jnp.ones((8, 9))},
    }
    tx = optimizer("muon")
    update, _ = tx.update(gradient, tx.init(gradient), gradient)
    # 0.5 sqrt(8) x the range in which the iteration leaves singular values.
    values = np.linalg.svd(update["kernel"], compute_uv=False) / (0.5 * np.sqrt(8))
    assert (values > 0.6).all()
    assert (values < 1.3).all()
    one = jax.tree.map(lambda leaf: leaf[:1], {name: gradient[name] for name in ("kernel", "bias")})
    alone, _ = tx.update(one, tx.init(one), one)
    np.testing.assert_allclose(alone["kernel"][0], update["kernel"][0], atol=1e-5)
    # Adam's first update of ones, looking ahead: 1 + b1 (1 - b1) / (1 - b1^2).
    for leaf in (update["bias"], update["embedding"], update["policy"]["kernel"]):
        np.testing.assert_allclose(leaf, 1 + 0.09 / 0.19, rtol=1e-4)


def test_weight_decay_is_decoupled():
    """On a gradient of 0 Adam stands still, and the update is decay x parameter."""
    tx, x = optimizer("adam", 0.1), jnp.array([2.0, -3.0])
    update, _ = tx.update(jnp.zeros(2), tx.init(x), x)
    np.testing.assert_allclose(update, [0.2, -0.3], rtol=1e-6)


def test_one_object_for_each_choice():
    """Another would be another static structure of the state, and so another compilation."""
    assert optimizer("lion") is optimizer("lion")
    assert optimizer("lion") is not optimizer("lion", 0.1)


@pytest.mark.parametrize(("name", "kept"), [("adafactor", (1, 128)), ("muon", (1, 128, 384))])
def test_a_mesh_changes_nothing(core, name, kept):
    """Matrices of 128 are factored: their means have fewer dimensions than the rule of their matrix."""
    config = core.config(minibatches=1)
    model = core.model(width=128, vocab_size=64, heads=2, layers=1)
    state = core.state(config, model=model, tx=optimizer(name))
    mesh, options = make_mesh(2, 2, 2), core.fast_compile()
    rollout = core.rollout()
    shardings = state_shardings(mesh, state)
    placed = jax.device_put(state, shardings)
    alone, _ = compile_step(config, donate=False, compiler_options=options)(state, rollout)
    jax.block_until_ready(alone)
    step = compile_step(config, mesh=mesh, state=state, donate=False, compiler_options=options)
    spread, _ = step(placed, jax.device_put(rollout, rollout_sharding(mesh)))
    assert any(leaf.shape == kept for leaf in jax.tree.leaves(state.opt_state))
    for (path, a), b in zip(jax.tree.leaves_with_path(alone.params), jax.tree.leaves(spread.params), strict=True):
        where = jax.tree_util.keystr(path)
        if "qkv']['bias" not in where:  # keys' biases have a gradient of rounding errors alone, which it scales up
            np.testing.assert_allclose(a, b, atol=2e-5, err_msg=where)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("adamw",), "--optimizer must be one of adam, adam_bf16, lion, adafactor, muon, sgd, not 'adamw'"),
        (("adam", -0.1), "--weight-decay must not be negative: -0.1"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimizer(*arguments)
