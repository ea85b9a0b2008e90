"""Rules on a transform of the multiplier and CRPO, by hand; and all rules on a plant that answers to its multiplier."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from morejax.lagrange import RULES, MultiplierGains, init_multipliers, mixing_coefficients, update_multipliers
from morejax.multiplier_rules import RANGES, inverse

NO_SMOOTHING = MultiplierGains(ema=0.0)
jitted_update = jax.jit(update_multipliers, static_argnames="rule")


def array(*values):
    return jnp.array(values, jnp.float32)


def play(rule, gains, scores, initial, threshold=0.9):
    state, values = init_multipliers(1, initial, rule), []
    for score in scores:
        state, _ = jitted_update(state, array(score), array(100), array(threshold), rule, gains)
        values.append(float(state.value[0]))
    return values


def test_softplus_by_hand():
    """lambda = ln 2 is nu = 0. Errors .4, -.1, lr 5: nu = 0 + 5 (.4) / 2 = 1;  1 - 5 (.1) sigmoid(1) = .634471."""
    values = play("softplus", NO_SMOOTHING.replace(lr=5.0), [0.5, 1.0], np.log(2))
    np.testing.assert_allclose(values, [np.log1p(np.e), np.log1p(np.exp(1 - 0.5 * expit(1)))], rtol=1e-6)


def test_exp_by_hand():
    """lambda = 2, errors .4, -.1, lr .5: a = 2 exp(.5 x 2 x .4) = 2.983649, then a exp(-.5 x a x .1)."""
    values = play("exp", NO_SMOOTHING.replace(lr=0.5), [0.5, 1.0], 2.0)
    np.testing.assert_allclose(values, [2.983649, 2.983649 * np.exp(-0.05 * 2.983649)], rtol=1e-6)


def test_sigmoid_by_hand():
    """lambda = 1/2 is nu = 0. Errors .4, -.1, lr 5: sigmoid(2), sigmoid(1.5)."""
    values = play("sigmoid", NO_SMOOTHING.replace(lr=5.0), [0.5, 1.0], 0.5)
    np.testing.assert_allclose(values, expit([2.0, 1.5]), rtol=1e-6)


def test_tanh_by_hand():
    """lambda = 0. Errors .4, -.6, lr 2, d = .5: tanh(.8), tanh(-.4): a score that is too high is pushed down."""
    values = play("tanh", NO_SMOOTHING.replace(lr=2.0), [0.1, 1.1], 0.0, threshold=0.5)
    np.testing.assert_allclose(values, np.tanh([0.8, -0.4]), rtol=1e-5)
    _, info = update_multipliers(
        init_multipliers(1, 0.0, "tanh"), array(0.8), array(9), array(0.5), "tanh", NO_SMOOTHING
    )
    np.testing.assert_allclose(info["violation"], [0.3], rtol=1e-6)  # an equality is missed on both sides


def test_dead_band_holds_for_the_transformed_rules():
    """J = .5, n = 100: SE .05. An error of .04 is inside one SE, so nothing moves; an error of .25 moves by .2."""
    gains = NO_SMOOTHING.replace(lr=1.0, dead_band_z=1.0)
    for rule in ("softplus", "exp", "sigmoid", "tanh"):
        state = init_multipliers(2, 0.5, rule)
        new, _ = update_multipliers(state, array(0.5, 0.5), array(100, 100), array(0.54, 0.75), rule, gains)
        np.testing.assert_allclose(new.value[0], 0.5, rtol=1e-5)
        slope = {"softplus": 1 - np.exp(-0.5), "exp": 0.5, "sigmoid": 1.0, "tanh": 1.0}[rule]
        np.testing.assert_allclose(new.integral[1] - inverse(rule, 0.5), 0.2 * slope, rtol=1e-4)


def test_crpo_by_hand():
    """d = .9 for all. The worst violated constraint alone; none inside the tolerance; one that was not tested competes
    with its last error."""
    gains = NO_SMOOTHING.replace(tolerance=0.05)
    state, d, all_tested = init_multipliers(3, 1.0, "crpo"), array(0.9, 0.9, 0.9), array(10, 10, 10)
    update = partial(update_multipliers, threshold=d, rule="crpo", gains=gains)
    state, _ = update(state, array(0.7, 0.5, 0.95), all_tested)  # errors .2, .4, -.05
    np.testing.assert_array_equal(state.value, [0.0, 1.0, 0.0])
    state, _ = update(state, array(0.7, 0.8, 0.95), all_tested)  # errors .2, .1, -.05
    np.testing.assert_array_equal(state.value, [1.0, 0.0, 0.0])
    untested, _ = update(state, array(jnp.nan, 0.84, 0.95), array(0, 10, 10))  # errors .2 (of before), .06, -.05
    np.testing.assert_array_equal(untested.value, [1.0, 0.0, 0.0])
    other, _ = update(state, array(jnp.nan, 0.3, 0.95), array(0, 10, 10))  # errors .2 (of before), .6, -.05
    np.testing.assert_array_equal(other.value, [0.0, 1.0, 0.0])
    np.testing.assert_array_equal(other.ema_score[0], state.ema_score[0])
    met, _ = update(state, array(0.86, 0.86, 0.95), all_tested)  # errors .04, .04, -.05
    np.testing.assert_array_equal(met.value, [0.0, 0.0, 0.0])
    broken, _ = update(state, array(0.86, jnp.nan, 0.95), all_tested)
    assert bool(jnp.any(jnp.isnan(broken.value)))


@jax.jit
def choose(scores):
    ones = jnp.ones(scores.shape)
    state = init_multipliers(len(scores), 0.0, "crpo")
    state, _ = update_multipliers(state, scores, ones, 0.5 * ones, "crpo", NO_SMOOTHING)
    return state, *mixing_coefficients(array(0.5, 0.5), state.value, "one_plus_lambda", exclusive=True)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5))
def test_crpo_never_has_two_masters(scores):
    state, a_k, a_m = choose(jnp.array(scores, jnp.float32))
    assert int(np.sum(state.value > 0)) == int(min(scores) < 0.5)
    assert float(np.sum(a_k)) * float(np.sum(a_m)) == 0.0
    np.testing.assert_allclose(np.sum(a_k) + np.sum(a_m), 1.0)


@pytest.mark.parametrize("rule", ["softplus", "exp", "sigmoid", "tanh"])
def test_a_saturated_multiplier_comes_back_at_once(rule):
    """However long the constraint was violated, or met: the memory has not wound up."""
    gains = MultiplierGains(ema=0.0, lr=2.0, max=4.0)
    update = jax.jit(lambda s, j: update_multipliers(s, j, array(10), array(0.5), rule, gains)[0])
    for score in (0.0, 1.0):
        state = init_multipliers(1, 0.5, rule)
        for _ in range(60):
            state = update(state, array(score))
        back = update(state, array(1.0 - score))
        # away from the end by a tenth of what a step can do there: lr e times the slope of nu
        slope = jax.nn.sigmoid(state.integral) if rule == "softplus" else state.value if rule == "exp" else array(1.0)
        moved = (back.integral - state.integral) * np.sign(score - 0.5)
        assert float(moved[0]) > 0.1 * 2.0 * 0.5 * float(slope[0])
        assert float(jnp.abs(back.value[0])) <= 4.0


@pytest.mark.parametrize("rule", RANGES)
@given(share=st.floats(0, 1))
def test_inverse_undoes_the_transform(rule, share):
    least, most = RANGES[rule]
    value = least + share * (min(most, 20.0) - least)
    transform = {"softplus": jax.nn.softplus, "exp": jnp.exp, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}[rule]
    np.testing.assert_allclose(transform(inverse(rule, value)), value, rtol=2e-5, atol=1e-7)


def simulate(rule, threshold, gains, steps=1500):
    """J = sigmoid(2 lambda): the policy answers to the multiplier at once. Returns the last score and multiplier."""

    def turn(state, _):
        score = jax.nn.sigmoid(2.0 * state.value)
        return update_multipliers(state, score, array(100), array(threshold), rule, gains)[0], score

    state, scores = jax.lax.scan(turn, init_multipliers(1, 0.5, rule), None, length=steps)
    return float(scores[-1, 0]), float(state.value[0])


@pytest.mark.parametrize("rule", ["pid", "clip", "softplus", "exp", "sigmoid", "tanh"])
def test_rules_find_the_multiplier_of_an_active_constraint(rule):
    """J = .8 at lambda = logit(.8) / 2 = .693, within (0, 1), so every rule can reach it."""
    score, multiplier = simulate(rule, 0.8, MultiplierGains(lr=0.2, ema=0.5))
    np.testing.assert_allclose([score, multiplier], [0.8, logit(0.8) / 2], atol=1e-3)


@pytest.mark.parametrize("rule", ["pid", "clip", "softplus", "exp", "sigmoid"])
def test_rules_let_go_of_a_slack_constraint(rule):
    """J = .5 without any push: a threshold of .3 needs none. exp and softplus approach 0 like 1/t."""
    _, multiplier = simulate(rule, 0.3, MultiplierGains(lr=2.0, ema=0.5))
    assert 0 <= multiplier < 0.01


def test_the_equality_rule_pushes_a_high_score_down():
    """J = .3 at lambda = logit(.3) / 2 = -.424."""
    score, multiplier = simulate("tanh", 0.3, MultiplierGains(lr=0.2, ema=0.5))
    np.testing.assert_allclose([score, multiplier], [0.3, logit(0.3) / 2], atol=1e-3)


def test_crpo_keeps_two_scores_at_their_thresholds():
    """A constraint's score climbs while it is optimised and falls while anything else is (d logit = +-.1, .05)."""
    threshold = array(0.8, 0.6)

    def turn(carry, _):
        state, logits = carry
        score = jax.nn.sigmoid(logits)
        state, _ = update_multipliers(state, score, array(10, 10), threshold, "crpo", NO_SMOOTHING)
        return (state, logits + jnp.where(state.value > 0, 0.15, -0.05)), score

    start = (init_multipliers(2, 0.0, "crpo"), array(0.0, 0.0))
    _, scores = jax.jit(lambda: jax.lax.scan(turn, start, None, length=400))()
    np.testing.assert_allclose(scores[-100:].mean(0), threshold, atol=0.02)


def test_all_rules_are_under_test_here_or_move_nothing():
    moving = {"pid", "clip", "softplus", "exp", "sigmoid", "tanh", "crpo"}
    assert moving == set(RULES) - {"fixed", "hinge"}
    for rule in ("fixed", "hinge"):
        assert simulate(rule, 0.8, MultiplierGains(), steps=5)[1] == 0.5
