"""Rules that weigh the objectives, one function each; `RULES` maps their names to them.

A rule maps the statistics of this update, the numbers and the state to raw weights (up to a scale) and the state with
its memory moved. The user's own weights b_k (`WeightState.base`) stand in every rule: with equal ones a rule is what
its paper says. Entries of objectives that take no part in the update are ignored, in the weights and in the memory.

The rules that need only the Gram matrix of the gradients are in `gram_rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import chex
import flax.struct
import jax
import jax.numpy as jnp

from morejax import gram_rules

# Bounds of the deficit: a learnt objective still counts a little, a lost one not without end.
DEFICIT_RANGE = (0.05, 5.0)
# Below this share of the largest gradient is rounding noise; dividing by it would give it all the weight.
_NO_GRADIENT = 1e-6
# An iterated weight does not fall below this share of b_k, so that it can come back.
_LEAST_RAW = 1e-3
# Largest coefficient of variation: a mean of about 0 would take all the weight.
_LARGEST_CV = 1e3
_TINY = 1e-12


@flax.struct.dataclass
class WeightState:
    """Objective weights and the memory of the rules.

    Attributes:
        weights: f32[K], current weights, on the simplex.
        base: f32[K], the user's own weights, on the simplex; adaptive rules multiply them, ``fixed`` returns
            them, the floor is a share of them. Equal by default.
        raw: f32[K], weights that ``gradnorm``, ``dyn`` and ``ctwa`` iterate on, before floor, cap and smoothing; on the
            simplex.
        last_score: f32[K], score of the last rollout in which the objective applied.
        slope: f32[K], share of the way to the target made by that rollout (``improve``).
        corr: f32[K], running correlation of the objective with the weighted sum (``ctwa``).
        seen: i32[K], number of rollouts in which the objective applied.
        rollout: i32[], number of the last rollout; -1 before the first.
    """

    weights: jax.Array
    base: jax.Array
    raw: jax.Array
    last_score: jax.Array
    slope: jax.Array
    corr: jax.Array
    seen: jax.Array
    rollout: jax.Array


@flax.struct.dataclass
class WeightStats:
    """What one update is decided from.

    Attributes:
        gram: f32[K, K], inner products <g_k, g_l> of the objectives' gradients; ``None`` for rules outside
            `NEEDS_GRAM`.
        score: f32[K], J_k; the step passes its running mean over rollouts, EMA(J_k).
        initial_score: f32[K], J_k before training.
        target: f32[K], J*_k, for example the score of the human answers.
        count: f32[K], number of applicable sequences; a stream with 0 keeps its weight. ``None``: all apply.
        mean: f32[K], mean of the sequences' scores in this rollout; for ``cv``.
        std: f32[K], their standard deviation; for ``cv`` and ``var``.
        corr: f32[K], their correlation with the sequences' weighted sum of objectives; for ``ctwa``.
        rollout: i32[], number of the rollout, so that rules which learn once a rollout do so once although weights
            are updated once a minibatch; ``None``: every update is a new rollout.
    """

    gram: jax.Array | None
    score: jax.Array
    initial_score: jax.Array
    target: jax.Array
    count: jax.Array | None = None
    mean: jax.Array | None = None
    std: jax.Array | None = None
    corr: jax.Array | None = None
    rollout: jax.Array | None = None


@flax.struct.dataclass
class WeightSettings:
    """Numbers of the rules; traced, so a sweep does not recompile.

    Attributes:
        ema: decay of the weights, in [0, 1); also of the running correlation of ``ctwa``.
        floor: kappa, the share of the weight that is handed out as by ``base`` whatever the rule says.
        alpha: exponent of the relative deficit in ``gradnorm`` and ``gradnorm_cf``; 0 makes the latter ``inv_norm``.
        lr: step of ``gradnorm`` (in weights that sum to K), ``dyn`` and ``ctwa`` (in logarithms).
        tau: temperature of ``improve``, in shares of the way to the target per rollout.
        power: exponent of the standard deviation in ``var``.
        cagrad_c: how far ``cagrad`` may go from the average gradient, in units of its norm; below 1.
        corr_target: correlation up to which ``ctwa`` pushes an objective.
        cap: largest weight, at least 1/K; 1 = off.
    """

    ema: jax.Array | float = 0.9
    floor: jax.Array | float = 0.1
    alpha: jax.Array | float = 1.0
    lr: jax.Array | float = 0.05
    tau: jax.Array | float = 0.05
    power: jax.Array | float = 1.0
    cagrad_c: jax.Array | float = 0.4
    corr_target: jax.Array | float = 0.5
    cap: jax.Array | float = 1.0


Rule = Callable[[WeightStats, WeightSettings, WeightState], tuple[jax.Array, WeightState]]


def norms(gram: jax.Array) -> jax.Array:
    """Gradient norms ``n_k = sqrt(G_kk)``, f32[K], from the Gram matrix f32[K, K]."""
    return jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0.0))


def has_gradient(gram: jax.Array) -> jax.Array:
    """Which objectives have a gradient worth dividing by, bool[K]; a NaN counts as one, so that it shows."""
    n = norms(gram)
    return ~(n <= jnp.maximum(_NO_GRADIENT * jnp.max(n, initial=0.0), _TINY))


def safe_norms(gram: jax.Array) -> jax.Array:
    """Gradient norms f32[K], 1 where there is no gradient."""
    return jnp.where(has_gradient(gram), norms(gram), 1.0)


def applies(stats: WeightStats) -> jax.Array:
    """Which objectives apply to a sequence of this rollout, bool[K]."""
    return jnp.ones(stats.score.shape, bool) if stats.count is None else stats.count > 0


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
    return jnp.clip((stats.target - stats.score) / _gap(stats), *DEFICIT_RANGE)


def _gap(stats: WeightStats) -> jax.Array:
    """Way from the start to the target, f32[K], positive."""
    scale = jnp.maximum(jnp.abs(stats.target), jnp.abs(stats.initial_score))
    return jnp.maximum(stats.target - stats.initial_score, jnp.maximum(0.05 * scale, 1e-8))


def relative_deficit(stats: WeightStats) -> jax.Array:
    """``r_k = L_k / mean(L)`` over the objectives that apply, f32[K]; 1 where one does not apply."""
    present = applies(stats)
    left = jnp.where(present, deficit(stats), 0.0)
    mean = jnp.sum(left) / jnp.maximum(jnp.sum(present), 1)
    return jnp.where(present, left / jnp.maximum(mean, _TINY), 1.0)


def fixed_rule(stats: WeightStats, settings: WeightSettings, state: WeightState) -> tuple[jax.Array, WeightState]:
    """The user's weights, whatever the gradients: ``w_k = b_k``."""
    return state.base, state


