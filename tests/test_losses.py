"""Losses by hand and their written-out derivatives against automatic differentiation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morejax import losses

LOW, HIGH = 0.2, 0.3


def random_tokens(seed, shape=(4, 6), streams=3):
    """Ratios on both sides of both clip edges, advantages of both signs."""
    rng = np.random.default_rng(seed)
    logp_old = rng.normal(-2.0, 1.0, size=shape)
    logp = logp_old + rng.normal(0.0, 0.4, size=shape)
    advantages = rng.normal(size=(*shape, streams))
    return [jnp.asarray(x, jnp.float32) for x in (logp, logp_old, advantages)]


def random_logp(seed, shape=(3, 7)):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(0.0, 2.0, size=shape), jnp.float32) for _ in range(2)]


def test_ratio_by_hand():
    np.testing.assert_allclose(
        losses.ratio(jnp.log(jnp.array([0.5, 0.1])), jnp.log(jnp.array([0.25, 0.2]))), [2.0, 0.5], rtol=1e-6
    )


def test_surrogate_by_hand():
    """clip to [0.8, 1.3]. A = 1: min(rho, clip). A = -1: min(-rho, -clip).

    rho        0.5                1.0        1.5
    A = +1     min(.5, .8) = .5   1          min(1.5, 1.3) = 1.3
    A = -1     min(-.5,-.8) = -.8 -1         min(-1.5,-1.3) = -1.5
    """
    rho = jnp.array([0.5, 1.0, 1.5])
    advantages = jnp.broadcast_to(jnp.array([1.0, -1.0]), (3, 2))
    got = losses.clipped_surrogate(rho, advantages, LOW, HIGH)
    np.testing.assert_allclose(got, [[0.5, -0.8], [1.0, -1.0], [1.3, -1.5]], rtol=1e-6)


def test_coefficients_by_hand():
    """d/dlogp = A rho where not clipped: the clipped cells of the table above are 0."""
    rho = jnp.array([0.5, 1.0, 1.5])
    advantages = jnp.broadcast_to(jnp.array([1.0, -1.0]), (3, 2))
    got = losses.surrogate_coefficients(rho, advantages, LOW, HIGH)
    np.testing.assert_allclose(got, [[0.5, 0.0], [1.0, -1.0], [0.0, -1.5]], rtol=1e-6)


@given(st.integers(0, 2**31 - 1))
def test_coefficients_are_the_derivative(seed):
    logp, logp_old, advantages = random_tokens(seed)
    for h in range(advantages.shape[-1]):

        def surrogate(logp, h=h):
            rho = losses.ratio(logp, logp_old)
            return jnp.sum(losses.clipped_surrogate(rho, advantages, LOW, HIGH)[..., h])

        exact = losses.surrogate_coefficients(losses.ratio(logp, logp_old), advantages, LOW, HIGH)
        np.testing.assert_allclose(exact[..., h], jax.grad(surrogate)(logp), rtol=1e-5, atol=1e-6)


@given(st.integers(0, 2**31 - 1))
def test_mixed_coefficients_are_the_derivative_of_one_clip(seed):
    logp, logp_old, advantages = random_tokens(seed)
    weights = jnp.array([0.2, 0.3, 0.5])

    def surrogate(logp):
        mixed = losses.mix_streams(advantages, weights)
        return jnp.sum(losses.clipped_surrogate(losses.ratio(logp, logp_old), mixed[..., None], LOW, HIGH))

    exact = losses.mixed_coefficients(losses.ratio(logp, logp_old), advantages, weights, LOW, HIGH)
    np.testing.assert_allclose(exact, jax.grad(surrogate)(logp), rtol=1e-5, atol=1e-6)


@given(st.integers(0, 2**31 - 1))
def test_clipping_per_stream_is_the_more_conservative_surrogate(seed):
    logp, logp_old, advantages = random_tokens(seed)
    weights = jnp.array([0.2, 0.3, 0.5])
    rho = losses.ratio(logp, logp_old)
    apart = losses.mix_streams(losses.clipped_surrogate(rho, advantages, LOW, HIGH), weights)
    mixed = losses.mix_streams(advantages, weights)
    together = losses.clipped_surrogate(rho, mixed[..., None], LOW, HIGH)[..., 0]
    assert bool(jnp.all(apart <= together + 1e-5))


def test_both_clips_agree_on_policy():
    _, _, advantages = random_tokens(0)
    weights = jnp.array([0.2, 0.3, 0.5])
    rho = jnp.ones(advantages.shape[:-1])
    apart = losses.mix_streams(losses.surrogate_coefficients(rho, advantages, LOW, HIGH), weights)
    together = losses.mixed_coefficients(rho, advantages, weights, LOW, HIGH)
    np.testing.assert_allclose(apart, together, rtol=1e-6, atol=1e-7)


def test_full_kl_by_hand():
    """pi = (3/4, 1/4) against (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812 nats."""
    logits = jnp.log(jnp.array([0.75, 0.25])) + 5.0  # a constant does not matter
    reference = jnp.log(jnp.array([0.5, 0.5]))
    kl = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    np.testing.assert_allclose(losses.kl_full(logits, reference), kl, rtol=1e-5)
    # gradient p (log p/ref - kl): 3/4 (0.405465 - 0.130812) = 0.205990, and its negative
    _, grad = losses.kl_full_grad(jax.nn.log_softmax(logits), reference)
    np.testing.assert_allclose(grad, [0.205990, -0.205990], rtol=1e-4)


@given(st.integers(0, 2**31 - 1))
def test_full_kl_gradient_is_the_derivative(seed):
    logits, ref_logits = random_logp(seed)
    reference = jax.nn.log_softmax(ref_logits)
    kl, grad = losses.kl_full_grad(jax.nn.log_softmax(logits), reference)
    np.testing.assert_allclose(kl, losses.kl_full(logits, reference), rtol=1e-5, atol=1e-6)
    automatic = jax.grad(lambda x: jnp.sum(losses.kl_full(x, reference)))(logits)
    np.testing.assert_allclose(grad, automatic, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(grad, -1), np.zeros(3), atol=1e-5)
    assert bool(jnp.all(kl >= -1e-6))


def test_full_kl_with_an_excluded_token():
    """A token at -inf under both adds nothing, to the value and to the derivative."""
    logits = jnp.array([0.0, 0.0, -jnp.inf])
    reference = jnp.log(jnp.array([0.25, 0.75, 0.0]))
    kl, grad = losses.kl_full_grad(jax.nn.log_softmax(logits), reference)
    np.testing.assert_allclose(kl, 0.5 * np.log(2.0) + 0.5 * np.log(2 / 3), rtol=1e-5)
    assert bool(jnp.all(jnp.isfinite(grad)))
    assert grad[2] == 0.0
    automatic = jax.grad(losses.kl_full)(jnp.array([0.0, 0.0, -1e9]), reference.at[2].set(-1e9))
    np.testing.assert_allclose(automatic, grad, atol=1e-6)


def test_full_kl_is_infinite_where_the_reference_excludes_what_the_policy_allows():
    assert jnp.isinf(losses.kl_full(jnp.zeros(2), jnp.array([0.0, -jnp.inf])))


def test_full_kl_is_computed_in_float32():
    logits = jnp.array([0.1, 0.2, 0.3], jnp.bfloat16)
    assert losses.kl_full(logits, jnp.log(jnp.ones(3) / 3)).dtype == jnp.float32


def test_estimators_by_hand():
    """pi = 0.5, ref = 0.25: k1 = ln 2, k2 = ln(2)^2/2, k3 = 1/2 - 1 + ln 2."""
    logp, reference = jnp.log(jnp.array(0.5)), jnp.log(jnp.array(0.25))
    ln2 = np.log(2.0)
    np.testing.assert_allclose(losses.kl_k1(logp, reference), ln2, rtol=1e-6)
    np.testing.assert_allclose(losses.kl_k2(logp, reference), ln2**2 / 2, rtol=1e-6)
    np.testing.assert_allclose(losses.kl_k3(logp, reference), ln2 - 0.5, rtol=1e-5)
    np.testing.assert_allclose(losses.kl_coefficient("k2", logp, reference), ln2, rtol=1e-6)
    np.testing.assert_allclose(losses.kl_coefficient("k3", logp, reference), 0.5, rtol=1e-6)


@pytest.mark.parametrize("kind", losses.KL_ESTIMATORS)
def test_kl_coefficients_are_the_derivatives(kind):
    logp, reference = random_logp(2)
    automatic = jax.grad(lambda x: jnp.sum(losses.KL_ESTIMATORS[kind](x, reference)))(logp)
    np.testing.assert_allclose(losses.kl_coefficient(kind, logp, reference), automatic, rtol=1e-4, atol=1e-5)


def test_estimators_average_to_the_exact_kl():
    """Expectation over the whole vocabulary: k1 and k3 are unbiased, k2 is not."""
    logits, ref_logits = random_logp(4)
    logp, reference = jax.nn.log_softmax(0.3 * logits), jax.nn.log_softmax(0.3 * ref_logits)
    exact = losses.kl_full(logp, reference)
    for kind in ("k1", "k3"):
        average = jnp.sum(jnp.exp(logp) * losses.KL_ESTIMATORS[kind](logp, reference), -1)
        np.testing.assert_allclose(average, exact, rtol=1e-4, atol=1e-6)


def mean_gradient(kind, logits, reference):
    """Expected gradient by the logits of an estimator used as a loss: sum_v pi_v c_v grad log pi_v."""
    logp = jax.nn.log_softmax(logits)
    p = jnp.exp(logp)
    weighted = p * losses.kl_coefficient(kind, logp, reference)
    return weighted - p * jnp.sum(weighted, -1, keepdims=True)


def test_what_each_estimator_does_as_a_loss():
    """k1 nothing, k2 the reverse KL, k3 the forward KL: why `full` or `k2` is the loss and k1 a reward."""
    logits, ref_logits = random_logp(5)
    reference = jax.nn.log_softmax(ref_logits)
    _, reverse = losses.kl_full_grad(jax.nn.log_softmax(logits), reference)
    forward = jax.nn.softmax(logits) - jnp.exp(reference)
    np.testing.assert_allclose(mean_gradient("k1", logits, reference), np.zeros((3, 7)), atol=1e-6)
    np.testing.assert_allclose(mean_gradient("k2", logits, reference), reverse, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean_gradient("k3", logits, reference), forward, rtol=1e-4, atol=1e-5)


def test_k3_keeps_its_digits_near_zero():
    """k3 = k1^2/2 to leading order; exp(-k1) - 1 + k1 in float32 would return 0 here."""
    got = losses.kl_k3(jnp.array(1e-3), jnp.array(0.0))
    np.testing.assert_allclose(got, 0.5e-6, rtol=0.1)


def test_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="'k4', expected one of k1, k2, k3"):
        losses.kl_coefficient("k4", jnp.zeros(1), jnp.zeros(1))


def test_entropy_by_hand():
    """Uniform over 4: ln 4 with no gradient. (3/4, 1/4): -(3/4 ln 3/4 + 1/4 ln 1/4) = 0.562335."""
    entropy, grad = losses.entropy_and_grad(jnp.log(jnp.full(4, 0.25)))
    np.testing.assert_allclose(entropy, np.log(4.0), rtol=1e-6)
    np.testing.assert_allclose(grad, np.zeros(4), atol=1e-6)
    entropy, _ = losses.entropy_and_grad(jnp.log(jnp.array([0.75, 0.25])))
    np.testing.assert_allclose(entropy, 0.562335, rtol=1e-5)


@given(st.integers(0, 2**31 - 1))
def test_entropy_gradient_is_the_derivative(seed):
    logits, _ = random_logp(seed)

    def total(logits):
        return jnp.sum(losses.entropy_and_grad(jax.nn.log_softmax(logits))[0])

    _, grad = losses.entropy_and_grad(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(grad, jax.grad(total)(logits), rtol=1e-4, atol=1e-5)


def test_entropy_with_an_excluded_token():
    entropy, grad = losses.entropy_and_grad(jnp.log(jnp.array([0.5, 0.5, 0.0])))
    np.testing.assert_allclose(entropy, np.log(2.0), rtol=1e-6)
    assert grad[2] == 0.0


def test_value_loss_by_hand():
    """V_old = 0, range 0.5, R = 2: V = 1 clips to 0.5, max(1, 2.25)/2 = 1.125; V = 0.3 stays, 2.89/2."""
    values = jnp.array([1.0, 0.3])
    zeros, returns = jnp.zeros(2), jnp.full(2, 2.0)
    np.testing.assert_allclose(losses.value_loss(values, returns, zeros, 0.5), [1.125, 1.445], rtol=1e-6)
    np.testing.assert_allclose(losses.value_loss(values, returns, zeros, None), [0.5, 1.445], rtol=1e-6)


def test_value_gradient_stops_at_the_clip_only_when_moving_to_the_target():
    grad = jax.grad(lambda v: jnp.sum(losses.value_loss(v, jnp.full(2, 2.0), jnp.zeros(2), 0.5)))
    # 1.0: already 0.5 past the range towards R = 2, stopped. -1.0: moving away, the plain error counts: -3.
    np.testing.assert_allclose(grad(jnp.array([1.0, -1.0])), [0.0, -3.0])


def test_explained_variance_by_hand():
    """R = (0, 2), Var 1. Perfect: 1. Constant: 0. V = -R: R - V = (0, 4), Var 4: 1 - 4 = -3."""
    returns = jnp.array([[0.0] * 4, [2.0] * 4, [9.0] * 4]).at[:2, 3].set(5.0)
    values = jnp.array([[0.0, 1.0, 0.0, 0.0], [2.0, 1.0, -2.0, 3.0], [jnp.nan] * 4])
    mask = jnp.array([[True] * 4, [True] * 4, [False] * 4])
    # the last stream's returns do not vary: 0 by definition, not minus infinity
    np.testing.assert_allclose(losses.explained_variance(values, returns, mask), [1.0, 0.0, -3.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("critic", [np.zeros(64), np.full(64, 0.3), np.linspace(-0.7, 0.4, 64)])
def test_explained_variance_of_what_rounding_leaves(critic):
    """Returns are advantage + value: a stream whose returns are all 0.25, but for that sum's rounding, has none."""
    values = jnp.asarray(critic, jnp.float32)[:, None]
    returns = (0.25 - values) + values
    mask = jnp.ones_like(values, bool)
    assert float(losses.explained_variance(values, returns, mask)[0]) == 0.0
    # The same about 0, where the mean of the returns gives no scale.
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(64, 1)) * 1e-9, jnp.float32)
    assert float(losses.explained_variance(values + 0.1, noise, mask)[0]) == 0.0


