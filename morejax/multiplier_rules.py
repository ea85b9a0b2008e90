"""Rules that move Lagrange multipliers, one function each; `RULES` maps their names to them.

A rule maps the controllers' memory, the errors of this rollout and the gains to the new multipliers and the new
memory. Errors are e_m = d_m - EMA(J_m), positive where the constraint J_m >= d_m is violated.

Rules that move a transform of the multiplier (``softplus``, ``exp``, ``sigmoid``, ``tanh``) keep that transform nu in
`MultiplierState.integral`, inside the range of `RANGES`: at the ends their slope vanishes, and a multiplier that went
further would hardly come back.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class MultiplierState:
    """Multipliers and the memory of their controllers; all arrays of length M.

    Attributes:
        value: f32[M], the multipliers lambda >= 0 (``tanh``: in (-1, 1)).
        integral: f32[M], memory of the rule: the integral part of ``pid``, in units of lambda; nu of ``softplus``,
            ``sigmoid`` and ``tanh``, ln lambda of ``exp``; of ``crpo`` the last error outside the dead band.
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
        lr: step of ``clip`` (lambda per unit of error), ``softplus``, ``exp``, ``sigmoid`` and ``tanh`` (nu per unit).
        kp: proportional gain of ``pid``.
        ki: integral gain of ``pid``, per update.
        kd: derivative gain of ``pid``; acts on a falling score only.
        max: largest multiplier (``tanh``: largest absolute value).
        ema: decay of the smoothed scores, in [0, 1).
        dead_band_z: errors within this many standard errors do not move the integral; 0 = off.
        tolerance: violation that ``crpo`` lets pass, in units of the score.
    """

    lr: jax.Array | float = 0.05
    kp: jax.Array | float = 2.0
    ki: jax.Array | float = 0.05
    kd: jax.Array | float = 0.0
    max: jax.Array | float = 10.0
    ema: jax.Array | float = 0.9
    dead_band_z: jax.Array | float = 0.0
    tolerance: jax.Array | float = 0.0


@flax.struct.dataclass
class ErrorSignal:
    """What a rule sees: the smoothed error, the same outside the dead band, and the fall of the score.

    Attributes:
        error: f32[M], e = d - EMA(J).
        banded: f32[M], sign(e) max(|e| - z SE, 0).
        fall: f32[M], max(0, previous EMA(J) - EMA(J)).
        applies: bool[M], did this rollout test the constraint?
    """

    error: jax.Array
    banded: jax.Array
    fall: jax.Array
    applies: jax.Array


Rule = Callable[[MultiplierState, ErrorSignal, MultiplierGains], tuple[jax.Array, jax.Array]]

RANGES: dict[str, tuple[float, float]] = {
    "softplus": (1e-6, float("inf")),
    "exp": (1e-6, float("inf")),
    "sigmoid": (1e-3, 1 - 1e-3),
    "tanh": (-(1 - 1e-3), 1 - 1e-3),
}
"""Least and largest multiplier of a rule; of all others 0 and infinity."""


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


def softplus_rule(state: MultiplierState, signal: ErrorSignal, gains: MultiplierGains) -> tuple[jax.Array, jax.Array]:
    """Gradient ascent through a softplus: ``nu <- nu + lr e sigmoid(nu)``, ``lambda = softplus(nu)``.

    sigmoid is the slope of softplus, so a small multiplier moves slowly. Source: the parametrisation of Ray, Achiam
    and Amodei's published code (2019).
    """
    lowest, largest = (inverse("softplus", x) for x in _bounds("softplus", gains))
    moved = state.integral + gains.lr * signal.banded * jax.nn.sigmoid(state.integral)
    nu = jnp.clip(moved, lowest, largest)
    return jnp.minimum(jax.nn.softplus(nu), gains.max), nu


def exp_rule(state: MultiplierState, signal: ErrorSignal, gains: MultiplierGains) -> tuple[jax.Array, jax.Array]:
    """Gradient ascent in the logarithm: ``ln lambda <- ln lambda + lr lambda e``.

    Source: Dai et al., "Safe RLHF", arXiv 2310.12773, eq. 31 (costs there, scores here).
    """
    lowest, largest = (inverse("exp", x) for x in _bounds("exp", gains))
    nu = jnp.clip(state.integral + gains.lr * state.value * signal.banded, lowest, largest)
    return jnp.minimum(jnp.exp(nu), gains.max), nu


def sigmoid_rule(state: MultiplierState, signal: ErrorSignal, gains: MultiplierGains) -> tuple[jax.Array, jax.Array]:
    """A multiplier between 0 and 1: ``nu <- nu + lr e``, ``lambda = sigmoid(nu)``.

    A constraint that cannot be met never takes the update over. Source: Moskovitz et al., "Confronting Reward Model
    Overoptimization with Constrained RLHF", arXiv 2310.04373 (mu-PPO).
    """
    lowest, largest = (inverse("sigmoid", x) for x in _bounds("sigmoid", gains))
    nu = jnp.clip(state.integral + gains.lr * signal.banded, lowest, largest)
    return jnp.minimum(jax.nn.sigmoid(nu), gains.max), nu


def tanh_rule(state: MultiplierState, signal: ErrorSignal, gains: MultiplierGains) -> tuple[jax.Array, jax.Array]:
    """The equality ``J_m = d_m``: ``nu <- nu + lr e``, ``lambda = tanh(nu)``, negative while the score is too high.

    For a score that stops to mean anything above d_m. Source: Moskovitz et al., arXiv 2310.04373 (xi-PPO).
    """
    largest = inverse("tanh", _bounds("tanh", gains)[1])
    nu = jnp.clip(state.integral + gains.lr * signal.banded, -largest, largest)
    return jnp.clip(jnp.tanh(nu), -jnp.asarray(gains.max), gains.max), nu


def crpo_rule(state: MultiplierState, signal: ErrorSignal, gains: MultiplierGains) -> tuple[jax.Array, jax.Array]:
    """Switching: the constraint that is violated most is optimised alone, the objectives when none is.

        lambda_m = 1 for the largest e_m, if e_m > tolerance, else 0      (e outside the dead band)

    The objectives' weights are 0 while a multiplier is not: `mixing_coefficients` with ``exclusive``. A constraint
    that this rollout did not test competes with its last error.

    Source: Xu, Liang and Lan, "CRPO: A New Approach for Safe Reinforcement Learning with Convergence Guarantee",
    arXiv 2011.05869, algorithm 1 (which takes any violated constraint; this takes the worst).
    """
    error = jnp.where(signal.applies, signal.banded, state.integral)
    if not error.shape[0]:
        return state.value, error
    worst = jnp.argmax(error)
    # Not `> tolerance`: a NaN must show.
    chosen = (jnp.arange(error.shape[0]) == worst) & ~(error[worst] <= gains.tolerance)
    active = jnp.minimum(jnp.where(jnp.isnan(error), error, 1.0), gains.max)
    return jnp.where(chosen, active, 0.0), error


RULES: dict[str, Rule] = {
    "pid": pid_rule,
    "clip": clip_rule,
    "softplus": softplus_rule,
    "exp": exp_rule,
    "sigmoid": sigmoid_rule,
    "tanh": tanh_rule,
    "crpo": crpo_rule,
    "hinge": fixed_rule,  # the multiplier is fixed; which sequences it acts on is not: `hinge_applies`
    "fixed": fixed_rule,
}
EQUALITY = frozenset({"tanh"})
"""Rules of constraints J_m = d_m."""
EXCLUSIVE = frozenset({"crpo"})
"""Rules under which the objectives wait while a multiplier is positive."""
JOINT = frozenset({"crpo"})
"""Rules that choose among the constraints, so that one which was not tested may still change its multiplier."""


def inverse(rule: str, value: jax.Array | float) -> jax.Array:
    """Memory (`MultiplierState.integral`) with which a rule's multiplier is ``value``.

    Args:
        rule: a name in `RULES`.
        value: f32[M], inside `RANGES`.

    Returns:
        f32[M]: softplus^-1, ln, logit or artanh; 0 for ``crpo``, which remembers errors; else the value itself.
    """
    value = jnp.asarray(value, jnp.float32)
    if rule == "softplus":
        # ln(e^x - 1), in a form that neither overflows nor loses the digits of a small x
        return value + jnp.log(-jnp.expm1(-value))
    if rule == "exp":
        return jnp.log(value)
    if rule == "sigmoid":
        return jnp.log(value) - jnp.log1p(-value)
    if rule == "tanh":
        return jnp.arctanh(value)
    return jnp.zeros_like(value) if rule == "crpo" else value


def _bounds(rule: str, gains: MultiplierGains) -> tuple[float, jax.Array]:
    """Least and largest multiplier, the gains' own limit included."""
    least, most = RANGES[rule]
    return least, jnp.clip(gains.max, max(least, 1e-6), most)
