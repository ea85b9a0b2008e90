"""One step, many devices: equal numbers from jit, meshes and pmap; one compile; donation; errors."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax import monitoring

from morejax.compile import compile_step, replicate, split_devices, unreplicate
from morejax.config import hyper
from morejax.sharding import make_mesh, state_shardings

STEPS = 3


@pytest.fixture(scope="module")
def config(core):
    return core.config()


def numbers_of(core, **changes):
    # Warm-up ends within the run; the KL stop is far off.
    return core.numbers(**({"warmup_steps": 1, "learning_rate": 3e-3, "stop_kl": 10.0} | changes))


@pytest.fixture(scope="module")
def on_one_device(config):
    """The step on one device; compiled once for this module."""
    return compile_step(config)


@pytest.fixture(scope="module")
def single(core, config, on_one_device):
    """Parameters, multipliers and metrics of three steps on one device."""
    return train(core, on_one_device, core.state(config, numbers_of(core)))


COMPILED = []  # one entry each time that XLA compiles something
monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if name.endswith("backend_compile_duration") else None
)


def train(core, step, state):
    """Final state and the metrics of all steps; only the first step may compile."""
    log = []
    for seed in range(STEPS):
        before = len(COMPILED)
        state, metrics = step(state, core.rollout(seed))
        log.append({name: float(value) for name, value in metrics.items()})
        assert seed == 0 or len(COMPILED) == before
    return state, log


def agree(one, two):
    """Parameters, both moments, multipliers, weights, scales and every metric to 1e-5."""
    (state, log), (other, other_log) = one, two
    for name in ("params", "opt_state", "multipliers", "weights", "running_sigma", "value_scale", "score_ema"):
        leaves = jax.tree_util.tree_leaves_with_path(getattr(state, name))
        for (path, a), b in zip(leaves, jax.tree.leaves(getattr(other, name)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name + jax.tree_util.keystr(path))
    for metrics, expected in zip(log, other_log, strict=True):
        assert metrics.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_mesh_trains_like_one_device(core, config, single):
    state = core.state(config, numbers_of(core))
    step = compile_step(config, mesh=make_mesh(8), state=jax.eval_shape(lambda x: x, state), donate=False)
    compiled = step.lower(state, core.rollout()).compile(compiler_options=core.fast_compile())
    shardings = compiled.input_shardings[0]
    agree(train(core, lambda *args: compiled(*jax.device_put(args, shardings)), state), single)


def test_a_mesh_with_cut_parameters_trains_like_one_device(core, config, single):
    mesh, state = make_mesh(2, 2, 2), core.state(config, numbers_of(core))
    step = compile_step(config, mesh=mesh, state=state)
    final, log = train(core, step, jax.device_put(state, state_shardings(mesh, state)))
    agree((final, log), single)
    for moment in (final.params, final.opt_state.mu):
        embedding = moment["trunk"]["embedding"]
        assert embedding.addressable_shards[0].data.size * 4 == embedding.size


def test_pmap_trains_like_one_device(core, config, single):
    step = compile_step(config, backend="pmap")
    final, log = train(core, step, replicate(core.state(config, numbers_of(core))))
    for leaf in jax.tree.leaves(final.params):
        for copy in np.asarray(leaf)[1:]:
            np.testing.assert_array_equal(copy, np.asarray(leaf)[0])
    agree((unreplicate(final), log), single)


def test_a_sweep_over_numbers_does_not_compile_again(core, config, on_one_device):
    """Every number of the step is data; the state that comes back has the types of the one that went in."""
    step = on_one_device
    sweep = [
        {},
        {"learning_rate": 1e-2, "value_learning_rate": 1e-2, "decay_steps": 5, "warmup_steps": 0},
        {"clip_low": 0.1, "clip_high": 0.5, "clip_value": 0.1, "max_grad_norm": 0.3, "entropy_coef": 0.01},
        {"thresholds": {"inform": 0.1, "success": 0.2}, "targets": {"fluency": 0.4}, "stop_kl": 0.01},
        {"multiplier_kp": 1.0, "multiplier_ki": 0.5, "multiplier_kd": 1.0, "multiplier_max": 3.0},
        {"weight_ema": 0.5, "weight_floor": 0.2, "weight_alpha": 2.0, "gamma": 0.9, "gae_lambda": 0.8},
    ]
    state, scores = core.state(config), []
    for changes in sweep:
        state, metrics = step(state.replace(hyper=hyper(config, core.numbers(**changes))), core.rollout())
        scores.append(float(metrics["policy_loss"]))
    assert step._cache_size() == 1
    assert len(set(scores)) == len(sweep)
    # A fresh state of the same structure is no reason to compile either.
    step(core.state(config, core.numbers(learning_rate=0.5)), core.rollout(1))
    assert step._cache_size() == 1


def test_the_old_state_is_donated(core, config, on_one_device):
    state = core.state(config)
    on_one_device(state, core.rollout())
    # `hyper` is handed through and may share its memory; all that is trained must be gone.
    trained = (state.params, state.opt_state, state.multipliers.value, state.weights.weights)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(trained))
    with pytest.raises((RuntimeError, ValueError), match="deleted or donated"):
        on_one_device(state, core.rollout())


def test_donation_can_be_switched_off(core, config):
    state, rollout = core.state(config), core.rollout()
    for donate in (True, False):
        lowered = compile_step(config, donate=donate).lower(state, rollout)
        donated = [leaf.donated for leaf in jax.tree.leaves(lowered.args_info[0][0])]
        assert donated == [donate] * len(jax.tree.leaves(state))
        assert not any(leaf.donated for leaf in jax.tree.leaves(lowered.args_info[0][1]))


def test_an_unknown_backend_is_refused(config):
    with pytest.raises(ValueError, match="backend must be jit or pmap, not 'tpu'"):
        compile_step(config, backend="tpu")


def test_pmap_refuses_a_mesh(config):
    with pytest.raises(ValueError, match="pmap is data-parallel only"):
        compile_step(config, backend="pmap", mesh=make_mesh(2, 2, 2))


def test_a_mesh_needs_the_state(config):
    with pytest.raises(ValueError, match="needs the state"):
        compile_step(config, mesh=make_mesh(8))


def test_sequences_that_do_not_divide_over_devices_are_refused(core, config):
    rollout, state = core.rollout(sequences=12), core.state(config)
    with pytest.raises(ValueError, match="12 sequences do not divide over 8 devices"):
        compile_step(config, backend="pmap")(replicate(state), rollout)
    with pytest.raises(ValueError, match="12"):
        compile_step(config, mesh=make_mesh(8), state=state)(state, rollout)


def test_minibatches_must_divide_the_sequences_of_each_device(core):
    """16 sequences on 8 devices are 2 each: not 4 minibatches."""
    config = core.config(minibatches=4)
    with pytest.raises(ValueError, match=r"2 sequences \(on each device\) do not divide into step\.minibatches = 4"):
        compile_step(config, backend="pmap")(replicate(core.state(config)), core.rollout())


def test_replicate_and_split_devices_are_inverse_to_their_partners(core, config):
    state = core.state(config)
    back = unreplicate(replicate(state, 2))
    np.testing.assert_array_equal(back.params["trunk"]["embedding"], state.params["trunk"]["embedding"])
    assert jax.random.key_data(back.key).tolist() == jax.random.key_data(state.key).tolist()
    parts = split_devices({"x": np.arange(12).reshape(6, 2)}, 3)
    np.testing.assert_array_equal(parts["x"][1], [[4, 5], [6, 7]])
