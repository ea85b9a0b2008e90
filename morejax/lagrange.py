"""Lagrange multipliers of the constraints ``J_m >= d_m``.

One pure update per rollout. The error of every constraint is taken on a smoothed score, because a batch is
noisy: 64 turns at J = 0.9 have a standard error of 3.7 points.

    e_m = d_m - EMA(J_m)        > 0: violated, the multiplier should rise

A rule turns errors into multipliers; `RULES` maps its name to a function, and a new rule is one more entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import chex
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from morejax.collectives import psum
from morejax.multiplier_rules import (
    EQUALITY,
    EXCLUSIVE,
    JOINT,
    RANGES,
    RULES,
    ErrorSignal,
    MultiplierGains,
    MultiplierState,
    inverse,
)

__all__ = [
    "EXCLUSIVE",
    "MIX_NORMS",
    "RULES",
    "ErrorSignal",
    "MultiplierGains",
    "MultiplierState",
    "hinge_applies",
    "init_multipliers",
    "mixing_coefficients",
    "relative_thresholds",
    "standard_error",
    "update_multipliers",
]

MIX_NORMS = ("one_plus_lambda", "sum_to_one", "none")


def init_multipliers(
    num: int,
    initial: float | Sequence[float] | np.ndarray | jax.Array,
    rule: str = "pid",
    flag: str = "--numbers.multiplier-init",
) -> MultiplierState:
    """Multipliers before the first rollout.

    The rule's memory is set so that it starts from the initial value: ``pid`` has it as its integral, the rules
    that move a transform of the multiplier as the transform. ``crpo`` decides anew from the first rollout on.

    Args:
        num: number of constraints M; 0 is allowed.
        initial: initial lambda, one number or M of them.
        rule: a name in `RULES`.
        flag: where the initial value was given, for the error.

    Returns:
        The state.

    Raises:
        ValueError: if ``rule`` is unknown or a value is outside the rule's range (unless it is traced).
    """
    _check_rule(rule)
    if num and not isinstance(initial, jax.core.Tracer):
        _check_range(np.asarray(initial, np.float64), rule, flag)
    value = jnp.broadcast_to(jnp.asarray(initial, jnp.float32), (num,))
    zeros = jnp.zeros((num,), jnp.float32)
    # Distinct buffers throughout: the state is donated, and a buffer cannot be donated twice.
    return MultiplierState(
        value=jnp.array(value),
        integral=jnp.array(inverse(rule, value)),
        ema_score=jnp.array(zeros),
        ema_error=jnp.array(zeros),
        prev_score=jnp.array(zeros),
        seen=jnp.zeros((num,), jnp.int32),
    )


def _check_rule(rule: str) -> None:
    if rule not in RULES:
        raise ValueError(f"multiplier rule is {rule!r}, expected one of {', '.join(RULES)}")


def _check_range(initial: np.ndarray, rule: str, flag: str) -> None:
    least, most = RANGES.get(rule, (0.0, np.inf))
    # The negation, so that a NaN is refused too; float32 values may lie a rounding outside.
    outside = initial[~((initial >= least - 1e-9) & (initial <= most + 1e-9) & (initial < np.inf))]
    if outside.size:
        wanted = f"at least {least:g}" if most == np.inf else f"between {least:g} and {most:g}"
        raise ValueError(f"{flag} must be {wanted} with --step.multipliers {rule}, not {outside[0]}")


def standard_error(score: jax.Array, count: jax.Array) -> jax.Array:
    """Standard error of a success rate, ``sqrt(J (1 - J) / n)``; scores outside [0, 1] are clipped.

    Args:
        score: f32[M], rate in [0, 1].
        count: f32[M], number of (weighted) observations.

    Returns:
        f32[M]; 0 where there is no observation.
    """
    rate = jnp.clip(score, 0.0, 1.0)
    return jnp.where(count > 0, jnp.sqrt(rate * (1.0 - rate) / jnp.where(count > 0, count, 1.0)), 0.0)


def update_multipliers(
    state: MultiplierState,
    score: jax.Array,
    count: jax.Array,
    threshold: jax.Array,
    rule: str,
    gains: MultiplierGains,
) -> tuple[MultiplierState, dict[str, jax.Array]]:
    """Move every multiplier once, from the scores of one rollout.

    The first observation of a constraint is adopted as its smoothed score (no bias towards zero). A
    constraint with ``count`` 0 was not tested by this rollout: its whole state stays (except that ``crpo``, which
    chooses among all constraints, may choose another one).

    Args:
        state: multipliers and controller memory.
        score: f32[M], J_m of this rollout, summed over all devices; ignored where ``count`` is 0.
        count: f32[M], number of applicable sequences behind each score, over all devices.
        threshold: f32[M], d_m.
        rule: a name in `RULES`.
        gains: numbers of the rule.

    Returns:
        The new state and ``{"error", "violation", "standard_error", "multiplier", "integral"}``, each f32[M]:
        e_m; max(0, d_m - J_m) of this rollout (``tanh``: |d_m - J_m|); standard error; lambda; memory of the rule.

    Raises:
        ValueError: if ``rule`` is unknown.
    """
    _check_rule(rule)
    chex.assert_equal_shape([state.value, score, count, threshold])
    applies = count > 0
    score = jnp.where(applies, score, state.ema_score)
    smoothed = jnp.where(state.seen > 0, gains.ema * state.ema_score + (1.0 - gains.ema) * score, score)
    previous = jnp.where(state.seen > 0, state.ema_score, smoothed)
    se = standard_error(smoothed, count)
    signal = _error_signal(threshold - smoothed, gains.dead_band_z * se, previous - smoothed, applies)
    value, integral = RULES[rule](state, signal, gains)
    moved = MultiplierState(value, integral, smoothed, signal.error, previous, state.seen + 1)
    new = jax.tree.map(lambda after, before: jnp.where(applies, after, before), moved, state)
    if rule in JOINT:
        new = new.replace(value=value)
    missed = jnp.abs(threshold - score) if rule in EQUALITY else jnp.maximum(threshold - score, 0.0)
    info = {
        "error": new.ema_error,
        "violation": jnp.where(applies, missed, 0.0),
        "standard_error": se,
        "multiplier": new.value,
        "integral": new.integral,
    }
    return new, info


def _error_signal(error: jax.Array, band: jax.Array, fall: jax.Array, applies: jax.Array) -> ErrorSignal:
    banded = jnp.sign(error) * jnp.maximum(jnp.abs(error) - band, 0.0)
    return ErrorSignal(error=error, banded=banded, fall=jnp.maximum(fall, 0.0), applies=applies)


def mixing_coefficients(
    weights: jax.Array, multipliers: jax.Array, how: str, exclusive: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Coefficients of the streams in the policy loss, from objective weights and multipliers.

        one_plus_lambda   a = (w, lambda) / (1 + Lambda),   Lambda = sum_m |lambda_m|
        sum_to_one        a = (w, lambda) / (sum_k w_k + Lambda)
        none              a = (w, lambda)

    Without the division a growing multiplier is a growing learning rate. With ``exclusive`` the objectives are left
    out (w = 0, and 1 + Lambda becomes Lambda) while any multiplier is not 0, as CRPO switches.

    Args:
        weights: f32[K], objective weights, on the simplex.
        multipliers: f32[M], lambda; negative only under the ``tanh`` rule.
        how: one of the names above.
        exclusive: objectives wait while a constraint is optimised; `EXCLUSIVE` has the rules that ask for it.

    Returns:
        a_k f32[K] and a_m f32[M].

    Raises:
        ValueError: if ``how`` is unknown.

    Source: omnisafe and Safe RLHF (arXiv 2310.12773) divide by 1 + lambda.
    """
    if how not in MIX_NORMS:
        raise ValueError(f"mix_norm is {how!r}, expected one of {', '.join(MIX_NORMS)}")
    chex.assert_rank([weights, multipliers], 1)
    total = jnp.sum(jnp.abs(multipliers))
    own = jnp.float32(1.0)
    if exclusive:
        # Not `total > 0`: a NaN multiplier must show.
        own = jnp.where(total == 0, 1.0, 0.0)
        weights = weights * own
    if how == "none":
        return weights, multipliers
    scale = own + total if how == "one_plus_lambda" else jnp.maximum(jnp.sum(weights) + total, 1e-8)
    return weights / scale, multipliers / scale


