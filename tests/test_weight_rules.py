"""Weight rules that iterate or read the scores, by hand; the cap; and what every rule keeps to."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from morejax.reweight import NEEDS_GRAM, NEEDS_MOMENTS, RULES, WeightSettings, WeightStats, init_weights, update_weights

AT_ONCE = WeightSettings(ema=0.0, floor=0.0)
jitted_update = jax.jit(update_weights, static_argnames="rule")


def array(*values):
    return jnp.array(values, jnp.float32)


def stats(gram=None, count=2, **changes):
    """J = J(0) = 0, J* = 1 and unit orthogonal gradients where nothing else is said."""
    gram = jnp.eye(count) if gram is None else jnp.asarray(gram, jnp.float32)
    zeros, ones = jnp.zeros(len(gram)), jnp.ones(len(gram))
    return WeightStats(gram, **({"score": zeros, "initial_score": zeros, "target": ones} | changes))


def test_gradnorm_by_hand():
    """n = (1, 3), equal deficits, v = (1, 1): v n = (1, 3), wanted 2 each, steps -+lr n / 2 with lr = .1.

    v = (1.05, .85): (.552632, .447368). Then v = (1.105263, .894737), v n = (1.105, 2.684): again, by .05 and .15.
    """
    settings, measured = AT_ONCE.replace(lr=0.1), stats(np.diag([1.0, 9.0]))
    state = jitted_update(init_weights([1, 1]), measured, "gradnorm", settings)
    np.testing.assert_allclose(state.weights, array(1.05, 0.85) / 1.9, rtol=1e-5)
    state = jitted_update(state, measured, "gradnorm", settings)
    second = array(2.1 / 1.9 + 0.05, 1.7 / 1.9 - 0.15)
    np.testing.assert_allclose(state.weights, second / second.sum(), rtol=1e-5)


def test_gradnorm_goes_to_its_fixed_point():
    """The closed form, up to the length of a step."""
    measured = stats(np.diag([0.25, 4.0, 1.0]), score=array(0.1, 0.5, 0.8))
    settings = AT_ONCE.replace(lr=0.005, alpha=1.5)
    start = init_weights([1, 2, 1])
    state = jax.lax.fori_loop(0, 800, lambda _, s: update_weights(s, measured, "gradnorm", settings), start)
    wanted = jitted_update(start, measured, "gradnorm_cf", settings).weights
    np.testing.assert_allclose(state.weights, wanted, atol=0.01)
    np.testing.assert_allclose(state.raw.sum(), 1.0, rtol=1e-5)


def test_dyn_by_hand():
    """g = (1, 0), (1, 2): G = [[1, 1], [1, 5]], influences 2 and 6, s = (1 + sqrt 5)^2 / 2 = 5.236068; lr 1."""
    gram, scale = [[1.0, 1.0], [1.0, 5.0]], (1 + 5**0.5) ** 2 / 2
    state = jitted_update(init_weights([1, 3]), stats(gram), "dyn", AT_ONCE.replace(lr=1.0))
    raw = np.array([0.25 * np.exp(2 / scale), 0.75 * np.exp(6 / scale)])
    np.testing.assert_allclose(state.weights, raw / raw.sum(), rtol=1e-5)
    state = jitted_update(state, stats(gram), "dyn", AT_ONCE.replace(lr=1.0))
    raw = np.array([0.25 * np.exp(4 / scale), 0.75 * np.exp(12 / scale)])
    np.testing.assert_allclose(state.weights, raw / raw.sum(), rtol=1e-5)


def test_iterated_weights_can_come_back():
    """After 500 pushes one way, 30 pushes the other way turn the weights round: memory does not wind up."""
    one, other = np.diag([9.0, 1.0]), np.diag([1.0, 9.0])
    settings, state = AT_ONCE.replace(lr=0.5), init_weights([1, 1])

    def push(state, gram, times):
        return jax.lax.fori_loop(0, times, lambda _, s: update_weights(s, stats(gram), "dyn", settings), state)

    state = push(state, one, 500)
    assert state.weights[0] > 0.99
    assert push(state, other, 30).weights[1] > 0.9


def test_improve_by_hand():
    """J* = (1, 2), J(0) = 0: gaps 1, 2. From J = 0 to (.1, .1): slopes .1 and .05, tau .05: exp(-2), exp(-1)."""
    settings = AT_ONCE.replace(tau=0.05)
    target = array(1, 2)
    state = jitted_update(init_weights([1, 1]), stats(target=target), "improve", settings)
    np.testing.assert_allclose(state.weights, [0.5, 0.5], rtol=1e-6)
    state = jitted_update(state, stats(target=target, score=array(0.1, 0.1)), "improve", settings)
    np.testing.assert_allclose(state.slope, [0.1, 0.05], rtol=1e-5)
    wanted = np.exp([-2.0, -1.0])
    np.testing.assert_allclose(state.weights, wanted / wanted.sum(), rtol=1e-4)


@pytest.mark.parametrize("rule", ["improve", "ctwa"])
def test_rules_of_a_rollout_learn_once_a_rollout(rule):
    """The second and third minibatch of a rollout bring nothing new; the next rollout does."""

    def measured(number, score):
        return stats(score=array(score, 0.0), corr=array(0.0, 0.4), rollout=jnp.int32(number))

    state = jitted_update(init_weights([1, 1]), measured(0, 0.0), rule, AT_ONCE)
    first = jitted_update(state, measured(1, 0.1), rule, AT_ONCE)
    again = jitted_update(first, measured(1, 0.1), rule, AT_ONCE)
    for before, now in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(now, before, rtol=1e-6)
    later = jitted_update(again, measured(2, 0.3), rule, AT_ONCE)
    assert float(jnp.abs(later.weights - again.weights).max()) > 1e-3
    assert later.seen.tolist() == [3, 3]
    assert int(later.rollout) == 2


def test_ctwa_by_hand():
    """c* = .5, lr 1, corr (.1, .9) then (.3, .9), decay .5: first pushes .4 and 0, then EMA .2: .3 and 0."""
    settings = AT_ONCE.replace(ema=0.5, lr=1.0)
    state = jitted_update(init_weights([1, 1]), stats(corr=array(0.1, 0.9)), "ctwa", settings)
    np.testing.assert_allclose(state.raw, np.array([np.exp(0.4), 1]) / (1 + np.exp(0.4)), rtol=1e-5)
    state = jitted_update(state, stats(corr=array(0.3, 0.9)), "ctwa", settings)
    np.testing.assert_allclose(state.corr, [0.2, 0.9], rtol=1e-5)
    np.testing.assert_allclose(state.raw, np.array([np.exp(0.7), 1]) / (1 + np.exp(0.7)), rtol=1e-5)


def test_cv_and_var_by_hand():
    """mean (.5, -2), std (.1, .2): cv (.2, .1), std^2 (.01, .04). A mean of 0 is bounded, no spread gives nothing."""
    measured = stats(mean=array(0.5, -2.0), std=array(0.1, 0.2))
    for rule, power, wanted in [("cv", 1, [2 / 3, 1 / 3]), ("var", 1, [1 / 3, 2 / 3]), ("var", 2, [0.2, 0.8])]:
        state = jitted_update(init_weights([1, 1]), measured, rule, AT_ONCE.replace(power=float(power)))
        np.testing.assert_allclose(state.weights, wanted, rtol=1e-5)
    around_zero = stats(mean=array(0.0, 1.0), std=array(0.3, 1.0))
    np.testing.assert_allclose(
        jitted_update(init_weights([1, 1]), around_zero, "cv", AT_ONCE).weights, [1000 / 1001, 1 / 1001], rtol=1e-4
    )
    constant = stats(mean=array(1.0, 1.0), std=array(0.0, 0.0))
    for rule in ("cv", "var"):
        state = jitted_update(init_weights([1, 3]), constant, rule, WeightSettings())
        np.testing.assert_allclose(state.weights, [0.25, 0.75], rtol=1e-6)


def test_cap_by_hand():
    """inv_norm of n = (1, 4, 8): (8, 2, 1) / 11. Cap .5: .2273 is over, half of it each: (.5, .2955, .2045)."""
    measured = stats(np.diag([1.0, 16.0, 64.0]))
    state = jitted_update(init_weights([1, 1, 1]), measured, "inv_norm", AT_ONCE.replace(cap=0.5))
    excess = 8 / 11 - 0.5
    np.testing.assert_allclose(state.weights, [0.5, 2 / 11 + excess / 2, 1 / 11 + excess / 2], rtol=1e-5)
    # at .35 half of the excess fills the second too; at 1/3, and below what three can hold, all are equal
    for cap, wanted in [(0.35, [0.35, 0.35, 0.3]), (1 / 3, [1 / 3] * 3), (0.1, [1 / 3] * 3)]:
        state = jitted_update(init_weights([1, 1, 1]), measured, "inv_norm", AT_ONCE.replace(cap=cap))
        np.testing.assert_allclose(state.weights, wanted, rtol=1e-5)
    off = jitted_update(init_weights([1, 1, 1]), measured, "inv_norm", AT_ONCE)
    np.testing.assert_allclose(off.weights, array(8, 2, 1) / 11, rtol=1e-6)


def test_missing_statistics_are_named():
    zeros = jnp.zeros(2)
    nothing = WeightStats(None, zeros, zeros, zeros)
    for rule in NEEDS_GRAM:
        with pytest.raises(ValueError, match=r"stats\.gram is None"):
            update_weights(init_weights([1, 1]), nothing, rule, WeightSettings())
    for rule, names in NEEDS_MOMENTS.items():
        with pytest.raises(ValueError, match=rf"stats\.({'|'.join(names)}) is None"):
            update_weights(init_weights([1, 1]), nothing, rule, WeightSettings())
    for rule in set(RULES) - NEEDS_GRAM - set(NEEDS_MOMENTS):
        update_weights(init_weights([1, 1]), nothing, rule, WeightSettings())


def random_stats(rng, scale=1.0, **changes):
    gradients = rng.normal(size=(4, 9)) * 10 ** rng.uniform(-0.5, 0.5, (4, 1))
    drawn = {name: rng.uniform(0.1, 1, 4) for name in ("score", "initial_score", "target", "mean", "std")}
    drawn |= {"corr": rng.uniform(-1, 1, 4), "count": np.ones(4), "gram": scale * gradients @ gradients.T}
    return WeightStats(**{name: jnp.asarray(x, jnp.float32) for name, x in (drawn | changes).items()})


def play(rule, seed, settings, base, order=(0, 1, 2, 3), scale=1.0):
    """Three updates on random statistics of four objectives, taken in another order if asked for."""
    rng, order = np.random.default_rng(seed), np.asarray(order)
    state = init_weights(np.asarray(base, np.float32)[order])
    for _ in range(3):
        measured = jax.tree.map(lambda x: permuted(x, order), random_stats(rng, scale))
        state = jitted_update(state, measured, rule, settings)
    return state


def permuted(x, order):
    return x[order][:, order] if x.ndim == 2 else x[order]


@pytest.mark.parametrize("rule", RULES)
@examples(max_examples=15)
@given(seed=st.integers(0, 2**31 - 1), cap=st.sampled_from([0.25, 0.3, 0.5, 1.0]))
def test_weights_keep_simplex_floor_and_cap_and_follow_permutations(rule, seed, cap):
    rng = np.random.default_rng(seed)
    base = np.full(4, 0.25) if cap < 0.5 else rng.uniform(0.2, 0.25, 4)
    settings = WeightSettings(ema=0.5, floor=0.2, cap=cap, lr=0.3)
    state, order = play(rule, seed, settings, base), rng.permutation(4)
    np.testing.assert_allclose(np.sum(state.weights), 1.0, rtol=1e-5)
    np.testing.assert_allclose(np.sum(state.raw), 1.0, rtol=1e-5)
    assert np.all(np.asarray(state.weights) >= 0.2 * np.asarray(state.base) - 1e-6)
    assert float(np.max(state.weights)) <= max(cap, float(np.max(state.base))) + 1e-6
    np.testing.assert_allclose(play(rule, seed, settings, base, order).weights, state.weights[order], atol=2e-3)


@pytest.mark.parametrize("rule", sorted(NEEDS_GRAM))
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_the_gradients_does_not_matter(rule, scale):
    settings = WeightSettings(ema=0.5, lr=0.3)
    for seed in range(5):
        one, other = (play(rule, seed, settings, [1, 1, 2, 1], scale=x) for x in (1.0, scale))
        np.testing.assert_allclose(other.weights, one.weights, atol=2e-3)


@pytest.mark.parametrize("rule", RULES)
def test_what_does_not_apply_keeps_its_weight_and_memory(rule):
    """Bit for bit, whatever its statistics hold."""
    settings = WeightSettings(ema=0.5, lr=0.3)
    before = play(rule, 0, settings, [1, 1, 2, 1])
    nan = {name: [0.5, 0.3, 0.4, np.nan] for name in ("score", "mean", "std", "corr")}
    measured = random_stats(np.random.default_rng(1), **nan, count=[3, 3, 3, 0])
    after = jitted_update(before, measured, rule, settings)
    for name in ("weights", "raw", "slope", "corr", "last_score", "seen"):
        assert getattr(after, name)[3] == getattr(before, name)[3], name
        assert bool(jnp.all(jnp.isfinite(getattr(after, name)))), name
    np.testing.assert_allclose(after.weights.sum(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("rule", sorted(NEEDS_GRAM))
def test_nan_gradients_show_under_every_rule(rule):
    gram = np.eye(4)
    gram[1, 1] = np.nan
    measured = random_stats(np.random.default_rng(0), gram=gram)
    state = jitted_update(init_weights([1, 1, 1, 1]), measured, rule, WeightSettings())
    assert bool(jnp.any(jnp.isnan(state.weights)))


def test_no_buffer_is_shared():
    """The state is donated, and a buffer cannot be donated twice."""
    leaves = jax.tree.leaves(init_weights([1, 3]))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
