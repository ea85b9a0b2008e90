"""The fresh state: shapes, start values, buffers that can be donated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from morejax.state import default_optimizer, init_state


def test_start_values(core):
    """K = 3 objectives, M = 2 constraints; weights on the simplex, multipliers as given, nothing measured yet."""
    config = core.config()
    numbers = core.numbers(
        objective_weights={"likeness": 2.0}, multiplier_init=0.5, multiplier_values={"success": 2.0}, kl_coef=0.3
    )
    state = init_state(core.model(), config, numbers, seed=7)
    np.testing.assert_allclose(state.weights.weights, [0.5, 0.25, 0.25])
    np.testing.assert_allclose(state.multipliers.value, [0.5, 2.0])
    np.testing.assert_allclose(state.multipliers.integral, [0.5, 2.0])
    np.testing.assert_array_equal(state.score_seen, [0, 0, 0])
    np.testing.assert_array_equal(state.value_scale, np.ones(5))
    np.testing.assert_array_equal(state.running_sigma, np.zeros(5))
    assert not state.value_seen.any()
    assert (state.step, state.kl_coef) == (0, np.float32(0.3))
    assert (jax.random.key_data(state.key) == jax.random.key_data(jax.random.key(7))).all()
    assert set(state.params) == {"trunk", "value"}
    assert jax.tree.structure(state.opt_state.mu) == jax.tree.structure(state.params)
    # One buffer twice could not be donated.
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state) if leaf.dtype != state.key.dtype]
    assert len(set(pointers)) == len(pointers)


def test_the_state_can_be_described_without_memory(core):
    """`eval_shape` of init gives the structure of the real state: what shardings and checkpoints are made from."""
    config, numbers = core.config(), core.numbers()
    abstract = jax.eval_shape(lambda: init_state(core.model(), config, numbers))
    state = core.state(config)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    shapes = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, abstract, state)
    assert all(jax.tree.leaves(shapes))


def test_states_share_one_optimizer(core):
    """The optimizer is part of the static structure: a new one for each state would compile the step anew."""
    assert default_optimizer() is default_optimizer()
    config = core.config()
    one, two = core.state(config), core.state(config)
    assert jax.tree.structure(one) == jax.tree.structure(two)
    other = core.state(config, tx=optax.identity())
    assert jax.tree.structure(other) != jax.tree.structure(one)


def test_a_constraint_without_threshold_is_refused(core):
    with pytest.raises(ValueError, match="no threshold for constraint inform, success"):
        init_state(core.model(), core.config(), core.numbers(thresholds={}))


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_impossible_objective_weights_are_refused(core, weight):
    with pytest.raises(ValueError, match="objective weights are"):
        init_state(core.model(), core.config(), core.numbers(objective_weights={"fluency": weight}))


def test_the_optimizer_is_adam_without_its_rate():
    """First step of Adam on gradient g: g / (|g| + eps), here with eps 1e-6."""
    tx = default_optimizer()
    params = {"w": jnp.zeros(2)}
    updates, _ = tx.update({"w": jnp.array([3.0, -1e-6])}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [1.0, -0.5], rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multiplier_init": 20.0}, r"inform starts at 20\.0, expected at most --numbers\.multiplier-max 10\.0"),
        ({"multiplier_values": {"success": float("nan")}}, r"--numbers\.multiplier-values: success starts at nan"),
        ({"multiplier_values": {"success": -3.0}}, r"--numbers\.multiplier-init must be at least 0 .* pid, not -3"),
    ],
)
def test_impossible_start_multipliers_are_refused(core, changes, message):
    with pytest.raises(ValueError, match=message):
        core.state(core.config(), core.numbers(**changes))
    core.state(core.config(multipliers="fixed"), core.numbers(multiplier_init=20.0))  # it never moves: no cap