def hinge_applies(
    scores: jax.Array,
    applies: jax.Array,
    thresholds: jax.Array,
    group: jax.Array | None = None,
    groups: int = 0,
    axis_name: str | None = None,
) -> jax.Array:
    """Sequences on which a constraint acts prompt by prompt: those whose prompt violates it.

        mean_{s' in group(s)} score_s'^m < d_m,    without groups    score_s^m < d_m

    The gradient of sum_x max(0, d_m - J_m(x)) is that of the violating prompts alone, so a prompt that is done well
    cannot make up for one that is not.

    Args:
        scores: f32[S, M], score of every sequence; read where ``applies`` only.
        applies: bool[S, M], is the constraint defined for the sequence?
        thresholds: f32[M], d_m.
        group: i32[S] in [0, groups), number of the prompt; ``None``: every sequence is its own prompt.
        groups: number of prompts over all devices; static.
        axis_name: device axis; a prompt's sequences may lie on several devices.

    Returns:
        bool[S, M], False where the constraint does not apply.

    Source: Peng et al., "Enhancing Safety in Reinforcement Learning with Human Feedback via Rectified Policy
    Optimization", arXiv 2410.19933.
    """
    chex.assert_equal_shape([scores, applies])
    kept = jnp.where(applies, scores, 0.0)
    if group is not None:
        sums = (jax.ops.segment_sum(x, group, groups) for x in (kept, applies.astype(jnp.float32)))
        total, count = psum(tuple(sums), axis_name)
        kept = (total / jnp.maximum(count, 1.0))[group]
    # Not `<`: a NaN score must show, not drop the sequence.
    return applies & ~(kept >= thresholds[None, :])


def relative_thresholds(reference: Mapping[str, float], margin: float) -> dict[str, float]:
    """Thresholds below what a reference policy reaches: ``d_m = max(J_m(reference) - margin, 0)``.

    Scores are shares: a threshold below 0 would ask for nothing.

    Args:
        reference: score of every constraint under the reference, for example the scaffold.
        margin: what the policy may fall short of it, in units of the score; negative asks for more than it.

    Returns:
        Threshold of every constraint.

    Raises:
        ValueError: if the margin or a score is not finite.
    """
    if not np.isfinite(margin):
        raise ValueError(f"margin of the thresholds is {margin}, expected a finite number")
    for name, score in reference.items():
        if not np.isfinite(score):
            raise ValueError(f"reference score of constraint {name} is {score}, expected a finite number")
    return {name: max(float(score) - margin, 0.0) for name, score in reference.items()}
