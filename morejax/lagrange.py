"""Lagrange multipliers of the constraints ``J_m >= d_m``.

One pure update per rollout. The error of every constraint is taken on a smoothed score, because a batch is
noisy: 64 turns at J = 0.9 have a standard error of 3.7 points.

    e_m = d_m - EMA(J_m)        > 0: violated, the multiplier should rise

A rule turns errors into multipliers; `RULES` maps its name to a function, and a new rule is one more entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import chex
import flax.struct
import jax
import jax.numpy as jnp

MIX_NORMS = ("one_plus_lambda", "sum_to_one", "none")


@flax.struct.dataclass
class MultiplierState:
    """Multipliers and the memory of their controllers; all arrays of length M.

    Attributes:
        value: f32[M], the multipliers lambda >= 0.
        integral: f32[M], integral part of the controller, in units of lambda.
        ema_score: f32[M], smoothed scores EMA(J); 0 before the first observation.
        ema_error: f32[M], smoothed errors d - EMA(J) of the last update.
        prev_score: f32[M], EMA(J) one update earlier.
        seen: i32[M], number of updates in which the constraint applied.
    """

    value: jax.Array
    integral: jax.Array
    ema_score: jax.Array
    ema_error: jax.Array
    prev_score: jax.Array
    seen: jax.Array


@flax.struct.dataclass
class MultiplierGains:
    """Numbers of the controllers; traced, so a sweep does not recompile. Scores are taken to be in [0, 1].

    Attributes:
        lr: step of the ``clip`` rule, lambda per unit of error.
        kp: proportional gain of ``pid``.
        ki: integral gain of ``pid``, per update.
        kd: derivative gain of ``pid``; acts on a falling score only.
        max: largest multiplier.
        ema: decay of the smoothed scores, in [0, 1).
        dead_band_z: errors within this many standard errors do not move the integral; 0 = off.
    """

    lr: jax.Array | float = 0.05
    kp: jax.Array | float = 2.0
    ki: jax.Array | float = 0.05
    kd: jax.Array | float = 0.0
    max: jax.Array | float = 10.0
    ema: jax.Array | float = 0.9
    dead_band_z: jax.Array | float = 0.0


@flax.struct.dataclass
class ErrorSignal:
    """What a rule sees: the smoothed error, the same outside the dead band, and the fall of the score.

    Attributes:
        error: f32[M], e = d - EMA(J).
        banded: f32[M], sign(e) max(|e| - z SE, 0).
        fall: f32[M], max(0, previous EMA(J) - EMA(J)).
    """

    error: jax.Array
    banded: jax.Array
    fall: jax.Array


Rule = Callable[[MultiplierState, ErrorSignal, MultiplierGains], tuple[jax.Array, jax.Array]]


def init_multipliers(num: int, initial: float | Sequence[float] | jax.Array) -> MultiplierState:
    """Multipliers before the first rollout.

    The initial value is also the initial integral, so that ``pid`` starts from it instead of forgetting it
    at the first update.

    Args:
        num: number of constraints M; 0 is allowed.
        initial: initial lambda, one number or M of them.

    Returns:
        The state.
    """
    value = jnp.broadcast_to(jnp.asarray(initial, jnp.float32), (num,))
    zeros = jnp.zeros((num,), jnp.float32)
    # Distinct buffers throughout: the state is donated, and a buffer cannot be donated twice.
    return MultiplierState(
        value=jnp.array(value),
        integral=jnp.array(value),
        ema_score=jnp.array(zeros),
        ema_error=jnp.array(zeros),
        prev_score=jnp.array(zeros),
        seen=jnp.zeros((num,), jnp.int32),
    )


def clip_rule(state: MultiplierState, signal: ErrorSignal, gains: MultiplierGains) -> tuple[jax.Array, jax.Array]:
    """Projected gradient ascent on the dual: ``lambda <- clip(lambda + lr e, 0, max)``.

    A pure integral rule, so the dead band applies to its error. Source: the usual Lagrangian baseline of
    Ray, Achiam and Amodei, "Benchmarking Safe Exploration in Deep RL" (2019).
    """
    value = jnp.clip(state.value + gains.lr * signal.banded, 0.0, gains.max)
    return value, value


def pid_rule(state: MultiplierState, signal: ErrorSignal, gains: MultiplierGains) -> tuple[jax.Array, jax.Array]:
    """PID control of the multiplier, with an integral that cannot wind up.

        I <- clip(I + ki e, 0, max),   P = kp e,   D = kd max(0, EMA(J)_{t-1} - EMA(J)_t)
        lambda = clip(P + I + D, 0, max)

    ``e`` is already the error of the smoothed score, so P is not smoothed a second time.

    Source: Stooke, Achiam and Abbeel, "Responsive Safety in RL by PID Lagrangian Methods", arXiv 2007.03964,
    algorithm 2 (costs there, scores here: the signs are turned).
    """
    integral = jnp.clip(state.integral + gains.ki * signal.banded, 0.0, gains.max)
    value = jnp.clip(gains.kp * signal.error + integral + gains.kd * signal.fall, 0.0, gains.max)
    return value, integral


def fixed_rule(state: MultiplierState, signal: ErrorSignal, gains: MultiplierGains) -> tuple[jax.Array, jax.Array]:
    """A fixed penalty: lambda stays what it was at the start, whatever the violation (0 drops the constraints)."""
    return state.value, state.integral


RULES: dict[str, Rule] = {"pid": pid_rule, "clip": clip_rule, "fixed": fixed_rule}


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
    constraint with ``count`` 0 was not tested by this rollout: its whole state stays.

    Args:
        state: multipliers and controller memory.
        score: f32[M], J_m of this rollout, summed over all devices; ignored where ``count`` is 0.
        count: f32[M], number of applicable sequences behind each score, over all devices.
        threshold: f32[M], d_m.
        rule: a name in `RULES`.
        gains: numbers of the rule.

    Returns:
        The new state and ``{"error", "violation", "standard_error", "multiplier", "integral"}``, each f32[M]:
        e_m; max(0, d_m - J_m) of this rollout; standard error; lambda; its integral part.

    Raises:
        ValueError: if ``rule`` is unknown.
    """
    if rule not in RULES:
        raise ValueError(f"multiplier rule is {rule!r}, expected one of {', '.join(RULES)}")
    chex.assert_equal_shape([state.value, score, count, threshold])
    applies = count > 0
    score = jnp.where(applies, score, state.ema_score)
    smoothed = jnp.where(state.seen > 0, gains.ema * state.ema_score + (1.0 - gains.ema) * score, score)
    previous = jnp.where(state.seen > 0, state.ema_score, smoothed)
    se = standard_error(smoothed, count)
    signal = _error_signal(threshold - smoothed, gains.dead_band_z * se, previous - smoothed)
    value, integral = RULES[rule](state, signal, gains)
    moved = MultiplierState(value, integral, smoothed, signal.error, previous, state.seen + 1)
    new = jax.tree.map(lambda after, before: jnp.where(applies, after, before), moved, state)
    info = {
        "error": new.ema_error,
        "violation": jnp.where(applies, jnp.maximum(threshold - score, 0.0), 0.0),
        "standard_error": se,
        "multiplier": new.value,
        "integral": new.integral,
    }
    return new, info


