"""Adaptive weights of the objectives from gradient feedback.

A rule maps statistics (above all the K x K Gram matrix of the objectives' gradients, and how far each
objective still is from its target) to raw weights; `update_weights` puts them on the simplex, floors and
smooths them. Only objectives are weighed here: constraints have their multipliers, and two controllers on
one stream would fight. `RULES` maps a name to a function, and a new rule is one more entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import chex
import flax.struct
import jax
import jax.core
import jax.numpy as jnp

# Bounds of the deficit: a learnt objective still counts a little, a lost one not without end.
DEFICIT_RANGE = (0.05, 5.0)
# Below this share of the largest gradient is rounding noise; dividing by it would give it all the weight.
_NO_GRADIENT = 1e-6
_TINY = 1e-12


@flax.struct.dataclass
class WeightState:
    """Objective weights.

    Attributes:
        weights: f32[K], current weights, on the simplex.
        base: f32[K], the user's own weights, on the simplex; adaptive rules multiply them, ``fixed`` returns
            them, the floor is a share of them. Equal by default.
    """

    weights: jax.Array
    base: jax.Array


@flax.struct.dataclass
class WeightStats:
    """What one update is decided from.

    Attributes:
        gram: f32[K, K], inner products <g_k, g_l> of the objectives' gradients.
        score: f32[K], J_k of this rollout.
        initial_score: f32[K], J_k before training.
        target: f32[K], J*_k, for example the score of the human answers.
        count: f32[K], number of applicable sequences; a stream with 0 keeps its weight. ``None``: all apply.
    """

    gram: jax.Array
    score: jax.Array
    initial_score: jax.Array
    target: jax.Array
    count: jax.Array | None = None


@flax.struct.dataclass
class WeightSettings:
    """Numbers of the rules; traced, so a sweep does not recompile.

    Attributes:
        ema: decay of the weights, in [0, 1).
        floor: kappa, the share of the weight that is handed out as by ``base`` whatever the rule says.
        alpha: exponent of the relative deficit in ``gradnorm_cf``; 0 makes it ``inv_norm``.
    """

    ema: jax.Array | float = 0.9
    floor: jax.Array | float = 0.1
    alpha: jax.Array | float = 1.0


Rule = Callable[[WeightStats, WeightSettings, jax.Array], jax.Array]


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
    # Two buffers: the state is donated, and a buffer cannot be donated twice.
    return WeightState(weights=weights, base=jnp.array(weights))


def norms(gram: jax.Array) -> jax.Array:
    """Gradient norms ``n_k = sqrt(G_kk)``, f32[K], from the Gram matrix f32[K, K]."""
    return jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0.0))


def has_gradient(gram: jax.Array) -> jax.Array:
    """Which objectives have a gradient worth dividing by, bool[K]; a NaN counts as one, so that it shows."""
    n = norms(gram)
    return ~(n <= jnp.maximum(_NO_GRADIENT * jnp.max(n, initial=0.0), _TINY))


def deficit(stats: WeightStats) -> jax.Array:
    """Share of the way to its target that every objective has still to go.

        L_k = clip((J*_k - J_k) / gap_k, 0.05, 5),   gap_k = max(J*_k - J_k(0), 0.05 max(|J*_k|, |J_k(0)|))

    1 at the start, towards 0.05 at the target, above 1 when the objective got worse. The gap stays positive
    for an objective that began at or above its target; without that the sign of the deficit would turn.
    A PPO loss cannot take this place: it is about 0, of either sign, whatever there is left to learn.

    Args:
        stats: uses ``score``, ``initial_score`` and ``target``.

    Returns:
        f32[K] in [0.05, 5].
    """
    chex.assert_equal_shape([stats.score, stats.initial_score, stats.target])
    scale = jnp.maximum(jnp.abs(stats.target), jnp.abs(stats.initial_score))
    gap = jnp.maximum(stats.target - stats.initial_score, jnp.maximum(0.05 * scale, 1e-8))
    return jnp.clip((stats.target - stats.score) / gap, *DEFICIT_RANGE)


def fixed_rule(stats: WeightStats, settings: WeightSettings, base: jax.Array) -> jax.Array:
    """The user's weights, whatever the gradients: ``w_k = b_k``."""
    return base


def inv_norm_rule(stats: WeightStats, settings: WeightSettings, base: jax.Array) -> jax.Array:
    """Equal gradient norms: ``w_k ~ b_k / n_k``."""
    return base / _safe_norms(stats.gram)