def test_explained_variance_over_devices():
    rng = np.random.default_rng(0)
    values, returns = rng.normal(size=(2, 16, 3)).astype(np.float32)
    mask = rng.random((16, 3)) < 0.7
    one = losses.explained_variance(jnp.asarray(values), jnp.asarray(returns), jnp.asarray(mask))
    split = jax.pmap(lambda v, r, m: losses.explained_variance(v, r, m, "data"), axis_name="data")
    many = split(*(x.reshape(8, 2, 3) for x in (values, returns, mask)))
    np.testing.assert_allclose(many, np.broadcast_to(one, (8, 3)), rtol=1e-4, atol=1e-5)


def test_kl_controller_by_hand():
    """KL twice the target: the error 1 is cut to 0.2, gain 0.1: 0.05 * 1.02. 10 % under: 0.05 * 0.99."""
    np.testing.assert_allclose(losses.update_kl_coef(0.05, 0.2, 0.1, 0.1), 0.051, rtol=1e-6)
    np.testing.assert_allclose(losses.update_kl_coef(0.05, 0.09, 0.1, 0.1), 0.0495, rtol=1e-6)
    np.testing.assert_allclose(losses.update_kl_coef(0.05, 9.0, 0.1, 0.0), 0.05, rtol=1e-6)


def test_jit_equals_no_jit():
    logp, logp_old, advantages = random_tokens(9)
    logits, reference = random_logp(9)

    def everything(logp, logp_old, advantages, logits, reference):
        rho = losses.ratio(logp, logp_old)
        return (
            losses.clipped_surrogate(rho, advantages, LOW, HIGH),
            losses.surrogate_coefficients(rho, advantages, LOW, HIGH),
            losses.kl_full(logits, jax.nn.log_softmax(reference)),
            losses.kl_k3(logp, logp_old),
            losses.value_loss(logp, logp_old, logp_old, 0.2),
        )

    arguments = (logp, logp_old, advantages, logits, reference)
    for eager, jitted in zip(everything(*arguments), jax.jit(everything)(*arguments), strict=True):
        np.testing.assert_allclose(eager, jitted, rtol=1e-5, atol=1e-6)