def _error_signal(error: jax.Array, band: jax.Array, fall: jax.Array) -> ErrorSignal:
    banded = jnp.sign(error) * jnp.maximum(jnp.abs(error) - band, 0.0)
    return ErrorSignal(error=error, banded=banded, fall=jnp.maximum(fall, 0.0))


def mixing_coefficients(weights: jax.Array, multipliers: jax.Array, how: str) -> tuple[jax.Array, jax.Array]:
    """Coefficients of the streams in the policy loss, from objective weights and multipliers.

        one_plus_lambda   a = (w, lambda) / (1 + Lambda),   Lambda = sum_m lambda_m
        sum_to_one        a = (w, lambda) / (sum_k w_k + Lambda)
        none              a = (w, lambda)

    Without the division a growing multiplier is a growing learning rate.

    Args:
        weights: f32[K], objective weights, on the simplex.
        multipliers: f32[M], lambda >= 0.
        how: one of the names above.

    Returns:
        a_k f32[K] and a_m f32[M].

    Raises:
        ValueError: if ``how`` is unknown.

    Source: omnisafe and Safe RLHF (arXiv 2310.12773) divide by 1 + lambda.
    """
    if how not in MIX_NORMS:
        raise ValueError(f"mix_norm is {how!r}, expected one of {', '.join(MIX_NORMS)}")
    chex.assert_rank([weights, multipliers], 1)
    total = jnp.sum(multipliers)
    if how == "none":
        return weights, multipliers
    scale = 1.0 + total if how == "one_plus_lambda" else jnp.maximum(jnp.sum(weights) + total, 1e-8)
    return weights / scale, multipliers / scale
