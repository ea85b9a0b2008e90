"""Properties of the whole step on random rollouts: what must not matter, what must scale along, what stays in range."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

EPOCHS = 2
SEEDS = st.integers(0, 2**31 - 1)
# An example is two or more steps, and rollouts from a seed cannot be made simpler: shrinking would take minutes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
few = settings(max_examples=12, phases=PHASES)


@pytest.fixture(scope="module")
def config(core):
    """Two epochs of two minibatches, PID, gradnorm_cf, advantages normalised per stream, exact KL."""
    return core.config(epochs=EPOCHS)


def leaves(tree):
    """(path, array) of every leaf, random keys as numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        yield jax.tree_util.keystr(path), np.asarray(leaf)


def same(one, two, **tolerance):
    """Same leaves, bit for bit unless a tolerance is given."""
    check = partial(np.testing.assert_allclose, **tolerance) if tolerance else np.testing.assert_array_equal
    for (name, a), (_, b) in zip(leaves(one), leaves(two), strict=True):
        check(a, b, err_msg=name)


# ---- padding and masks -------------------------------------------------------------------------------------------


def scattered(rng, where, array):
    """The array, and where it is not looked at a wild mixture of numbers."""
    wild = rng.choice([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, -7.0], size=array.shape)
    return np.where(where, array, wild).astype(np.float32)


@few
@given(SEEDS, st.sampled_from([None, 0, 1, 2, 3, 4]), st.booleans())
def test_what_masks_hide_may_be_anything(core, config, seed, absent, empty_row):
    """NaN and infinity included, but for values, which come from a critic, that never gives them.

    Random masks, at times a row without reply, at times a stream that applies to no row.
    """
    rng, rollout = np.random.default_rng(seed), core.rollout(seed)
    if empty_row:
        rollout.resp_mask[rng.integers(16)] = False
    if absent is not None:
        rollout.applies[:, absent] = False
    resp, applies = rollout.resp_mask, rollout.applies
    token = np.broadcast_to(resp[:, :, None], rollout.ref_logps.shape)
    both = resp[:, :, None] & applies[:, None, :]
    hidden = rollout.replace(
        tokens=np.where(rollout.mask, rollout.tokens, rng.integers(0, 64, rollout.tokens.shape)).astype(np.int32),
        logp_old=scattered(rng, resp, rollout.logp_old),
        logp_ref=scattered(rng, resp, rollout.logp_ref),
        ref_logps=scattered(rng, token, rollout.ref_logps),
        values_old=np.where(both, rollout.values_old, rng.choice([1e30, -1e30, 3.0], both.shape)).astype(np.float32),
        objectives=scattered(rng, both[..., :3], rollout.objectives),
        constraints=scattered(rng, both[..., 3:], rollout.constraints),
        scores=scattered(rng, applies, rollout.scores),
        score_weights=scattered(rng, applies, rollout.score_weights),
    )
    state = core.state(config)
    expected = core.step(config)(state, rollout)
    assert all(np.isfinite(value) for value in expected[1].values())
    same(core.step(config)(state, hidden), expected)


@settings(max_examples=6, phases=PHASES)
@given(SEEDS)
def test_more_padding_changes_no_number(core, config, seed):
    """Three more columns on the left of the contexts and two on the right of the replies, all hidden by the masks."""
    rollout, state = core.rollout(seed), core.state(config)
    left, right = ((0, 0), (3, 0)), ((0, 0), (0, 2))

    def wider(x):
        return np.pad(x, (*right, *((0, 0),) * (x.ndim - 2)))

    names = ("resp_mask", "logp_old", "logp_ref", "ref_logps", "values_old", "objectives", "constraints")
    padded = rollout.replace(
        tokens=np.pad(rollout.tokens, ((0, 0), (3, 2))),
        context_mask=np.pad(rollout.context_mask, left),
        **{name: wider(getattr(rollout, name)) for name in names},
    )
    same(core.step(config)(state, padded), core.step(config)(state, rollout), rtol=1e-4, atol=2e-6)


# ---- permutations ------------------------------------------------------------------------------------------------


@few
@given(SEEDS)
def test_sequences_of_a_minibatch_may_stand_in_any_order(core, config, seed):
    """Minibatches are strided: row i belongs to minibatch i mod 2. Sums are rounded differently, no more."""
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(8) * 2, rng.permutation(8) * 2 + 1], axis=1).reshape(-1)
    rollout, state = core.rollout(seed), core.state(config)
    two = core.step(config)(state, jax.tree.map(lambda x: x[order], rollout))
    same(two, core.step(config)(state, rollout), rtol=1e-4, atol=2e-6)


