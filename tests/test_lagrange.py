"""Multiplier rules by hand, step by step, and their invariants."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morejax.lagrange import (
    RULES,
    MultiplierGains,
    hinge_applies,
    init_multipliers,
    mixing_coefficients,
    relative_thresholds,
    standard_error,
    update_multipliers,
)

NO_SMOOTHING = MultiplierGains(ema=0.0)
FROZEN = ("fixed", "hinge")
jitted_update = jax.jit(update_multipliers, static_argnames="rule")


def array(*values):
    return jnp.array(values, jnp.float32)


def play(rule, gains, scores, threshold=0.9, initial=1.0, count=100.0):
    """Feed scores to one multiplier, return the values after each update."""
    state, values = init_multipliers(1, initial, rule), []
    for score in scores:
        state, _ = jitted_update(state, array(score), array(count), array(threshold), rule, gains)
        values.append(float(state.value[0]))
    return state, values


def test_clip_rule_by_hand():
    """lr 0.5, d 0.9, no smoothing: 1 + .5*(.9-.5) = 1.2; 1.2 + .5*(.9-1) = 1.15."""
    _, values = play("clip", NO_SMOOTHING.replace(lr=0.5), [0.5, 1.0])
    np.testing.assert_allclose(values, [1.2, 1.15], rtol=1e-6)


def test_pid_by_hand():
    """kp 2, ki 0.5, kd 1, decay 0.5, d 0.9, initial lambda (= integral) 1.

    t   J     EMA    e      I                   D                lambda = 2e + I + D
    1   0.5   0.5    0.4    1 + .2   = 1.2      0                0.8 + 1.2        = 2.0
    2   0.9   0.7    0.2    1.2 + .1 = 1.3      0 (rose)         0.4 + 1.3        = 1.7
    3   0.3   0.5    0.4    1.3 + .2 = 1.5      .7 - .5 = .2     0.8 + 1.5 + 0.2  = 2.5
    """
    gains = MultiplierGains(kp=2.0, ki=0.5, kd=1.0, ema=0.5)
    state, values = play("pid", gains, [0.5, 0.9, 0.3])
    np.testing.assert_allclose(values, [2.0, 1.7, 2.5], rtol=1e-6)
    np.testing.assert_allclose(state.integral, [1.5], rtol=1e-6)
    np.testing.assert_allclose(state.ema_score, [0.5], rtol=1e-6)
    np.testing.assert_allclose(state.prev_score, [0.7], rtol=1e-6)
    np.testing.assert_allclose(state.ema_error, [0.4], rtol=1e-6)
    assert state.seen.tolist() == [3]


def test_pid_honours_the_initial_multiplier():
    """Score on the threshold: the error is 0 and lambda stays where it was set."""
    _, values = play("pid", MultiplierGains(), [0.9, 0.9], initial=3.0)
    np.testing.assert_allclose(values, [3.0, 3.0], rtol=1e-5)


def test_first_observation_is_adopted():
    """A zero-initialised average would see J = 0.09 and raise lambda; the score is above its threshold."""
    state, values = play("pid", MultiplierGains(), [0.95])
    np.testing.assert_allclose(state.ema_score, [0.95], rtol=1e-6)
    assert values[0] < 1.0
    # also when the first rollouts did not test the constraint at all
    state = init_multipliers(1, 1.0)
    for score, count in [(jnp.nan, 0.0), (0.95, 10.0)]:
        state, _ = update_multipliers(state, array(score), array(count), array(0.9), "pid", MultiplierGains())
    np.testing.assert_allclose(state.ema_score, [0.95], rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_untested_constraint_keeps_everything(rule):
    state, _ = play(rule, MultiplierGains(), [0.5, 0.6], initial=0.5)
    after, info = update_multipliers(state, array(jnp.nan), array(0.0), array(0.9), rule, MultiplierGains())
    for before, now in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(before, now)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in info.values())
    assert info["violation"] == 0.0


def test_standard_error_by_hand():
    """J = 0.9, n = 64: sqrt(.9 * .1 / 64) = 0.0375, the 3.7 points of noise of one batch."""
    np.testing.assert_allclose(standard_error(array(0.9, 0.9, 1.2), array(64, 0, 64)), [0.0375, 0.0, 0.0], rtol=1e-5)


def test_dead_band_by_hand():
    """J = 0.5, n = 100: SE = 0.05. z = 1 takes 0.05 off the integral's error of 0.4, and all of 0.03's.

    far     e = 0.40:  I = 1 + .5*.35 = 1.175,   lambda = 2*.40 + 1.175 = 1.975
    near    e = 0.03:  I = 1,                    lambda = 2*.03 + 1     = 1.06   (P is not banded)
    over    e = -0.1:  I = 1 - .5*.05 = 0.975,   lambda = 2*-.1 + .975  = 0.775
    """
    gains = NO_SMOOTHING.replace(kp=2.0, ki=0.5, dead_band_z=1.0)
    state, info = update_multipliers(
        init_multipliers(3, 1.0),
        array(0.5, 0.5, 0.5),
        array(100, 100, 100),
        array(0.9, 0.53, 0.4),
        "pid",
        gains,
    )
    np.testing.assert_allclose(info["standard_error"], [0.05] * 3, rtol=1e-5)
    np.testing.assert_allclose(state.integral, [1.175, 1.0, 0.975], rtol=1e-5)
    np.testing.assert_allclose(state.value, [1.975, 1.06, 0.775], rtol=1e-5)


def test_integral_does_not_wind_up():
    """However long the constraint was violated, lambda starts to fall at the first satisfied rollout."""
    gains = NO_SMOOTHING.replace(kp=0.0, ki=0.5, max=2.0)
    state, values = play("pid", gains, [0.0] * 50)
    assert values[-1] == 2.0
    state, _ = update_multipliers(state, array(1.0), array(10.0), array(0.9), "pid", gains)
    np.testing.assert_allclose(state.value, [1.95], rtol=1e-5)  # 2 + .5 * (.9 - 1)


def test_satisfied_constraint_lets_go():
    _, values = play("pid", MultiplierGains(ki=0.2, kp=0.0), [1.0] * 100, initial=1.0)
    assert values == sorted(values, reverse=True)
    assert values[-1] == 0.0


def test_info_by_hand():
    """EMA 0.5 over 0.5, 0.7: 0.6. error .9-.6 = .3; violation of this rollout .9-.7 = .2."""
    gains = MultiplierGains(ema=0.5)
    state, _ = play("pid", gains, [0.5])
    new, info = update_multipliers(state, array(0.7), array(24.0), array(0.9), "pid", gains)
    np.testing.assert_allclose(info["error"], [0.3], rtol=1e-5)
    np.testing.assert_allclose(info["violation"], [0.2], rtol=1e-5)
    np.testing.assert_allclose(info["standard_error"], [0.1], rtol=1e-5)  # sqrt(.6*.4/24)
    np.testing.assert_array_equal(info["multiplier"], new.value)
    np.testing.assert_array_equal(info["integral"], new.integral)


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data())
def test_multipliers_stay_in_range(rule, data):
    unit = st.floats(0, 1, width=32)
    scores = data.draw(st.lists(unit, min_size=1, max_size=12))
    gains = MultiplierGains(
        lr=data.draw(st.floats(0, 100, width=32)),
        kp=data.draw(st.floats(0, 100, width=32)),
        ki=data.draw(st.floats(0, 100, width=32)),
        kd=data.draw(st.floats(0, 100, width=32)),
        max=4.0,
        ema=data.draw(st.floats(0, 0.984375, width=32)),
        dead_band_z=data.draw(st.floats(0, 3, width=32)),
    )
    gains = gains.replace(max=data.draw(st.sampled_from([0.0, 0.75, 4.0])))
    count, initial = data.draw(st.sampled_from([0.0, 1.0, 64.0])), min(0.5, float(gains.max))
    if rule in ("exp", "softplus", "sigmoid"):
        initial = max(initial, 0.001)
    _, values = play(rule, gains, scores, data.draw(unit), initial, count)
    least = -gains.max if rule == "tanh" else 0.0
    assert count == 0.0 or all(least <= value <= max(gains.max, initial if rule in FROZEN else 0) for value in values)


@given(st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_a_worse_score_never_gives_a_smaller_multiplier(one, other):
    worse, better = min(one, other), max(one, other)
    for rule in RULES:
        _, (low,) = play(rule, MultiplierGains(), [better], initial=0.5)
        _, (high,) = play(rule, MultiplierGains(), [worse], initial=0.5)
        assert high >= low - 1e-6


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "crpo"])
def test_constraints_do_not_touch_each_other_and_vmap_agrees(rule):
    scores, counts, thresholds = array(0.3, 0.95, 0.6), array(10, 0, 50), array(0.9, 0.8, 0.6)
    update = partial(update_multipliers, rule=rule, gains=MultiplierGains())
    initial = [0.5, 0.75, 0.25]
    together, _ = update(init_multipliers(3, initial, rule), scores, counts, thresholds)
    for m in range(3):
        alone, _ = update(
            init_multipliers(1, [initial[m]], rule),
            scores[m : m + 1],
            counts[m : m + 1],
            thresholds[m : m + 1],
        )
        for whole, part in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(whole[m : m + 1], part, rtol=1e-6)
    state = jax.tree.map(lambda x: jnp.stack([x, x]), init_multipliers(3, initial, rule))
    batched, _ = jax.vmap(update)(state, *(jnp.stack([x, x]) for x in (scores, counts, thresholds)))
    np.testing.assert_allclose(batched.value[1], together.value, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_jitted_with_a_donated_state_and_swept_gains(rule):
    """Gains are traced: one compilation serves a sweep. No buffer is donated twice."""
    update = jax.jit(
        lambda state, score, gains: update_multipliers(state, score, array(10, 10), array(0.9, 0.9), rule, gains)[0],
        donate_argnums=0,
    )
    for kp in (1.0, 3.0):
        gains = jax.tree.map(jnp.float32, MultiplierGains(kp=kp, kd=0.5))
        jitted, eager = init_multipliers(2, 0.5, rule), init_multipliers(2, 0.5, rule)
        for score in (array(0.5, 0.95), array(0.4, 1.0)):
            jitted = update(jitted, score, gains)
            eager, _ = update_multipliers(eager, score, array(10, 10), array(0.9, 0.9), rule, gains)
        for a, b in zip(jax.tree.leaves(jitted), jax.tree.leaves(eager), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert update._cache_size() == 1


def test_no_constraints_at_all():
    empty = jnp.zeros(0)
    state, info = update_multipliers(init_multipliers(0, 1.0), empty, empty, empty, "pid", MultiplierGains())
    assert state.value.shape == (0,)
    assert info["error"].shape == (0,)
    weights, none = mixing_coefficients(array(0.5, 0.5), state.value, "one_plus_lambda")
    np.testing.assert_allclose(weights, [0.5, 0.5])
    assert none.shape == (0,)


def test_unknown_rule_is_named():
    with pytest.raises(ValueError, match="'pi', expected one of pid, clip"):
        update_multipliers(init_multipliers(1, 1.0), array(0), array(1), array(1), "pi", MultiplierGains())


def test_mixing_by_hand():
    """w = (.25, .75), lambda = (1, 2): divide by 1 + 3 = 4; or, w summing to 2, by 2 + 3 = 5; or not."""
    w, lam = array(0.25, 0.75), array(1.0, 2.0)
    a_k, a_m = mixing_coefficients(w, lam, "one_plus_lambda")
    np.testing.assert_allclose(a_k, [0.0625, 0.1875])
    np.testing.assert_allclose(a_m, [0.25, 0.5])
    a_k, a_m = mixing_coefficients(2 * w, lam, "sum_to_one")
    np.testing.assert_allclose(a_k, [0.1, 0.3], rtol=1e-6)
    np.testing.assert_allclose(a_m, [0.2, 0.4], rtol=1e-6)
    a_k, a_m = mixing_coefficients(w, lam, "none")
    np.testing.assert_array_equal(a_k, w)
    np.testing.assert_array_equal(a_m, lam)


@given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=4))
def test_mixed_coefficients_sum_to_one_on_the_simplex(multipliers):
    a_k, a_m = mixing_coefficients(array(0.3, 0.7), jnp.array(multipliers), "one_plus_lambda")
    np.testing.assert_allclose(jnp.sum(a_k) + jnp.sum(a_m), 1.0, rtol=1e-5)


def test_unknown_mixing_is_named():
    with pytest.raises(ValueError, match="'softmax', expected one of one_plus_lambda"):
        mixing_coefficients(array(1.0), array(1.0), "softmax")


def test_exclusive_mixing_by_hand():
    """Objectives wait while a constraint is on, and the constraint then has the whole step; else they have it."""
    w = array(0.25, 0.75)
    for how in ("one_plus_lambda", "sum_to_one"):
        a_k, a_m = mixing_coefficients(w, array(0.0, 1.0), how, exclusive=True)
        np.testing.assert_array_equal(a_k, [0.0, 0.0])
        np.testing.assert_array_equal(a_m, [0.0, 1.0])
        a_k, a_m = mixing_coefficients(w, array(0.0, 0.0), how, exclusive=True)
        np.testing.assert_array_equal(a_k, w)
        np.testing.assert_array_equal(a_m, [0.0, 0.0])
    a_k, a_m = mixing_coefficients(w, array(0.0, jnp.nan), "one_plus_lambda", exclusive=True)
    assert bool(jnp.all(jnp.isnan(a_k)))


def test_negative_multipliers_count_by_their_size():
    """lambda = (1, -2): Lambda = 3, and the second score is pushed down."""
    a_k, a_m = mixing_coefficients(array(0.25, 0.75), array(1.0, -2.0), "one_plus_lambda")
    np.testing.assert_allclose(a_k, [0.0625, 0.1875])
    np.testing.assert_allclose(a_m, [0.25, -0.5])


def test_hinge_by_hand():
    """d = (.5, .5). Prompt 0 has sequences 0, 1, prompt 1 has 2, 3. The last does not apply to constraint 1.

    constraint 0: scores .9 .3 | .4 .5, means .6 (met), .45 (violated)     alone: sequences 1 and 2 violate
    constraint 1: scores .2 .7 | .4 nan, means .45 (violated), .4 (violated)     alone: sequences 0 and 2
    """
    scores = array([0.9, 0.2], [0.3, 0.7], [0.4, 0.4], [0.5, np.nan])
    applies = jnp.array([[True, True], [True, True], [True, True], [True, False]])
    group, d = jnp.array([0, 0, 1, 1]), array(0.5, 0.5)
    grouped = hinge_applies(scores, applies, d, group, groups=2)
    np.testing.assert_array_equal(grouped, [[False, True], [False, True], [True, True], [True, False]])
    alone = hinge_applies(scores, applies, d)
    np.testing.assert_array_equal(alone, [[False, True], [True, False], [True, True], [False, False]])


def test_hinge_of_a_prompt_spread_over_devices():
    rng = np.random.default_rng(0)
    scores, applies = jnp.asarray(rng.random((16, 2)), jnp.float32), jnp.asarray(rng.random((16, 2)) < 0.8)
    group, d = jnp.asarray(rng.permutation(16) % 5), array(0.5, 0.6)
    whole = hinge_applies(scores, applies, d, group, groups=5)
    parts = (x.reshape(8, 2, *x.shape[1:]) for x in (scores, applies, group))
    split = jax.pmap(lambda s, a, g: hinge_applies(s, a, d, g, 5, "data"), axis_name="data")(*parts)
    np.testing.assert_array_equal(split.reshape(16, 2), whole)
    assert 0 < int(whole.sum()) < int(applies.sum())


def test_relative_thresholds():
    assert relative_thresholds({"inform": 0.9, "success": 0.75}, 0.25) == {"inform": 0.65, "success": 0.5}
    assert relative_thresholds({"inform": 0.004}, 0.01) == {"inform": 0.0}
    with pytest.raises(ValueError, match="reference score of constraint inform is nan"):
        relative_thresholds({"inform": float("nan")}, 0.0)
    with pytest.raises(ValueError, match="margin of the thresholds is inf"):
        relative_thresholds({"inform": 0.9}, float("inf"))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_starts_where_it_is_told(rule):
    """A score on its threshold (no error) leaves every moving rule at the initial multiplier."""
    state = init_multipliers(2, [0.25, 0.75], rule)
    np.testing.assert_array_equal(state.value, [0.25, 0.75])
    on_threshold = array(0.5, 0.5)
    state, _ = update_multipliers(state, on_threshold, array(9, 9), on_threshold, rule, NO_SMOOTHING)
    np.testing.assert_allclose(state.value, [0.0, 0.0] if rule == "crpo" else [0.25, 0.75], rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "bad", "wanted"),
    [
        ("pid", -0.5, "at least 0 with"),
        ("clip", float("nan"), "at least 0 with"),
        ("fixed", float("inf"), "at least 0 with"),
        ("softplus", 0.0, "at least 1e-06 with"),
        ("exp", 0.0, "at least 1e-06 with"),
        ("sigmoid", 1.0, "between 0.001 and 0.999 with"),
        ("tanh", -1.0, "between -0.999 and 0.999 with"),
    ],
)
def test_an_initial_multiplier_that_a_rule_cannot_have_is_refused(rule, bad, wanted):
    with pytest.raises(ValueError, match=f"--numbers.multiplier-init must be {wanted} --step.multipliers {rule}, not"):
        init_multipliers(2, [0.5, bad], rule)
    assert init_multipliers(0, bad, rule).value.shape == (0,)


def test_initial_multipliers_can_be_traced():
    np.testing.assert_allclose(jax.jit(lambda x: init_multipliers(2, x, "tanh"))(0.5).integral, np.arctanh([0.5, 0.5]))