def gradnorm_cf_rule(stats: WeightStats, settings: WeightSettings, base: jax.Array) -> jax.Array:
    """GradNorm's fixed point in closed form: ``w_k ~ b_k r_k^alpha / n_k``, with ``r_k = L_k / mean(L)``.

    ``L_k`` is the remaining `deficit`, in the place of GradNorm's loss ratio: the more an objective has still
    to gain, the larger its share of the update.

    Source: Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
    Networks", arXiv 1711.02257, eq. 1 and 2.
    """
    return base * relative_deficit(stats) ** settings.alpha / _safe_norms(stats.gram)


RULES: dict[str, Rule] = {"fixed": fixed_rule, "inv_norm": inv_norm_rule, "gradnorm_cf": gradnorm_cf_rule}
# Rules that divide by a norm: an objective without gradient keeps its weight under them.
NEEDS_GRADIENT = frozenset({"inv_norm", "gradnorm_cf"})


def relative_deficit(stats: WeightStats) -> jax.Array:
    """``r_k = L_k / mean(L)`` over the objectives that apply, f32[K]; 1 where one does not apply."""
    applies = _applies(stats)
    left = jnp.where(applies, deficit(stats), 0.0)
    mean = jnp.sum(left) / jnp.maximum(jnp.sum(applies), 1)
    return jnp.where(applies, left / jnp.maximum(mean, _TINY), 1.0)


def update_weights(state: WeightState, stats: WeightStats, rule: str, settings: WeightSettings) -> WeightState:
    """One update of the objective weights.

        w' = (1 - kappa) raw / sum(raw) + kappa b,      w <- ema w + (1 - ema) w'

    With equal base weights the floor is kappa / K. Flooring before smoothing keeps the fixed point at w';
    the other way round the floor would be applied again at every update and drag the weights to the base.
    An objective that does not apply, or has no gradient this time, keeps its weight exactly; the others share
    what is left. No gradient flows through the weights.

    Args:
        state: weights before.
        stats: what the rule decides from.
        rule: a name in `RULES`.
        settings: numbers of the rule.

    Returns:
        The new state, weights on the simplex, none below kappa b_k unless it was there before.

    Raises:
        ValueError: if ``rule`` is unknown.
    """
    if rule not in RULES:
        raise ValueError(f"weight rule is {rule!r}, expected one of {', '.join(RULES)}")
    chex.assert_equal_shape([state.weights, state.base, stats.score, stats.initial_score, stats.target])
    chex.assert_shape(stats.gram, state.weights.shape * 2)
    active = _applies(stats)
    if rule in NEEDS_GRADIENT:
        active = active & has_gradient(stats.gram)
    raw = jnp.where(active, RULES[rule](stats, settings, state.base), 0.0)
    target = _to_simplex(raw, active, state, settings.floor)
    moved = settings.ema * state.weights + (1.0 - settings.ema) * target
    weights = jnp.where(active, moved, state.weights)
    return WeightState(weights=jax.lax.stop_gradient(weights), base=state.base)


def _to_simplex(raw: jax.Array, active: jax.Array, state: WeightState, floor: jax.Array | float) -> jax.Array:
    """Spread the active objectives' share of the weight: the floor first, the rest in proportion to raw."""
    mass = jnp.sum(jnp.where(active, state.weights, 0.0))
    lowest = jnp.where(active, floor * state.base, 0.0)
    # An all-zero raw vector (every active base weight is 0) has nothing to share out by.
    share = raw / jnp.where(jnp.sum(raw) == 0, 1.0, jnp.sum(raw))
    spread = lowest + jnp.maximum(mass - jnp.sum(lowest), 0.0) * share
    total = jnp.sum(spread)
    return jnp.where(total == 0, state.weights, spread * mass / jnp.where(total == 0, 1.0, total))


def _applies(stats: WeightStats) -> jax.Array:
    return jnp.ones(stats.score.shape, bool) if stats.count is None else stats.count > 0


def _safe_norms(gram: jax.Array) -> jax.Array:
    return jnp.where(has_gradient(gram), norms(gram), 1.0)


def cosines(gram: jax.Array) -> jax.Array:
    """Cosines between the objectives' gradients, ``G_kl / (n_k n_l)``.

    Args:
        gram: f32[K, K].

    Returns:
        f32[K, K] in [-1, 1]; rows and columns of an objective without gradient are 0.
    """
    present = has_gradient(gram)
    inverse = jnp.where(present, 1.0 / _safe_norms(gram), 0.0)
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
