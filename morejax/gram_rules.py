"""Weights from the Gram matrix of K gradients alone: min-norm, gradient surgery, conflict aversion, dual cone.

With G_kl = <g_k, g_l> every direction sum_k w_k g_k and all its inner products are known without the gradients
themselves, so these methods cost K x K numbers a time, in loops of a fixed length. They return w >= 0 up to a scale
(the direction; the caller puts them on the simplex) and do not change when G is multiplied by a constant.

``base`` f32[K] holds preferences b_k, equal for the methods as published; ``active`` bool[K] says which gradients take
part; the others are neither used nor given weight.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Relative to the diagonal: makes the solution unique, with equal weights on equal gradients.
_RIDGE = 1e-5
_TINY = 1e-12
_STEPS_A_COORDINATE = 24
_SWEEPS = 64
_RELAXATION = 1.6


def mgda(gram: jax.Array, base: jax.Array, active: jax.Array) -> jax.Array:
    """The shortest vector in the convex hull of the gradients, along which all objectives improve.

        alpha = argmin over the simplex |sum_k alpha_k g_k / b_k|,    w_k ~ alpha_k / b_k

    then <g_k, d> >= b_k |d|^2 for d = sum_k w_k g_k: a preferred objective improves more. The short gradient gets the
    large weight.

    Args:
        gram: f32[K, K].
        base: f32[K], preferences; positive where active.
        active: bool[K].

    Returns:
        f32[K], up to a scale.

    Source: Desideri, "Multiple-gradient descent algorithm", C. R. Math. 350 (2012); Sener and Koltun, "Multi-Task
    Learning as Multi-Objective Optimization", arXiv 1810.04650.
    """
    inverse = jnp.where(active, 1.0 / jnp.where(active, base, 1.0), 0.0)
    inverse = inverse / jnp.maximum(jnp.max(inverse), _TINY)
    scaled = _unit(gram * inverse[:, None] * inverse[None, :], active)
    alpha = _minimise_on_simplex(scaled, jnp.zeros_like(base), jnp.ones_like(base[0]), active)
    return alpha * inverse


def cagrad(gram: jax.Array, base: jax.Array, active: jax.Array, c: jax.Array | float) -> jax.Array:
    """The direction within c |g_0| of the average g_0 that serves the worst served objective best.

        alpha = argmin over the simplex <g_alpha, g_0> + c |g_0| |g_alpha|,    w_k = b_k + c |g_0| / |g_alpha| alpha_k

    with g_0 = sum_k b_k g_k and g_alpha = sum_k alpha_k g_k. c = 0 is the average, a large c approaches `mgda`.

    Args:
        gram: f32[K, K].
        base: f32[K], preferences, on the simplex.
        active: bool[K].
        c: radius of the ball, in units of |g_0|.

    Returns:
        f32[K], up to a scale.

    Source: Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", arXiv 2110.14048, algorithm 1.
    """
    gram = _unit(gram, active)
    preference = jnp.where(active, base, 0.0)
    preference = preference / jnp.maximum(jnp.sum(preference), _TINY)
    towards = _times(gram, preference)
    radius = c * jnp.sqrt(jnp.maximum(jnp.sum(preference * towards), 0.0))
    alpha = _minimise_on_simplex(gram, towards, radius, active)
    length = jnp.sqrt(jnp.maximum(jnp.sum(alpha * _times(gram, alpha)), _TINY))
    return preference + radius / length * alpha


def pcgrad(gram: jax.Array, base: jax.Array, active: jax.Array) -> jax.Array:
    """Gradient surgery: what conflicts with another gradient is projected out of every gradient.

        for every k, for every j != k, worst conflict first:   if <v_k, g_j> < 0:  v_k <- v_k - <v_k, g_j>/|g_j|^2 g_j
        w: sum_k b_k v_k = sum_k w_k g_k

    The paper draws the order of the j; here it goes by the cosine with g_k, so that nothing is random and the order
    of the objectives does not matter.

    Args:
        gram: f32[K, K].
        base: f32[K], preferences.
        active: bool[K].

    Returns:
        f32[K], up to a scale.

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", arXiv 2001.06782, algorithm 1.
    """
    cosine, length = _cosines(gram, active)
    order = jnp.argsort(cosine, axis=1)
    rows = jnp.arange(len(base))

    def project(step: jax.Array, rotated: jax.Array) -> jax.Array:
        other = order[:, step]
        inner = jnp.sum(rotated * cosine[other], axis=1)
        conflict = active[other] & (other != rows) & ~(inner >= 0)
        return rotated.at[rows, other].add(jnp.where(conflict, -inner, 0.0))

    # Row k: coefficients of v_k / |g_k| in the unit gradients.
    rotated = jax.lax.fori_loop(0, len(base), project, _identity(active))
    return _sum_rows(rotated, base, length, active)


def upgrad(gram: jax.Array, base: jax.Array, active: jax.Array) -> jax.Array:
    """Every gradient moved as little as it takes not to hurt any objective, then averaged.

        v_k = argmin |v - g_k|  s.t.  <v, g_j> >= 0 for all j,    w: sum_k b_k v_k = sum_k w_k g_k

    In the dual, v_k = g_k + sum_j u_j g_j with u >= 0 and complementary slackness: K small quadratic programs on G,
    solved by projected successive over-relaxation.

    Args:
        gram: f32[K, K].
        base: f32[K], preferences.
        active: bool[K].

    Returns:
        f32[K], up to a scale.

    Source: Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", arXiv 2406.16232 (TorchJD's UPGrad).
    """
    cosine, length = _cosines(gram, active)
    count = len(base)
    regular = cosine + _RIDGE * jnp.eye(count)

    def sweep(_: jax.Array, projected: jax.Array) -> jax.Array:
        for j in range(count):
            slack = jnp.sum(projected * regular[j][None, :], axis=1)
            moved = projected[:, j] - _RELAXATION / regular[j, j] * slack
            # bounded, because an indefinite G (an estimate of the inner products) has no minimum
            moved = jnp.clip(moved, jnp.where(jnp.arange(count) == j, 1.0, 0.0), 1e6)
            projected = projected.at[:, j].set(jnp.where(active & active[j], moved, 0.0))
        return projected

    projected = jax.lax.fori_loop(0, _SWEEPS, sweep, _identity(active))
    return _sum_rows(projected, base, length, active)


def _minimise_on_simplex(gram: jax.Array, linear: jax.Array, slope: jax.Array, active: jax.Array) -> jax.Array:
    """argmin of linear . x + slope sqrt(x' G x) over the simplex of the active coordinates.

    Every step moves weight from one coordinate to another: of all K (K - 1) pairs the one that gains most, as far as
    the line search (closed form) or the weight allows. Two coordinates take one step.
    """
    gram = gram + _RIDGE * jnp.diag(jnp.diagonal(gram))
    diagonal = jnp.diagonal(gram)
    curvature = jnp.maximum(diagonal[:, None] + diagonal[None, :] - 2 * gram, _TINY)
    tilt = linear[:, None] - linear[None, :]
    coordinates = jnp.arange(len(linear))

    def move(_: jax.Array, x: jax.Array) -> jax.Array:
        pulled = _times(gram, x)
        square = jnp.maximum(jnp.sum(x * pulled), _TINY)
        cross = pulled[:, None] - pulled[None, :]
        # [i, j]: from j to i; an inactive coordinate has nothing to give and may not receive
        most = jnp.where(active[:, None], x[None, :], 0.0)
        amount = jnp.clip(_line_minimum(tilt, slope, square, cross, curvature), 0.0, most)
        change = amount * (2 * cross + curvature * amount)
        # A difference of roots in the form that keeps its digits.
        roots = jnp.sqrt(jnp.maximum(square + change, 0.0)) + jnp.sqrt(square)
        best = jnp.argmax(-tilt * amount - slope * change / roots)
        to, source = best // len(linear), best % len(linear)
        direction = jnp.where(coordinates == to, 1.0, 0.0) - jnp.where(coordinates == source, 1.0, 0.0)
        return x + amount[to, source] * direction

    start = jnp.where(active, 1.0, 0.0)
    return jax.lax.fori_loop(0, _STEPS_A_COORDINATE * len(linear), move, start / jnp.maximum(jnp.sum(start), 1.0))


def _line_minimum(
    tilt: jax.Array, slope: jax.Array, square: jax.Array, cross: jax.Array, curvature: jax.Array
) -> jax.Array:
    """argmin over y of tilt y + slope sqrt(square + 2 cross y + curvature y^2)."""
    bottom = -cross / curvature
    rest = jnp.maximum(square - cross**2 / curvature, 0.0)
    room = slope**2 * curvature - tilt**2
    shift = tilt * jnp.sqrt(rest / (curvature * jnp.maximum(room, _TINY)))
    return jnp.where(room <= 0, jnp.where(tilt > 0, -jnp.inf, jnp.inf), bottom - shift)


def _times(gram: jax.Array, x: jax.Array) -> jax.Array:
    # Not a matrix product: matrix units round float32 to TF32.
    return jnp.sum(gram * x[None, :], axis=1)


def _unit(gram: jax.Array, active: jax.Array) -> jax.Array:
    """Gram matrix of the active gradients, the longest of them with length 1."""
    gram = jnp.where(active[:, None] & active[None, :], gram, 0.0)
    return gram / jnp.maximum(jnp.max(jnp.diagonal(gram)), _TINY**2)


def _cosines(gram: jax.Array, active: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gram matrix of the unit gradients, with the inactive ones orthogonal to all, and the lengths."""
    length = jnp.where(active, jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0.0)), 1.0)
    cosine = gram / length[:, None] / length[None, :]
    both = active[:, None] & active[None, :]
    return jnp.where(jnp.eye(len(length), dtype=bool), 1.0, jnp.where(both, cosine, 0.0)), length


def _identity(active: jax.Array) -> jax.Array:
    return jnp.where(jnp.eye(len(active), dtype=bool) & active[None, :], 1.0, 0.0)


def _sum_rows(unit_rows: jax.Array, base: jax.Array, length: jax.Array, active: jax.Array) -> jax.Array:
    """Weights of the gradients in sum_k b_k v_k, where row k has v_k / |g_k| in the unit gradients."""
    scaled = unit_rows * jnp.where(active, base * length, 0.0)[:, None]
    weights = jnp.sum(scaled, axis=0) / length
    return jnp.where(active, weights / jnp.maximum(jnp.max(jnp.abs(weights)), _TINY**2), 0.0)
