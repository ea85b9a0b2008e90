"""Adaptive weights of the objectives from gradient feedback.

A rule maps statistics (above all the K x K Gram matrix of the objectives' gradients, and how far each
objective still is from its target) to raw weights; `update_weights` puts them on the simplex, floors, caps and
smooths them. Only objectives are weighed here: constraints have their multipliers, and two controllers on
one stream would fight. `RULES` maps a name to a function, and a new rule is one more entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import chex
import jax
import jax.core
import jax.numpy as jnp

from morejax.weight_rules import (
    DEFICIT_RANGE,
    NEEDS_GRAM,
    NEEDS_MOMENTS,
    RULES,
    WeightSettings,
    WeightState,
    WeightStats,
    applies,
    deficit,
    fresh,
    has_gradient,
    norms,
    relative_deficit,
    safe_norms,
)

__all__ = [
    "DEFICIT_RANGE",
    "NEEDS_GRAM",
    "NEEDS_MOMENTS",
    "RULES",
    "WeightSettings",
    "WeightState",
    "WeightStats",
    "alignment",
    "cosines",
    "deficit",
    "has_gradient",
    "init_weights",
    "norms",
    "relative_deficit",
    "shares",
    "update_weights",
]


def init_weights(base: Sequence[float] | jax.Array) -> WeightState:
    """Weights before the first update: the user's own, scaled to sum to 1.

    Args:
        base: K non-negative numbers, at least one of them positive; 0 leaves an objective out for good.

    Returns:
        The state.

    Raises:
        ValueError: if a weight is negative or not finite, or all are 0.
    """
    weights = jnp.asarray(base, jnp.float32)
    chex.assert_rank(weights, 1)
    # Under a trace (an abstract init, say) there are no numbers to look at.
    if weights.size and not isinstance(weights, jax.core.Tracer):
        given = weights.tolist()
        if not (sum(given) > 0 and all(0 <= x < float("inf") for x in given)):
            raise ValueError(f"objective weights are {given}, expected finite numbers >= 0 with a positive sum")
    weights = weights / jnp.sum(weights)
    # Distinct buffers: the state is donated, and a buffer cannot be donated twice.
    return WeightState(
        weights=weights,
        base=jnp.array(weights),
        raw=jnp.array(weights),
        last_score=jnp.zeros_like(weights),
        slope=jnp.zeros_like(weights),
        corr=jnp.zeros_like(weights),
        seen=jnp.zeros(weights.shape, jnp.int32),
        rollout=jnp.int32(-1),
    )


def update_weights(state: WeightState, stats: WeightStats, rule: str, settings: WeightSettings) -> WeightState:
    """One update of the objective weights.

        w' = (1 - kappa) raw / sum(raw) + kappa b,  at most cap,      w <- ema w + (1 - ema) w'

    With equal base weights the floor is kappa / K. Flooring before smoothing keeps the fixed point at w';
    the other way round the floor would be applied again at every update and drag the weights to the base.
    What is above the cap goes to the others, as by ``base``; a cap below what they can hold together is raised to it.
    An objective that does not apply, or (for a rule that reads the Gram matrix) has no gradient this time, keeps its
    weight exactly, and its memory; the others share what is left. No gradient flows through the weights.

    Args:
        state: weights before.
        stats: what the rule decides from.
        rule: a name in `RULES`.
        settings: numbers of the rule.

    Returns:
        The new state, weights on the simplex, none below kappa b_k or above the cap unless it was there before.

    Raises:
        ValueError: if ``rule`` is unknown, or a statistic that it needs is missing.
    """
    if rule not in RULES:
        raise ValueError(f"weight rule is {rule!r}, expected one of {', '.join(RULES)}")
    chex.assert_equal_shape([state.weights, state.base, stats.score, stats.initial_score, stats.target])
    if stats.gram is not None:
        chex.assert_shape(stats.gram, state.weights.shape * 2)
    active = applies(stats)
    if rule in NEEDS_GRAM and stats.gram is not None:
        active = active & has_gradient(stats.gram)
    raw, memory = RULES[rule](stats, settings, state)
    raw = jnp.where(active, raw, 0.0)
    target = _to_simplex(raw, active, state, settings.floor)
    target = _capped(target, active, state.base, settings.cap)
    moved = settings.ema * state.weights + (1.0 - settings.ema) * target
    weights = jnp.where(active, moved, state.weights)
    return jax.lax.stop_gradient(replace(_remember(state, memory, stats, active), weights=weights))


def _remember(state: WeightState, memory: WeightState, stats: WeightStats, active: jax.Array) -> WeightState:
    """What the rule has learnt, of the active objectives, and the scores of a rollout that is new."""
    new = applies(stats) & fresh(stats, state)
    return replace(
        memory,
        raw=jnp.where(active, memory.raw, state.raw),
        slope=jnp.where(active, memory.slope, state.slope),
        corr=jnp.where(active, memory.corr, state.corr),
        last_score=jnp.where(new, stats.score, state.last_score),
        seen=state.seen + new.astype(jnp.int32),
        rollout=state.rollout if stats.rollout is None else jnp.asarray(stats.rollout, jnp.int32),
    )


def _to_simplex(raw: jax.Array, active: jax.Array, state: WeightState, floor: jax.Array | float) -> jax.Array:
    """Spread the active objectives' share of the weight: the floor first, the rest in proportion to raw."""
    mass = jnp.sum(jnp.where(active, state.weights, 0.0))
    lowest = jnp.where(active, floor * state.base, 0.0)
    given = jnp.sum(raw)
    # An all-zero raw vector has nothing to share out by: the weights stay.
    share = raw / jnp.where(given == 0, 1.0, given)
    spread = lowest + jnp.maximum(mass - jnp.sum(lowest), 0.0) * share
    total = jnp.sum(spread)
    nothing = (total == 0) | (given == 0)
    return jnp.where(nothing, state.weights, spread * mass / jnp.where(total == 0, 1.0, total))


