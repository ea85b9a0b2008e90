"""Objective weights by hand, step by step, and their invariants."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from morejax.reweight import (
    RULES,
    WeightSettings,
    WeightStats,
    alignment,
    cosines,
    deficit,
    init_weights,
    norms,
    relative_deficit,
    shares,
    update_weights,
)

AT_ONCE = WeightSettings(ema=0.0, floor=0.0)
jitted_update = jax.jit(update_weights, static_argnames="rule")


def array(*values):
    return jnp.array(values, jnp.float32)


def stats(n, score=None, initial=None, target=None, count=None):
    """Statistics with orthogonal gradients of norms n."""
    n = np.asarray(n, np.float32)
    ones, zeros = jnp.ones(len(n)), jnp.zeros(len(n))
    return WeightStats(
        gram=jnp.diag(jnp.asarray(n**2)),
        score=zeros if score is None else array(*score),
        initial_score=zeros if initial is None else array(*initial),
        target=ones if target is None else array(*target),
        count=ones if count is None else array(*count),
        mean=ones,
        std=jnp.asarray(n),
        corr=zeros,
    )


def test_fixed_keeps_the_users_weights_exactly():
    """Also through floor and smoothing, and whatever the gradients do."""
    state = init_weights([1, 3])
    for _ in range(5):
        state = update_weights(state, stats([0.0, 9.0]), "fixed", WeightSettings())
    np.testing.assert_allclose(state.weights, [0.25, 0.75], rtol=1e-6)


def test_inv_norm_by_hand():
    """n = (1, 3): 1/n = (1, 1/3), over 4/3: (0.75, 0.25). Then w n = (0.75, 0.75): equal shares."""
    state = update_weights(init_weights([1, 1]), stats([1.0, 3.0]), "inv_norm", AT_ONCE)
    np.testing.assert_allclose(state.weights, [0.75, 0.25], rtol=1e-6)
    np.testing.assert_allclose(shares(state.weights, stats([1.0, 3.0]).gram), [0.5, 0.5], rtol=1e-6)


def test_base_weights_scale_an_adaptive_rule():
    """b = (1/4, 3/4), n = (1, 3): b/n = (1/4, 1/4): equal weights, shares as the user asked."""
    state = update_weights(init_weights([1, 3]), stats([1.0, 3.0]), "inv_norm", AT_ONCE)
    np.testing.assert_allclose(state.weights, [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(shares(state.weights, stats([1.0, 3.0]).gram), [0.25, 0.75], rtol=1e-6)


def test_gradnorm_cf_by_hand():
    """J0 = 0, J* = 1, J = (0.2, 0.8): L = (.8, .2), mean .5, r = (1.6, .4); n = (1, 2).

    alpha 1:  r/n   = (1.6, 0.2),      over 1.8:   (8/9, 1/9)
    alpha 2:  r^2/n = (2.56, 0.08),    over 2.64:  (32/33, 1/33)
    alpha 0:  1/n   = (1, .5),         over 1.5:   (2/3, 1/3), as inv_norm
    """
    measured = stats([1.0, 2.0], score=[0.2, 0.8])
    np.testing.assert_allclose(relative_deficit(measured), [1.6, 0.4], rtol=1e-5)
    for alpha, expected in [(1.0, [8 / 9, 1 / 9]), (2.0, [32 / 33, 1 / 33]), (0.0, [2 / 3, 1 / 3])]:
        state = update_weights(init_weights([1, 1]), measured, "gradnorm_cf", AT_ONCE.replace(alpha=alpha))
        np.testing.assert_allclose(state.weights, expected, rtol=1e-4)


def test_gradnorm_cf_is_the_fixed_point_of_gradnorm():
    """GradNorm wants w_k n_k = G r_k^alpha for every k: the shares are r^alpha / sum(r^alpha)."""
    measured = stats([0.3, 5.0, 1.0], score=[0.1, 0.5, 0.9])
    state = update_weights(init_weights([1, 1, 1]), measured, "gradnorm_cf", AT_ONCE.replace(alpha=1.5))
    wanted = relative_deficit(measured) ** 1.5
    np.testing.assert_allclose(shares(state.weights, measured.gram), wanted / jnp.sum(wanted), rtol=1e-4)


def test_deficit_by_hand():
    """J* = 0.8, J0 = 0.4: gap 0.4. J = .4 -> 1; .6 -> .5; .8 and beyond -> .05; 0 -> 2."""
    got = deficit(stats([1] * 5, score=[0.4, 0.6, 0.8, 1.0, 0.0], initial=[0.4] * 5, target=[0.8] * 5))
    np.testing.assert_allclose(got, [1.0, 0.5, 0.05, 0.05, 2.0], rtol=1e-5)


def test_deficit_keeps_its_sign_when_the_start_was_above_the_target():
    """J* = .5, J0 = .6: gap = 5 % of .6 = .03. Better than the target is a small deficit, not a large one.

    J = .7 -> .05;   J = .47 -> .03/.03 = 1;   J = .2 -> 10, cut to 5
    """
    got = deficit(stats([1] * 3, score=[0.7, 0.47, 0.2], initial=[0.6] * 3, target=[0.5] * 3))
    np.testing.assert_allclose(got, [0.05, 1.0, 5.0], rtol=1e-4)


def test_deficit_of_negative_scores():
    """Log-likelihoods: J* = -1, J0 = -3, J = -2 is half way."""
    np.testing.assert_allclose(deficit(stats([1], score=[-2.0], initial=[-3.0], target=[-1.0])), [0.5], rtol=1e-5)


def test_deficit_is_finite_when_all_three_are_equal():
    assert deficit(stats([1], score=[0.0], initial=[0.0], target=[0.0])).tolist() == pytest.approx([0.05])


def test_floor_and_smoothing_by_hand():
    """inv_norm target (.75, .25), floor .2: .8*(.75, .25) + .1 = (.7, .3). EMA .9 from .5: (.52, .48)."""
    settings = WeightSettings(ema=0.9, floor=0.2)
    state = update_weights(init_weights([1, 1]), stats([1.0, 3.0]), "inv_norm", settings)
    np.testing.assert_allclose(state.weights, [0.52, 0.48], rtol=1e-5)


def test_floor_does_not_accumulate():
    """The limit of many updates is the floored target itself, (.7, .3), not something nearer to equal."""
    settings, state = WeightSettings(ema=0.9, floor=0.2), init_weights([1, 1])
    update = jax.jit(lambda s: update_weights(s, stats([1.0, 3.0]), "inv_norm", settings))
    for _ in range(200):
        state = update(state)
    np.testing.assert_allclose(state.weights, [0.7, 0.3], rtol=1e-4)


@pytest.mark.parametrize("rule", ["inv_norm", "gradnorm_cf"])
def test_objective_without_gradient_keeps_its_weight(rule):
    """A third of the weight stays with stream 2; 1/n would have handed it everything."""
    state = update_weights(init_weights([1, 1, 1]), stats([1.0, 3.0, 0.0]), rule, AT_ONCE)
    np.testing.assert_allclose(state.weights, [2 / 3 * 0.75, 2 / 3 * 0.25, 1 / 3], rtol=1e-5)
    noise = update_weights(init_weights([1, 1, 1]), stats([1.0, 3.0, 1e-8]), rule, AT_ONCE)
    np.testing.assert_allclose(noise.weights, state.weights, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_objective_that_does_not_apply_keeps_its_weight(rule):
    """Its score is not even defined."""
    measured = stats([1.0, 3.0, 2.0], score=[0.2, 0.4, float("nan")], count=[5, 5, 0])
    state = jitted_update(init_weights([1, 1, 2]), measured, rule, WeightSettings(ema=0.5))
    np.testing.assert_allclose(state.weights[2], 0.5, rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(state.weights), 1.0, rtol=1e-6)
    assert bool(jnp.all(jnp.isfinite(state.weights)))


@pytest.mark.parametrize("rule", RULES)
def test_no_gradient_anywhere_changes_nothing(rule):
    """And no sequence anywhere."""
    start = init_weights([1, 3, 4])
    state = jitted_update(start, stats([0.0, 0.0, 0.0]), rule, WeightSettings())
    np.testing.assert_allclose(state.weights, start.weights, rtol=1e-6)
    nobody = jitted_update(start, stats([1.0, 1.0, 1.0], count=[0, 0, 0]), rule, WeightSettings())
    np.testing.assert_allclose(nobody.weights, start.weights, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_base_weight_zero_leaves_an_objective_out(rule):
    state = jitted_update(init_weights([1, 0, 1]), stats([1.0, 1.0, 2.0]), rule, WeightSettings())
    assert state.weights[1] == 0.0
    np.testing.assert_allclose(jnp.sum(state.weights), 1.0, rtol=1e-6)


def test_nan_gradients_show():
    """They must stop the run, not freeze a weight in silence."""
    state = update_weights(init_weights([1, 1]), stats([1.0, float("nan")]), "inv_norm", WeightSettings())
    assert bool(jnp.any(jnp.isnan(state.weights)))


@pytest.mark.parametrize("rule", RULES)
@examples(max_examples=15)
@given(data=st.data())
def test_weights_stay_on_the_simplex_above_the_floor(rule, data):
    k = data.draw(st.sampled_from([1, 3]))
    unit = st.floats(0, 1, width=32)
    vector = st.lists(unit, min_size=k, max_size=k)
    settings = WeightSettings(ema=data.draw(unit), floor=data.draw(unit), alpha=data.draw(st.floats(0, 3, width=32)))
    state = init_weights(data.draw(st.lists(st.floats(0.125, 1, width=32), min_size=k, max_size=k)))
    for _ in range(3):
        norm = data.draw(st.lists(st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 40.0]), min_size=k, max_size=k))
        count = data.draw(st.lists(st.sampled_from([0.0, 5.0]), min_size=k, max_size=k))
        measured = stats(norm, data.draw(vector), data.draw(vector), data.draw(vector), count)
        state = jitted_update(state, measured, rule, settings)
        np.testing.assert_allclose(np.sum(state.weights), 1.0, rtol=1e-4)
        assert np.all(np.asarray(state.weights) >= settings.floor * np.asarray(state.base) * 0.999 - 1e-6)


@given(st.floats(0.125, 64, width=32))
def test_a_common_scale_of_the_gradients_does_not_matter(scale):
    small, large = (
        jitted_update(init_weights([1, 1]), stats([f * 1.0, f * 3.0]), "gradnorm_cf", AT_ONCE) for f in (1.0, scale)
    )
    np.testing.assert_allclose(small.weights, large.weights, rtol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_jit_vmap_and_donation(rule):
    measured = stats([1.0, 3.0, 2.0], score=[0.2, 0.8, 0.5])
    eager = jitted_update(init_weights([1, 1, 2]), measured, rule, WeightSettings())
    jitted = jax.jit(lambda s, m, c: update_weights(s, m, rule, c), donate_argnums=0)
    settings = jax.tree.map(jnp.float32, WeightSettings())
    np.testing.assert_allclose(jitted(init_weights([1, 1, 2]), measured, settings).weights, eager.weights, rtol=1e-5)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), (init_weights([1, 1, 2]), measured))
    batched = jax.jit(jax.vmap(lambda s, m: update_weights(s, m, rule, WeightSettings())))(*stacked)
    np.testing.assert_allclose(batched.weights[1], eager.weights, rtol=1e-5)


def test_no_gradient_flows_through_the_weights():
    def first_weight(scale):
        measured = stats([1.0, 3.0])
        measured = measured.replace(gram=scale * measured.gram.at[0, 0].multiply(scale))
        return update_weights(init_weights([1, 1]), measured, "inv_norm", WeightSettings()).weights[0]

    assert jax.jit(jax.grad(first_weight))(1.0) == 0.0


def test_gram_summaries_by_hand():
    """g_0 = (3, 0), g_1 = (3, 4), g_2 = 0: norms 3, 5, 0; cos_01 = 9/15; w = (.5, .25, .25)."""
    gradients = array([3, 0], [3, 4], [0, 0])
    gram = gradients @ gradients.T
    weights = array(0.5, 0.25, 0.25)
    np.testing.assert_allclose(norms(gram), [3.0, 5.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(cosines(gram), [[1.0, 0.6, 0.0], [0.6, 1.0, 0.0], [0.0, 0.0, 0.0]], rtol=1e-5)
    np.testing.assert_allclose(shares(weights, gram), [1.5 / 2.75, 1.25 / 2.75, 0.0], rtol=1e-6)
    # the update is .5 (3,0) + .25 (3,4) = (2.25, 1): inner products 6.75, 6.75 + 4, 0
    np.testing.assert_allclose(alignment(weights, gram), [6.75, 10.75, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(shares(weights, jnp.zeros((3, 3))), np.zeros(3))


def test_alignment_shows_an_update_that_hurts():
    """Opposed gradients: the larger one wins and the other's inner product is negative."""
    gradients = array([1, 0], [-3, 0])
    assert alignment(array(0.5, 0.5), gradients @ gradients.T)[0] < 0


def test_initial_weights_can_be_traced():
    """An abstract init asks for shapes only; a compiled one must give the same numbers."""
    assert jax.eval_shape(init_weights, jnp.ones(3)).weights.shape == (3,)
    np.testing.assert_allclose(jax.jit(init_weights)(array(1, 3)).base, [0.25, 0.75])
    assert init_weights([]).weights.shape == (0,)


@pytest.mark.parametrize("base", [[1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_bad_base_weights_are_refused(base):
    with pytest.raises(ValueError, match="objective weights are"):
        init_weights(base)


def test_unknown_rule_is_named():
    with pytest.raises(ValueError, match="'equal', expected one of fixed, inv_norm, gradnorm_cf"):
        update_weights(init_weights([1]), stats([1.0]), "equal", WeightSettings())
