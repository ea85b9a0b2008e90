"""One step, many devices: equal numbers from jit, meshes, shard_map and pmap; one compile; donation; errors.

How equal: parameters to 1e-5, everything else of the state and every metric to 1e-5 of its size. Not bit for bit
between layouts: each device sums its own sequences first, so the order of the sums is another one, and the compiler
fuses each program in its own way (`shard_map` and `pmap` sum in the same order, and still end some units in the last
place apart). Bit for bit equal are two runs of one program, and the copies of the state on all devices.
"""

from __future__ import annotations

from functools import cache, partial

import jax
import numpy as np
import pytest
from jax import monitoring

from morejax import compile as compile_module
from morejax.compile import compile_step, replicate, split_devices, unreplicate
from morejax.config import hyper
from morejax.models import CriticConfig
from morejax.sharding import make_mesh, rollout_sharding, state_shardings

STEPS = 5
LAYOUTS = (("jit", (8, 1, 1)), ("jit", (2, 2, 2)), ("jit", (1, 4, 2)), ("shard_map", (8, 1, 1)))

COMPILED = []  # one entry each time that XLA compiles something
monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if name.endswith("backend_compile_duration") else None
)


@pytest.fixture(scope="module")
def config(core):
    return core.config()


def numbers_of(core, **changes):
    # Warm-up ends within the run; the KL stop is far off.
    return core.numbers(**({"warmup_steps": 1, "learning_rate": 1e-3, "stop_kl": 10.0} | changes))


@pytest.fixture(scope="module")
def on_one_device(core, config):
    """The step on one device; compiled once for this module."""
    return compile_step(config, compiler_options=core.fast_compile())


@pytest.fixture(scope="module")
def on_mesh(core, config):
    """(backend, mesh shape) -> the step, compiled once for this module, a fresh state in its place, and `place`."""

    @cache
    def build(backend, shape):
        mesh, abstract = make_mesh(*shape), jax.eval_shape(lambda: core.state(config))
        options = core.fast_compile()
        return mesh, compile_step(config, backend=backend, mesh=mesh, state=abstract, compiler_options=options)

    def on_mesh(backend, shape):
        mesh, step = build(backend, shape)
        state = core.state(config, numbers_of(core))
        place = partial(jax.device_put, device=rollout_sharding(mesh))
        return step, jax.device_put(state, state_shardings(mesh, state)), place

    return on_mesh


@pytest.fixture(scope="module")
def single(core, config, on_one_device):
    """Final state and metrics of all steps on one device."""
    return train(core, on_one_device, core.state(config, numbers_of(core)))


def train(core, step, state, place=lambda rollout: rollout):
    """Final state and the metrics of all steps; only the first step may compile."""
    log = []
    for seed in range(STEPS):
        rollout = place(core.rollout(seed))
        before = len(COMPILED)
        state, metrics = step(state, rollout)
        log.append({name: float(value) for name, value in metrics.items()})
        assert seed == 0 or len(COMPILED) == before
    return state, log


def leaves(state):
    """Every array of a state by name, the PRNG key as numbers."""
    state = state.replace(key=jax.random.key_data(state.key))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def agree(one, two):
    """The whole state and every metric to 1e-5, moments and scales to 1e-5 of their largest entry."""
    (state, log), (other, other_log) = one, two
    found, expected = leaves(state), leaves(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Not relative for parameters: the bias of the keys has no gradient but rounding, which Adam magnifies.
        size = 1.0 if name.startswith(".params") else np.abs(value).max(initial=0.0)
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5 * size, err_msg=name)
    for metrics, reference in zip(log, other_log, strict=True):
        assert metrics.keys() == reference.keys()
        for name, value in reference.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_training_moves_everything_that_is_compared(core, config, single):
    """Or equality would say nothing: parameters, moments, multipliers, weights and scales all leave their start."""
    start, end = leaves(core.state(config, numbers_of(core))), leaves(single[0])
    for name in ("params", "opt_state", "multipliers", "weights", "running_sigma", "value_scale", "score_ema"):
        parts = [part for part in start if part.startswith(f".{name}")]
        assert any(not np.array_equal(start[part], end[part]) for part in parts), name
    parameters = [name for name in start if name.startswith(".params")]
    assert all(np.abs(start[name] - end[name]).max() > 1e-4 for name in parameters)


@pytest.mark.parametrize(("backend", "shape"), LAYOUTS)
def test_a_mesh_trains_like_one_device(core, single, on_mesh, backend, shape):
    agree(train(core, *on_mesh(backend, shape)), single)