def reordered(tree, objectives, constraints):
    """A state with its streams in another order: arrays that end in an axis H, and vectors of length K and M."""
    streams = [*objectives, *(len(objectives) + m for m in constraints)]
    by_length = {len(objectives): objectives, len(constraints): constraints}

    def move(leaf):
        if leaf.ndim and leaf.shape[-1] == len(streams):
            return leaf[..., np.array(streams)]
        return leaf[np.array(by_length[leaf.size])] if leaf.ndim == 1 and leaf.size in by_length else leaf

    return jax.tree.map(move, tree)


def renamed(metrics, names):
    """Metrics under other names of the streams; a cosine is the same either way round."""
    out = {}
    for metric, value in metrics.items():
        head, *parts = (names.get(part, part) for part in metric.split("/"))
        out["/".join([head, *(sorted(parts) if head == "cosine" else parts)])] = value
    return out


@few
@given(SEEDS, st.permutations(range(3)), st.permutations(range(2)))
def test_permuting_streams_permutes_results(core, config, seed, objectives, constraints):
    """Objectives and constraints in another order, everywhere: rollout, critic, thresholds, memory."""
    state, _ = core.step(config)(core.state(config), core.rollout(1))
    rollout = core.rollout(seed)
    streams = [*objectives, *(3 + m for m in constraints)]
    moved = rollout.replace(
        objectives=rollout.objectives[..., objectives],
        constraints=rollout.constraints[..., constraints],
        **{name: getattr(rollout, name)[..., streams] for name in ("values_old", "applies", "scores", "score_weights")},
    )
    new, metrics = core.step(config)(state, rollout)
    found, found_metrics = core.step(config)(reordered(state, objectives, constraints), moved)
    same(found, reordered(new, objectives, constraints), rtol=1e-4, atol=2e-6)
    names = {config.streams[i]: config.streams[stream] for i, stream in enumerate(streams)}
    same(renamed(found_metrics, names), renamed(metrics, {}), rtol=1e-4, atol=2e-6)


# ---- scales ------------------------------------------------------------------------------------------------------


def play(core, config, numbers, rollouts):
    """State and metrics after each of some rollouts."""
    state, out = core.state(config, numbers), []
    for rollout in rollouts:
        state, metrics = core.step(config)(state, rollout)
        out.append((state, metrics))
    return out


@few
@given(SEEDS, st.sampled_from([-5, -1, 3, 10]), st.integers(0, 4))
def test_the_unit_of_a_reward_does_not_matter(core, config, seed, power, stream):
    """Under `stream` and `gradnorm_cf` a reward times 2^n gives the same policy, critic, weights and multipliers.

    What scales with it: an objective's J, with its target; the running std of the advantages, whose share is the
    normaliser's floor; the unit of the critic. A constraint's J stays a rate in [0, 1], as its threshold is. Powers of
    two, so that rounding is the same and equality is bit for bit. A fresh critic gives 0; later ones speak in units.
    """
    scale, name = np.float32(2.0**power), config.streams[stream]
    factors = np.ones(5, np.float32)
    factors[stream] = scale
    rollouts = [core.rollout(seed + i) for i in range(3)]
    rollouts[0] = rollouts[0].replace(values_old=np.zeros_like(rollouts[0].values_old))
    scaled = [
        rollout.replace(
            objectives=rollout.objectives * factors[:3],
            constraints=rollout.constraints * factors[3:],
            scores=rollout.scores * np.where(np.arange(5) < 3, factors, 1),
        )
        for rollout in rollouts
    ]
    units = {f"advantage_sigma/{name}": scale} | ({f"J/{name}": scale} if stream < 3 else {})
    units[f"multiplier_kkt/{name}"] = 1 / scale  # of a constraint: its price is per unit of its reward
    # The price of every constraint is in units of all the objectives together, which one of them leaves changed.
    priced = {f"multiplier_kkt/{constraint}" for constraint in config.constraints} if stream < 3 else set()
    targets = {name: float(scale)} if stream < 3 else {}
    expected = play(core, config, core.numbers(), rollouts)
    found = play(core, config, core.numbers(targets=targets), scaled)
    for (new, metrics), (old, old_metrics) in zip(found, expected, strict=True):
        same(new.running_sigma, old.running_sigma * factors)
        same(new.value_scale, old.value_scale * factors)
        same((new.score_ema, new.score_initial), (old.score_ema * factors[:3], old.score_initial * factors[:3]))
        same(new.weights.weights, old.weights.weights)
        for kept in ("params", "opt_state", "multipliers", "kl_coef"):
            same(getattr(new, kept), getattr(old, kept))
        expected_metrics = {key: value * units.get(key, 1.0) for key, value in old_metrics.items()}
        same(*({k: v for k, v in m.items() if k not in priced} for m in (metrics, expected_metrics)))


# ---- streams that do not apply -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unmixed(core):
    """Multipliers are not in each other's denominator, so that one without rows has no say at all."""
    return core.config(mix_norm="none")


