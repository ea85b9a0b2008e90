"""Weights from a Gram matrix against slow exact solvers, and their invariants."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from scipy.optimize import minimize, nnls

from morejax import gram_rules

METHODS = {
    "mgda": jax.jit(gram_rules.mgda),
    "cagrad": jax.jit(lambda gram, base, active: gram_rules.cagrad(gram, base, active, 0.4)),
    "pcgrad": jax.jit(gram_rules.pcgrad),
    "upgrad": jax.jit(gram_rules.upgrad),
}


def solve(method, gradients, base=None, active=None):
    """Weights on the simplex, float64."""
    gradients = np.asarray(gradients, np.float64)
    count = len(gradients)
    base = np.full(count, 1 / count) if base is None else np.asarray(base, np.float64)
    active = np.ones(count, bool) if active is None else np.asarray(active)
    gram = jnp.asarray(gradients @ gradients.T, jnp.float32)
    weights = np.asarray(METHODS[method](gram, jnp.asarray(base, jnp.float32), jnp.asarray(active)), np.float64)
    return weights / weights.sum()


def random_gradients(seed, count, dimension=6, spread=1.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dimension)) * 10 ** rng.uniform(-spread, spread, (count, 1))


def exact_mgda(gradients, base):
    """Enumerates the supports: on one, the min-norm point has equal inner products with all of its gradients."""
    scaled = gradients / base[:, None]
    best, value = None, np.inf
    for size in range(1, len(base) + 1):
        for support in map(list, itertools.combinations(range(len(base)), size)):
            alpha = np.zeros(len(base))
            alpha[support] = np.linalg.lstsq(scaled[support] @ scaled[support].T, np.ones(size), rcond=None)[0]
            alpha /= alpha.sum()
            length = np.linalg.norm(alpha @ scaled)
            if (alpha >= -1e-12).all() and length < value:
                best, value = alpha, length
    weights = best / base
    return weights / weights.sum()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_mgda_is_the_shortest_vector_of_the_hull(count):
    rng = np.random.default_rng(count)
    for seed in range(12):
        gradients, base = random_gradients(seed, count), rng.dirichlet(np.full(count, 5.0))
        np.testing.assert_allclose(solve("mgda", gradients, base), exact_mgda(gradients, base), atol=2e-4)


def test_mgda_by_hand():
    """Orthogonal: alpha ~ 1/n^2. Norms 1, 2: (4, 1) / 5. One inside the shadow of the other: the short one alone."""
    np.testing.assert_allclose(solve("mgda", [[1, 0], [0, 2]]), [0.8, 0.2], atol=1e-5)
    np.testing.assert_allclose(solve("mgda", [[1, 0], [3, 1]]), [1.0, 0.0], atol=1e-6)
    # preferences 1 : 3, orthogonal and equally long: the steps along both, w_k n_k^2, are as asked for
    np.testing.assert_allclose(solve("mgda", [[1, 0], [0, 1]], [0.25, 0.75]), [0.25, 0.75], atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_mgda_and_upgrad_hurt_no_objective(count):
    for seed in range(20):
        gradients = random_gradients(seed, count)
        length = np.linalg.norm(gradients, axis=1)
        for method in ("mgda", "upgrad"):
            direction = solve(method, gradients) @ gradients
            assert (gradients @ direction >= -1e-4 * length * np.linalg.norm(direction)).all()


def exact_cagrad(gradients, base, c):
    """The primal problem, max over |d - g_0| <= c |g_0| of min_k <g_k, d>, solved with a slack variable."""
    average = base @ gradients
    radius, scale = c * np.linalg.norm(average), np.linalg.norm(gradients, axis=1).max()
    best = None
    for start in (average, average + 0.5 * radius * gradients[0] / np.linalg.norm(gradients[0])):
        found = minimize(
            lambda x: -x[-1],
            np.append(start, (gradients @ start).min() / scale),
            method="SLSQP",
            constraints=[
                {"type": "ineq", "fun": lambda x: gradients @ x[:-1] / scale - x[-1]},
                {"type": "ineq", "fun": lambda x: radius**2 - ((x[:-1] - average) ** 2).sum()},
            ],
            options={"maxiter": 400, "ftol": 1e-12},
        )
        direction = found.x[:-1]
        if best is None or (gradients @ direction).min() > (gradients @ best).min():
            best = direction
    return best


@pytest.mark.parametrize("count", [1, 2, 3])
def test_cagrad_serves_the_worst_served_best(count):
    """Directions agree in angle: on the simplex only the direction is left of the method."""
    for seed in range(10):
        gradients = random_gradients(seed, count, dimension=4, spread=0.3)
        base = np.random.default_rng(seed).dirichlet(np.full(count, 5.0))
        ours, exact = solve("cagrad", gradients, base) @ gradients, exact_cagrad(gradients, base, 0.4)
        cosine = ours @ exact / np.linalg.norm(ours) / np.linalg.norm(exact)
        assert cosine > 1 - 1e-5


def test_cagrad_by_hand():
    """g = (1, 0), (0, 1), c = .4: symmetric, so equal weights. c = 0 is the average whatever the gradients."""
    np.testing.assert_allclose(solve("cagrad", [[1, 0], [0, 1]]), [0.5, 0.5], atol=1e-6)
    gram, base = jnp.array([[1.0, -0.5], [-0.5, 4.0]]), jnp.array([0.25, 0.75])
    weights = gram_rules.cagrad(gram, base, jnp.ones(2, bool), 0.0)
    np.testing.assert_allclose(weights, base, rtol=1e-6)


def slow_pcgrad(gradients, base, orders):
    """Algorithm 1 on the vectors themselves, with the given order of projections for every gradient."""
    total = np.zeros(gradients.shape[1])
    for k, order in enumerate(orders):
        v = gradients[k].copy()
        for j in order:
            inner = v @ gradients[j]
            if j != k and inner < 0:
                v -= inner / (gradients[j] @ gradients[j]) * gradients[j]
        total += base[k] * v
    return total


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_pcgrad_is_the_paper_in_the_order_of_conflict(count):
    for seed in range(10):
        gradients = random_gradients(seed, count, dimension=4)
        base = np.random.default_rng(seed).dirichlet(np.full(count, 5.0))
        unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
        exact = slow_pcgrad(gradients, base, np.argsort(unit @ unit.T, axis=1))
        ours = solve("pcgrad", gradients, base) @ gradients
        np.testing.assert_allclose(ours / np.linalg.norm(ours), exact / np.linalg.norm(exact), atol=1e-4)


def test_pcgrad_by_hand():
    """g_1 = (1, 0), g_2 = (-1, 1): v_1 = (.5, .5) = g_1 + g_2 / 2, v_2 = (0, 1) = g_2 + g_1; sum 2 g_1 + 1.5 g_2."""
    np.testing.assert_allclose(solve("pcgrad", [[1, 0], [-1, 1]]), [4 / 7, 3 / 7], atol=1e-6)


def exact_upgrad(gradients, base):
    """Projection onto the dual cone: v = g_k + sum_j u_j g_j with the u >= 0 of non-negative least squares."""
    total = np.zeros(gradients.shape[1])
    for k, gradient in enumerate(gradients):
        u, _ = nnls(gradients.T, -gradient, maxiter=1000)
        total += base[k] * (gradient + u @ gradients)
    return total


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_upgrad_is_the_projection_onto_the_dual_cone(count):
    for seed in range(12):
        gradients = random_gradients(seed, count)
        base = np.random.default_rng(seed).dirichlet(np.full(count, 5.0))
        ours, exact = solve("upgrad", gradients, base) @ gradients, exact_upgrad(gradients, base)
        np.testing.assert_allclose(ours / np.linalg.norm(ours), exact / np.linalg.norm(exact), atol=2e-3)


def test_upgrad_by_hand():
    """As PCGrad for two: g_1 = (1, 0), g_2 = (-1, 1). Without a conflict the average stays."""
    np.testing.assert_allclose(solve("upgrad", [[1, 0], [-1, 1]]), [4 / 7, 3 / 7], atol=1e-4)
    np.testing.assert_allclose(solve("upgrad", [[1, 0], [1, 1]], [0.25, 0.75]), [0.25, 0.75], atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_special_gradients(method):
    """One; all the same; opposed (a Pareto stationary point, where mgda finds the zero vector: w ~ 1/n)."""
    np.testing.assert_allclose(solve(method, [[3.0, 4.0]]), [1.0])
    np.testing.assert_allclose(solve(method, [[3.0, 4.0]] * 3), [1 / 3] * 3, atol=1e-4)
    opposed = solve(method, [[1.0, 0.0], [-3.0, 0.0]])
    assert np.isfinite(opposed).all()
    if method == "mgda":
        np.testing.assert_allclose(opposed, [0.75, 0.25], atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_inactive_gradients_are_not_used(method):
    """Not even one that is zero, or not a number."""
    gradients = random_gradients(3, 3)
    alone = solve(method, gradients[:2], [0.4, 0.6])
    for third in (np.zeros(6), np.full(6, np.nan), -5 * gradients[0]):
        weights = solve(method, np.vstack([gradients[:2], third]), [0.4, 0.6, 0.0], [True, True, False])
        np.testing.assert_allclose(weights, [*alone, 0.0], atol=1e-6)
    nobody = METHODS[method](jnp.ones((2, 2)), jnp.full(2, 0.5), jnp.zeros(2, bool))
    assert bool(jnp.all(jnp.isfinite(nobody)))


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_gradient_shows(method):
    gram = jnp.array([[1.0, jnp.nan], [jnp.nan, jnp.nan]])
    assert bool(jnp.any(jnp.isnan(METHODS[method](gram, jnp.full(2, 0.5), jnp.ones(2, bool)))))


@pytest.mark.parametrize("method", METHODS)
@examples(max_examples=20)
@given(seed=st.integers(0, 2**31 - 1), scale=st.sampled_from([1e-8, 1e-3, 7.0, 1e6]))
def test_weights_are_non_negative_scale_free_and_follow_permutations(method, seed, scale):
    rng = np.random.default_rng(seed)
    gradients, base, order = random_gradients(seed, 4, spread=0.5), rng.dirichlet(np.full(4, 5.0)), rng.permutation(4)
    weights = solve(method, gradients, base)
    assert (weights >= 0).all()
    np.testing.assert_allclose(solve(method, scale * gradients, base), weights, atol=2e-3)
    np.testing.assert_allclose(solve(method, gradients[order], base[order]), weights[order], atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_an_indefinite_matrix_stays_finite(method):
    """Estimates of inner products need not come from any vectors."""
    gram = jnp.array([[1.0, -0.9, -0.9], [-0.9, 1.0, -0.9], [-0.9, -0.9, 1.0]])
    assert bool(jnp.all(jnp.isfinite(METHODS[method](gram, jnp.full(3, 1 / 3), jnp.ones(3, bool)))))


@pytest.mark.parametrize("method", METHODS)
def test_vmap_and_shard_map(method):
    gradients = np.stack([random_gradients(seed, 3) for seed in range(8)])
    grams = jnp.asarray(gradients @ gradients.transpose(0, 2, 1), jnp.float32)
    base, active = jnp.full(3, 1 / 3), jnp.ones(3, bool)
    single = jnp.stack([METHODS[method](gram, base, active) for gram in grams])
    batched = jax.vmap(METHODS[method], in_axes=(0, None, None))(grams, base, active)
    np.testing.assert_allclose(batched, single, atol=1e-4)
    mesh = jax.make_mesh((8,), ("data",))
    specs = (PartitionSpec(), PartitionSpec(), PartitionSpec())
    replicated = jax.shard_map(METHODS[method], mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    np.testing.assert_allclose(replicated(grams[0], base, active), single[0], atol=1e-4)