@pytest.mark.parametrize("layout", [("jit", None), ("jit", (2, 2, 2)), ("shard_map", (8, 1, 1))], ids=str)
@pytest.mark.parametrize("weights", ["gradnorm_cf", "fixed"])
def test_slices_of_a_minibatch_train_like_the_whole(core, layout, weights):
    """Gradient accumulation: with weights that need the norms (two passes) and with such that do not (one)."""
    backend, shape = layout
    whole, cut = (core.config(weights=weights, accumulation_steps=steps) for steps in (1, 2))
    state, options = core.state(whole, numbers_of(core)), core.fast_compile()

    def twice(rollout):
        """One sequence for every device, minibatch and slice."""
        return jax.tree.map(lambda x: np.concatenate([x, x[::-1]]), rollout)

    expected = train(core, compile_step(whole, donate=False, compiler_options=options), state, twice)
    if shape is None:
        agree(train(core, compile_step(cut, compiler_options=options), state, twice), expected)
        return
    mesh = make_mesh(*shape)
    step = compile_step(cut, backend=backend, mesh=mesh, state=state, compiler_options=options)
    where = rollout_sharding(mesh)
    state = jax.device_put(state, state_shardings(mesh, state))
    agree(train(core, step, state, lambda rollout: jax.device_put(twice(rollout), where)), expected)


# What else is summed, gathered or counted over devices: statistics of groups and dialogues that lie on two devices,
# halves of a minibatch, norms over all parameters, moments of the scores.
VARIANTS = (
    {"baseline": "group_mean", "adv_norm": "group", "loss_mean": "sequence", "kl": "k3", "kl_controller": "adaptive"}
    | {"multipliers": "hinge", "weights": "gradnorm", "norm_at": "all", "norm_of": "signal"},
    {"kl": "k1_reward", "kl_controller": "multiplier", "multipliers": "softplus", "weights": "cv"}
    | {"norm_at": "last_layer", "mix_norm": "sum_to_one", "epochs": 2},
    {
        "baseline": "leave_one_out",
        "adv_norm": "after",
        "multipliers": "crpo",
        "weights": "upgrad",
        "norm_at": "final_norm",
    },
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_on_eight_devices_like_on_one(core, variant):
    config, options, mesh = core.config(**variant), core.fast_compile(), make_mesh(8)
    numbers = numbers_of(core, gamma_turn=0.9, dual_clip=3.0)
    critic = None if config.baseline == "critic" else CriticConfig(kind="none")

    def fresh():
        return core.state(config, numbers, model=core.model(len(config.streams), critic=critic))

    def fill(rollout):
        rows = np.arange(len(rollout.tokens), dtype=np.int32)
        shape = (*rollout.resp_mask.shape, len(config.streams))
        values = 0.3 * np.random.default_rng(7).normal(size=shape).astype(np.float32)
        return rollout.replace(group=rows // 4, dialogue=rows // 5, turn=rows % 5, values_old=values)

    expected = train(core, compile_step(config, compiler_options=options), fresh(), fill)
    step = compile_step(config, backend="shard_map", mesh=mesh, compiler_options=options)
    place = partial(jax.device_put, device=rollout_sharding(mesh))
    state = fresh()
    state = jax.device_put(state, state_shardings(mesh, state))
    agree(train(core, step, state, lambda rollout: place(fill(rollout))), expected)


def test_parameters_and_moments_are_cut_on_the_mesh(core, on_mesh):
    """On (2, 2, 2), fsdp and tensor: a quarter of the embedding on each device, before and after a step."""
    step, state, place = on_mesh("jit", (2, 2, 2))
    new, _ = step(state, place(core.rollout()))
    for tree in (new.params, new.opt_state.mu, new.opt_state.nu):
        embedding = tree["trunk"]["embedding"]
        assert embedding.addressable_shards[0].data.size * 4 == embedding.size


def test_pmap_trains_like_one_device(core, config, single):
    final, log = train(core, compile_step(config, backend="pmap"), replicate(core.state(config, numbers_of(core))))
    for leaf in jax.tree.leaves(final.params):
        for copy in np.asarray(leaf)[1:]:
            np.testing.assert_array_equal(copy, np.asarray(leaf)[0])
    agree((unreplicate(final), log), single)


def test_one_program_gives_the_same_bits_twice_and_on_every_device(core, on_mesh):
    """Eight devices sum in a fixed order, each of them the same."""
    final, log = train(core, *on_mesh("shard_map", (8, 1, 1)))
    again, again_log = train(core, *on_mesh("shard_map", (8, 1, 1)))
    assert log == again_log
    other = leaves(again)
    for name, leaf in leaves(final).items():
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)
    for leaf in jax.tree.leaves((final.params, final.opt_state, final.multipliers, final.weights)):
        first, *copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 7
        for copy in copies:
            np.testing.assert_array_equal(copy, first)


SWEEP = (
    {},
    {"learning_rate": 1e-2, "value_learning_rate": 1e-2, "decay_steps": 5, "warmup_steps": 0},
    {"clip_low": 0.1, "clip_high": 0.5, "clip_value": 0.1, "max_grad_norm": 0.3},
    {"thresholds": {"inform": 0.1, "success": 0.2}, "targets": {"fluency": 0.4}, "stop_kl": 0.01},
    {"multiplier_kp": 1.0, "multiplier_ki": 0.5, "multiplier_kd": 1.0, "multiplier_max": 3.0},
    {"weight_ema": 0.5, "weight_floor": 0.2, "weight_alpha": 2.0, "gamma": 0.9, "gae_lambda": 0.8},
)


def test_a_sweep_over_numbers_does_not_compile_again(core, config, on_one_device):
    """Every number of the step is data; the state that comes back has the types of the one that went in."""
    step = on_one_device
    state, scores = core.state(config), []
    for changes in SWEEP:
        state, metrics = step(state.replace(hyper=hyper(config, core.numbers(**changes))), core.rollout())
        scores.append(float(metrics["policy_loss"]))
    assert step._cache_size() == 1
    assert len(set(scores)) == len(SWEEP)
    # A fresh state of the same structure is no reason to compile either.
    state, _ = step(core.state(config, core.numbers(learning_rate=0.5)), core.rollout(1))
    # Nor is any number that the sweep left out.
    step(state.replace(hyper=jax.tree.map(lambda number: 0.9 * number, state.hyper)), core.rollout(2))
    assert step._cache_size() == 1


def test_a_sweep_on_a_mesh_does_not_compile_again(core, config, on_mesh):
    step, state, place = on_mesh("jit", (2, 2, 2))
    where = state_shardings(make_mesh(2, 2, 2), state).hyper
    rollout = place(core.rollout())
    state, _ = step(state, rollout)
    before = len(COMPILED)
    for changes in SWEEP:
        numbers = jax.device_put(hyper(config, core.numbers(**changes)), where)
        state, _ = step(state.replace(hyper=numbers), rollout)
    assert len(COMPILED) == before


def test_another_shape_compiles_once_more(core, config, on_one_device):
    """A longer batch is another program; the first one is kept."""
    for sequences in (16, 8, 16, 8):
        on_one_device(core.state(config), core.rollout(sequences=sequences))
    assert on_one_device._cache_size() == 2


def test_no_transfer_inside_the_loop(core, config, on_one_device):
    """Once state and rollouts are on the device, a step asks the host for nothing, and gives it nothing."""
    rollouts = [jax.device_put(core.rollout(seed)) for seed in range(3)]
    state = core.state(config)
    with jax.transfer_guard("disallow_explicit"):
        for rollout in rollouts:
            state, metrics = on_one_device(state, rollout)
    assert np.isfinite(float(metrics["policy_loss"]))
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        on_one_device(state, core.rollout())


def test_no_transfer_inside_the_loop_on_a_mesh(core, on_mesh):
    step, state, place = on_mesh("jit", (2, 2, 2))
    rollouts = [place(core.rollout(seed)) for seed in range(3)]
    with jax.transfer_guard("disallow_explicit"):
        for rollout in rollouts:
            state, metrics = step(state, rollout)
    assert np.isfinite(float(metrics["policy_loss"]))


def test_the_old_state_is_donated(core, config, on_one_device):
    state = core.state(config)
    on_one_device(state, core.rollout())
    # `hyper` is handed through and may share its memory; all that is trained must be gone.
    trained = (state.params, state.opt_state, state.multipliers.value, state.weights.weights)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(trained))
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        on_one_device(state, core.rollout())