@few
@given(SEEDS, st.sets(st.integers(0, 4), min_size=1, max_size=4))
def test_streams_without_rows_have_no_say_and_keep_their_memory(core, unmixed, seed, absent):
    """Another reward, score and multiplier of streams that apply nowhere: the same step, bit for bit."""
    absent = sorted(absent)
    config, rng = unmixed, np.random.default_rng(seed)
    warm, _ = core.step(config)(core.state(config), core.rollout(1))
    state = warm.replace(opt_state=warm.tx.init(warm.params))  # no momentum from before
    rollout = core.rollout(seed)
    rollout.applies[:, absent] = False
    new, metrics = core.step(config)(state, rollout)

    hidden = {name: getattr(rollout, name).copy() for name in ("objectives", "constraints", "scores", "values_old")}
    hidden["objectives"][..., [k for k in absent if k < 3]] = rng.normal(scale=9)
    hidden["constraints"][..., [k - 3 for k in absent if k >= 3]] = rng.normal(scale=9)
    hidden["scores"][..., absent] = hidden["values_old"][..., absent] = rng.random()
    multipliers = state.multipliers
    for m in (stream - 3 for stream in absent if stream >= 3):
        multipliers = multipliers.replace(value=multipliers.value.at[m].set(7.0))
    other, _ = core.step(config)(state.replace(multipliers=multipliers), rollout.replace(**hidden))
    for kept in ("params", "opt_state", "weights", "score_ema", "running_sigma", "value_scale"):
        same(getattr(other, kept), getattr(new, kept))

    for stream in absent:
        name = config.streams[stream]
        for metric in ("J", "stream_loss", "grad_norm", "share", "clip_fraction", "explained_variance"):
            assert metrics[f"{metric}/{name}"] == 0, (metric, name)
    objectives = np.array([k for k in absent if k < 3], int)
    constraints = np.array([k - 3 for k in absent if k >= 3], int)
    for kept in ("running_sigma", "value_scale", "value_seen"):
        same(getattr(new, kept)[np.array(absent)], getattr(state, kept)[np.array(absent)])
    for kept in ("score_ema", "score_initial", "score_seen"):
        same(getattr(new, kept)[objectives], getattr(state, kept)[objectives])
    same(*(jax.tree.map(lambda x: x[constraints], one.multipliers) for one in (new, state)))
    same(*(one.params["value"]["head"]["outer"]["kernel"][:, np.array(absent)] for one in (new, state)))
    np.testing.assert_allclose(new.weights.weights[objectives], state.weights.weights[objectives], rtol=1e-6)


# ---- ranges ------------------------------------------------------------------------------------------------------

NUMBERS = {
    "multiplier_kp": st.floats(0, 50),
    "multiplier_ki": st.floats(0, 10),
    "multiplier_kd": st.floats(0, 50),
    "multiplier_lr": st.floats(0, 50),
    "multiplier_ema": st.floats(0, 1),
    "multiplier_dead_band": st.floats(0, 3),
    "weight_ema": st.floats(0, 1),
    "weight_floor": st.floats(0, 1),
    "weight_alpha": st.floats(0, 4),
}


@pytest.mark.parametrize("rule", ["pid", "clip"])
@few
@given(data=st.data())
def test_multipliers_stay_in_range_and_weights_on_the_simplex(core, rule, data):
    """Whatever the numbers and the scores, with flat rewards and streams that drop out in between."""
    config = core.config(epochs=EPOCHS, multipliers=rule)
    cap = data.draw(st.floats(0.125, 10, width=32))
    numbers = core.numbers(
        multiplier_max=cap,
        multiplier_init=data.draw(st.floats(0, cap)),
        objective_weights=dict(zip(config.objectives, data.draw(st.permutations([0.0, 1.0, 3.0])), strict=True)),
        **{name: data.draw(values) for name, values in NUMBERS.items()},
    )
    state = core.state(config, numbers)
    base = np.asarray(state.weights.base)
    for number in range(3):
        rollout = core.rollout(number)
        rollout.applies[:, data.draw(st.lists(st.integers(0, 4), max_size=4))] = False
        rollout.scores[:] = data.draw(st.lists(st.floats(-1, 2, width=32), min_size=5, max_size=5))
        rollout.objectives[..., data.draw(st.lists(st.integers(0, 2), max_size=3))] = data.draw(st.floats(-1, 1))
        state, metrics = core.step(config)(state, rollout)
        assert all(np.isfinite(value) for value in metrics.values())
        value, weights = np.asarray(state.multipliers.value), np.asarray(state.weights.weights)
        assert (value >= 0).all()
        assert (value <= np.float32(cap)).all()
        np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-5)
        assert (weights >= numbers.weight_floor * base - 1e-6).all()
        assert weights[base == 0] == 0