def inv_norm_rule(stats: WeightStats, settings: WeightSettings, state: WeightState) -> tuple[jax.Array, WeightState]:
    """Equal gradient norms: ``w_k ~ b_k / n_k``."""
    return state.base / safe_norms(_gram(stats)), state


def gradnorm_cf_rule(stats: WeightStats, settings: WeightSettings, state: WeightState) -> tuple[jax.Array, WeightState]:
    """GradNorm's fixed point in closed form: ``w_k ~ b_k r_k^alpha / n_k``, with ``r_k = L_k / mean(L)``.

    ``L_k`` is the remaining `deficit`, in the place of GradNorm's loss ratio: the more an objective has still
    to gain, the larger its share of the update.

    Source: Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
    Networks", arXiv 1711.02257, eq. 1 and 2.
    """
    return state.base * relative_deficit(stats) ** settings.alpha / safe_norms(_gram(stats)), state


def gradnorm_rule(stats: WeightStats, settings: WeightSettings, state: WeightState) -> tuple[jax.Array, WeightState]:
    """GradNorm itself, one step towards norms in proportion to r_k^alpha.

        v_k <- v_k - lr sign(v_k n_k - t_k sum_j v_j n_j) n_k / mean(n),    t_k = b_k r_k^alpha / sum_j b_j r_j^alpha

    in weights v that sum to their number, and are scaled to do so again. With equal b and alpha = 1, t_k sum_j v_j n_j
    is the paper's mean(v n) r_k. Every step has the same length: at the fixed point the weights rock by lr.

    Source: Chen et al., arXiv 1711.02257, algorithm 1; the deficit replaces the loss ratio, see `gradnorm_cf_rule`.
    """
    active = participants(stats, state, needs_gradient=True)
    number = jnp.maximum(jnp.sum(active), 1)
    n = jnp.where(active, norms(_gram(stats)), 0.0)
    share = jnp.where(active, state.base * relative_deficit(stats) ** settings.alpha, 0.0)
    share = share / jnp.maximum(jnp.sum(share), _TINY)
    mass = jnp.maximum(jnp.sum(jnp.where(active, state.raw, 0.0)), _TINY)
    v = jnp.where(active, state.raw / mass * number, 0.0)
    step = jnp.sign(v * n - share * jnp.sum(v * n)) * n / jnp.maximum(jnp.sum(n) / number, _TINY)
    return _iterate(state, (v - settings.lr * step) * mass / number, active)