def test_the_new_state_takes_the_memory_of_the_old_one(core, on_mesh):
    """XLA's own account of one device: the aliased bytes are at least what parameters and moments take there."""
    step, state, place = on_mesh("jit", (2, 2, 2))
    compiled = step.lower(state, place(core.rollout())).compile()
    trained = jax.tree.leaves((state.params, state.opt_state))
    owned = sum(leaf.addressable_shards[0].data.nbytes for leaf in trained)
    assert owned < sum(leaf.nbytes for leaf in trained) / 3
    assert compiled.memory_analysis().alias_size_in_bytes >= owned


def test_donation_can_be_switched_off(core, config):
    state, rollout = core.state(config), core.rollout()
    for donate in (True, False):
        lowered = compile_step(config, donate=donate).lower(state, rollout)
        donated = [leaf.donated for leaf in jax.tree.leaves(lowered.args_info[0][0])]
        assert donated == [donate] * len(jax.tree.leaves(state))
        assert not any(leaf.donated for leaf in jax.tree.leaves(lowered.args_info[0][1]))


def test_an_unknown_backend_is_refused(config):
    with pytest.raises(ValueError, match="backend must be jit, shard_map, pmap, not 'tpu'"):
        compile_step(config, backend="tpu")


def test_pmap_refuses_a_mesh(config):
    with pytest.raises(ValueError, match="pmap is data-parallel only"):
        compile_step(config, backend="pmap", mesh=make_mesh(2, 2, 2))


def test_pmap_refuses_compiler_options(config):
    with pytest.raises(ValueError, match="pmap takes no compiler_options"):
        compile_step(config, backend="pmap", compiler_options={"xla_backend_optimization_level": 0})


def test_pmap_refuses_several_processes(config, monkeypatch):
    monkeypatch.setattr(compile_module.jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="pmap drives the devices of one process, found 2 processes"):
        compile_step(config, backend="pmap")


def test_shard_map_refuses_cut_parameters(config):
    with pytest.raises(ValueError, match="shard_map is data-parallel only, found a mesh with fsdp=4 and tensor=2"):
        compile_step(config, backend="shard_map", mesh=make_mesh(1, 4, 2))


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
