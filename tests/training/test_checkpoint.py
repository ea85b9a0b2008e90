"""Checkpoints come back bit for bit, refuse what does not fit, and are not moved by later training."""

from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from morejax.training.checkpoint import Checkpoints, load_params, save_params

# Orbax leaves reads behind that nobody waits for when a structure does not fit.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state(seed=0, width=3):
    params = {"trunk": {"kernel": jax.random.normal(jax.random.key(seed), (4, width)), "bias": jnp.zeros(width)}}
    return {
        "params": params,
        "opt": optax.adam(0.1).init(params),
        "key": jax.random.key(seed + 1),
        "step": jnp.int32(seed),
        "half": jnp.full((2,), 0.1, jnp.bfloat16),
    }


def assert_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "ppo", keep=2)
    yield made
    made.close()


def test_a_state_comes_back_bit_for_bit(checkpoints, tmp_path):
    checkpoints.save(5, state(), {"iteration": 5, "progress": {"best": None, "j": 0.1}})
    checkpoints.close()
    again = Checkpoints(tmp_path / "ppo")
    restored, meta = again.restore(state(seed=9))
    again.close()
    assert_equal(restored, state())
    assert meta == {"iteration": 5, "progress": {"best": None, "j": 0.1}}


def test_the_newest_is_restored_and_old_ones_go(checkpoints):
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"step": step})
    checkpoints._manager.wait_until_finished()
    assert checkpoints.latest() == 3
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["2", "3"]
    assert_equal(checkpoints.restore(state())[0], state(3))
    assert checkpoints.restore(state(), step=2)[1] == {"step": 2}


def test_saving_a_step_again_changes_nothing(checkpoints):
    checkpoints.save(1, state(1), {"step": 1})
    checkpoints.save(1, state(2), {"step": 2})
    assert_equal(checkpoints.restore(state())[0], state(1))


def test_what_is_saved_is_what_was_there_when_save_was_called(checkpoints):
    """The next step takes the arrays' memory, and the loop its dictionary, while the write is going on."""
    big = {"x": jnp.arange(4_000_000, dtype=jnp.float32)}
    expected = np.arange(4_000_000, dtype=np.float32)
    meta = {"best": {"combined": 1.0}}

    @partial(jax.jit, donate_argnums=0)
    def overwrite(tree):
        return jax.tree.map(lambda leaf: leaf * 0 - 1, tree)

    checkpoints.save(1, big, meta)
    moved = overwrite(big)
    meta["best"]["combined"] = 2.0
    moved["x"].block_until_ready()
    restored, restored_meta = checkpoints.restore({"x": jnp.zeros(4_000_000)})
    np.testing.assert_array_equal(np.asarray(restored["x"]), expected)
    assert restored_meta == {"best": {"combined": 1.0}}


def test_arrays_without_elements_come_back(checkpoints):
    """A step without constraints has multipliers of shape [0]."""
    checkpoints.save(1, {"multipliers": jnp.zeros(0), "x": jnp.ones(2)}, {})
    restored, _ = checkpoints.restore({"multipliers": jnp.zeros(0), "x": jnp.zeros(2)})
    assert_equal(restored, {"multipliers": jnp.zeros(0), "x": jnp.ones(2)})


def test_no_checkpoint(checkpoints):
    assert checkpoints.latest() is None
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        checkpoints.restore(state())


def test_an_unfinished_write_is_not_a_checkpoint(checkpoints, tmp_path):
    checkpoints.save(1, state(1), {})
    checkpoints.close()
    (tmp_path / "ppo" / "2.orbax-checkpoint-tmp").mkdir()
    again = Checkpoints(tmp_path / "ppo")
    assert again.latest() == 1
    again.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree | {"params": {"trunk": {"kernel": jnp.zeros((4, 3))}}},
        lambda tree: tree | {"extra": jnp.zeros(1)},
        lambda tree: tree | {"params": state(width=5)["params"]},
    ],
    ids=["a leaf less", "a leaf more", "another shape"],
)
def test_another_structure_is_refused(checkpoints, tmp_path, change):
    checkpoints.save(4, state(), {})
    checkpoints._manager.wait_until_finished()
    with pytest.raises(ValueError, match=r"ppo/4: the checkpoint does not fit this configuration") as caught:
        checkpoints.restore(change(state()))
    assert "\n" not in str(caught.value)


def test_final_parameters_come_back(tmp_path):
    params = state()["params"]
    save_params(tmp_path / "final", params, {"dev_loss": 1.5})
    loaded, meta = load_params(tmp_path / "final", state(seed=3)["params"])
    assert_equal(loaded, params)
    assert meta == {"dev_loss": 1.5}


def test_final_parameters_are_replaced(tmp_path):
    for seed in (1, 2):
        save_params(tmp_path / "final", state(seed)["params"], {"seed": seed})
    loaded, meta = load_params(tmp_path / "final", state()["params"])
    assert_equal(loaded, state(2)["params"])
    assert meta == {"seed": 2}
    assert json.loads((tmp_path / "final" / "meta.json").read_text()) == {"seed": 2}


def test_missing_final_parameters_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"supervised-final: .*run the stage that makes them first"):
        load_params(tmp_path / "supervised-final", {})


def test_final_parameters_of_another_model_are_refused(tmp_path):
    save_params(tmp_path / "final", state()["params"], {})
    with pytest.raises(ValueError, match=r"final: the parameters do not fit this configuration"):
        load_params(tmp_path / "final", state(width=7)["params"])