def dyn_rule(stats: WeightStats, settings: WeightSettings, state: WeightState) -> tuple[jax.Array, WeightState]:
    """More weight for the objectives whose gradients serve all: exponentiated gradient on their influence.

        ln w_k <- ln w_k + lr <g_k, sum_j g_j> / s,    s = (sum_j n_j)^2 / K

    s makes it free of the scale of the gradients: the influence is 1 where all gradients are the same.

    Source: Lu et al., "Learning to Optimize Multi-Objective Alignment Through Dynamic Reward Weighting",
    arXiv 2509.11452 (the scale s is ours).
    """
    active = participants(stats, state, needs_gradient=True)
    gram = jnp.where(active[:, None] & active[None, :], _gram(stats), 0.0)
    scale = jnp.sum(norms(gram)) ** 2 / jnp.maximum(jnp.sum(active), 1)
    influence = jnp.sum(gram, axis=1) / jnp.maximum(scale, _TINY**2)
    return _iterate(state, state.raw * jnp.exp(settings.lr * influence), active)


def improve_rule(stats: WeightStats, settings: WeightSettings, state: WeightState) -> tuple[jax.Array, WeightState]:
    """More weight for what improves least: ``w_k ~ b_k exp(-slope_k / tau)``.

        slope_k = (J_k - J_k of the rollout before) / gap_k

    with the gap of `deficit`: slopes are shares of the way to the target per rollout, whatever the unit of J. The score
    is expected to be smoothed already. 0 at the first rollout.

    Source: after the dynamic weight average of Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention",
    arXiv 1803.10704, eq. 7 (ratios of losses there).
    """
    new = applies(stats) & fresh(stats, state)
    made = jnp.where(state.seen > 0, (stats.score - state.last_score) / _gap(stats), 0.0)
    slope = jnp.where(new, made, state.slope)
    present = participants(stats, state)
    least = jnp.min(jnp.where(present, slope, jnp.inf), initial=jnp.inf)
    # Relative to the smallest slope, which changes nothing but keeps exp in range.
    excess = jnp.where(present, slope - jnp.where(present, least, 0.0), 0.0)
    return state.base * jnp.exp(-excess / settings.tau), replace(state, slope=slope)


def cv_rule(stats: WeightStats, settings: WeightSettings, state: WeightState) -> tuple[jax.Array, WeightState]:
    """Coefficient of variation of the scores: ``w_k ~ b_k std_k / |mean_k|``, at most 1000 b_k.

    A stream with mean about 0 takes nearly all the weight: give scores of one sign.

    Source: He et al., "SAW: Stage-Aware Dynamic Weighting", arXiv 2606.07705.
    """
    mean, std = _moments(stats, "mean"), _moments(stats, "std")
    least = jnp.maximum(std / _LARGEST_CV, _TINY)
    return state.base * std / jnp.maximum(jnp.abs(mean), least), state


def var_rule(stats: WeightStats, settings: WeightSettings, state: WeightState) -> tuple[jax.Array, WeightState]:
    """Spread of the scores: ``w_k ~ b_k std_k^power``, power 1 or 2. Source: DVAO, arXiv 2605.25604."""
    std = _moments(stats, "std")
    return jnp.where(std == 0, 0.0, state.base * std**settings.power), state


def ctwa_rule(stats: WeightStats, settings: WeightSettings, state: WeightState) -> tuple[jax.Array, WeightState]:
    """More weight for the objectives that the weighted sum forgets, once a rollout.

        ln w_k <- ln w_k + lr max(0, c* - EMA(corr_k))

    Source: CTWA, arXiv 2602.06869.
    """
    new = participants(stats, state) & fresh(stats, state)
    measured = _moments(stats, "corr")
    smoothed = jnp.where(state.seen > 0, settings.ema * state.corr + (1.0 - settings.ema) * measured, measured)
    smoothed = jnp.where(new, smoothed, state.corr)
    grown = state.raw * jnp.exp(settings.lr * jnp.maximum(settings.corr_target - smoothed, 0.0))
    return _iterate(replace(state, corr=smoothed), grown, new)