def _capped(weights: jax.Array, active: jax.Array, base: jax.Array, cap: jax.Array | float) -> jax.Array:
    """Cut the active weights at the cap and hand the excess to those below it, in proportion to base.

    w_k <- min(w_k + t b_k, cap) with the t >= 0 that keeps the sum: piecewise linear in t, so t is found exactly from
    the K values of t at which an objective reaches the cap.
    """
    takers = active & (base > 0)
    before = jnp.where(active, weights, 0.0)
    mass = jnp.sum(before)
    most = jnp.maximum(cap, mass / jnp.maximum(jnp.sum(takers), 1))
    rate = jnp.where(takers, base, 0.0)
    full_at = jnp.where(takers, jnp.maximum((most - before) / jnp.where(takers, base, 1.0), 0.0), 0.0)
    totals = jnp.sum(jnp.minimum(before[None, :] + full_at[:, None] * rate[None, :], most), axis=1)
    start = jnp.max(jnp.where(totals <= mass, full_at, 0.0), initial=0.0)
    begun = jnp.minimum(before + start * rate, most)
    still = jnp.sum(jnp.where(full_at > start, rate, 0.0))
    rest = jnp.maximum(mass - jnp.sum(begun), 0.0) / jnp.where(still == 0, 1.0, still)
    capped = jnp.minimum(begun + rest * rate, most)
    return jnp.where(active & (jnp.asarray(cap) < 1.0), capped, weights)


def cosines(gram: jax.Array) -> jax.Array:
    """Cosines between the objectives' gradients, ``G_kl / (n_k n_l)``.

    Args:
        gram: f32[K, K].

    Returns:
        f32[K, K] in [-1, 1]; rows and columns of an objective without gradient are 0.
    """
    present = has_gradient(gram)
    inverse = jnp.where(present, 1.0 / safe_norms(gram), 0.0)
    return jnp.clip(gram * inverse[:, None] * inverse[None, :], -1.0, 1.0)


def shares(weights: jax.Array, gram: jax.Array) -> jax.Array:
    """Share of each objective in the update, ``w_k n_k / sum_j w_j n_j``.

    Args:
        weights: f32[K].
        gram: f32[K, K].

    Returns:
        f32[K], sums to 1; all 0 if there is no gradient at all.
    """
    parts = weights * norms(gram)
    total = jnp.sum(parts)
    return jnp.where(total == 0, 0.0, parts / jnp.where(total == 0, 1.0, total))


def alignment(weights: jax.Array, gram: jax.Array) -> jax.Array:
    """Inner product of each gradient with the update, ``<g_k, sum_l w_l g_l> = sum_l G_kl w_l``.

    Args:
        weights: f32[K].
        gram: f32[K, K].

    Returns:
        f32[K]; negative where the update hurts objective k.
    """
    return jnp.sum(gram * weights[None, :], axis=1)