def mgda_rule(stats: WeightStats, settings: WeightSettings, state: WeightState) -> tuple[jax.Array, WeightState]:
    """The shortest vector in the convex hull of the gradients: `gram_rules.mgda`."""
    return gram_rules.mgda(_gram(stats), state.base, participants(stats, state, needs_gradient=True)), state


def pcgrad_rule(stats: WeightStats, settings: WeightSettings, state: WeightState) -> tuple[jax.Array, WeightState]:
    """Gradient surgery: `gram_rules.pcgrad`."""
    return gram_rules.pcgrad(_gram(stats), state.base, participants(stats, state, needs_gradient=True)), state


def cagrad_rule(stats: WeightStats, settings: WeightSettings, state: WeightState) -> tuple[jax.Array, WeightState]:
    """The direction near the average that serves the worst served objective best: `gram_rules.cagrad`."""
    active = participants(stats, state, needs_gradient=True)
    return gram_rules.cagrad(_gram(stats), state.base, active, settings.cagrad_c), state


def upgrad_rule(stats: WeightStats, settings: WeightSettings, state: WeightState) -> tuple[jax.Array, WeightState]:
    """Gradients projected onto their dual cone: `gram_rules.upgrad`."""
    return gram_rules.upgrad(_gram(stats), state.base, participants(stats, state, needs_gradient=True)), state


RULES: dict[str, Rule] = {
    "fixed": fixed_rule,
    "inv_norm": inv_norm_rule,
    "gradnorm_cf": gradnorm_cf_rule,
    "gradnorm": gradnorm_rule,
    "dyn": dyn_rule,
    "improve": improve_rule,
    "mgda": mgda_rule,
    "pcgrad": pcgrad_rule,
    "cagrad": cagrad_rule,
    "upgrad": upgrad_rule,
    "cv": cv_rule,
    "var": var_rule,
    "ctwa": ctwa_rule,
}
NEEDS_GRAM = frozenset({"inv_norm", "gradnorm_cf", "gradnorm", "dyn", "mgda", "pcgrad", "cagrad", "upgrad"})
"""Rules that read the Gram matrix; an objective without gradient keeps its weight under them."""
NEEDS_MOMENTS: dict[str, tuple[str, ...]] = {"cv": ("mean", "std"), "var": ("std",), "ctwa": ("corr",)}
"""Rules that read statistics of the sequences' scores, and which."""


def participants(stats: WeightStats, state: WeightState, needs_gradient: bool = False) -> jax.Array:
    """Objectives that share the weight: they apply, have a base weight and, if asked for, a gradient; bool[K]."""
    active = applies(stats) & ~(state.base <= 0)
    return active & has_gradient(_gram(stats)) if needs_gradient else active


def fresh(stats: WeightStats, state: WeightState) -> jax.Array:
    """Is this update the first of its rollout? bool[]."""
    return jnp.bool_(True) if stats.rollout is None else stats.rollout != state.rollout


def _iterate(state: WeightState, moved: jax.Array, active: jax.Array) -> tuple[jax.Array, WeightState]:
    """Keep iterated weights: the active ones share the mass that they had, so that the others stay as they are."""
    mass = jnp.sum(jnp.where(active, state.raw, 0.0))
    kept = jnp.where(active, jnp.maximum(moved, _LEAST_RAW * state.base), 0.0)
    total = jnp.sum(kept)
    raw = jnp.where(active, kept * (mass / jnp.where(total == 0, 1.0, total)), state.raw)
    return raw, replace(state, raw=raw)


def _gram(stats: WeightStats) -> jax.Array:
    if stats.gram is None:
        raise ValueError("stats.gram is None, expected f32[K, K]: the weight rule reads the gradients' inner products")
    return stats.gram


def _moments(stats: WeightStats, name: str) -> jax.Array:
    value = getattr(stats, name)
    if value is None:
        raise ValueError(f"stats.{name} is None, expected f32[K]: the weight rule reads it")
    return jnp.where(applies(stats), value, 0.0)
