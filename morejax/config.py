"""What a training step does (`StepConfig`, static, one compile each) and its numbers (`StepNumbers`, traced)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from morejax.lagrange import MultiplierGains
from morejax.reweight import WeightSettings


@dataclass(frozen=True)
class StepConfig:
    """The structure of a step; hashable, so it is a static argument of the compiled function."""

    objectives: tuple[str, ...] = ("likeness", "fluency", "faithfulness", "naturalness")
    """Names of the K language objectives: maximised, reweighed while training."""
    constraints: tuple[str, ...] = ("inform", "success", "slots")
    """Names of the M reasoning constraints J_m >= d_m."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 4
    """Optimizer updates per pass; minibatches are strided, so every device count sees the same ones."""
    adv_norm: Literal["stream", "center", "none"] = "stream"
    """Advantage normalisation per stream: (A - mean) / std with a floor, A - mean, or as it is."""
    clip: Literal["per_stream", "mixed"] = "per_stream"
    """PPO clip on every stream's own advantage (linear in the weights) or on the weighted sum of advantages."""
    mix_norm: Literal["one_plus_lambda", "sum_to_one", "none"] = "one_plus_lambda"
    """Scale of the mixing coefficients of objectives (w_k) and constraints (lambda_m)."""
    kl: Literal["full", "k2", "k3", "none"] = "full"
    """Divergence from the reference in the loss: exact over the vocabulary, an estimator, or none (still reported)."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """Keep the KL coefficient, or steer it to `kl_target`."""
    multipliers: Literal["pid", "clip", "fixed"] = "pid"
    """How the multipliers move: PID control of the violation, projected ascent, or not at all."""
    weights: Literal["fixed", "inv_norm", "gradnorm_cf"] = "gradnorm_cf"
    """How the objectives are reweighed from the norms of their gradients."""
    norm_at: Literal["virtual", "all"] = "virtual"
    """Where gradient norms are taken: a virtual d x d layer before the head (about 2 % of a step), or all
    parameters (exact, one more backward pass a stream)."""
    value_clip: bool = True
    """Clip the critic's move to `clip_value` around its old estimate, as PPO does."""

    def __post_init__(self) -> None:
        names = self.objectives + self.constraints
        if not self.objectives:
            raise ValueError("--step.objectives must name at least one objective")
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"--step.objectives and --step.constraints name a stream twice: {', '.join(repeated)}")
        for flag in ("epochs", "minibatches"):
            if getattr(self, flag) < 1:
                raise ValueError(f"--step.{flag} must be at least 1, not {getattr(self, flag)}")
        for flag, choices in _CHOICES.items():
            if getattr(self, flag) not in choices:
                raise ValueError(
                    f"--step.{flag.replace('_', '-')} must be one of {', '.join(choices)}, not {getattr(self, flag)!r}"
                )
        if self.clip == "mixed" and self.weights != "fixed":
            raise ValueError(
                f"--step.clip mixed needs --step.weights fixed, not {self.weights}: one clip on the sum leaves no "
                "gradient per objective to weigh by"
            )
        if self.kl == "none" and self.kl_controller == "adaptive":
            raise ValueError("--step.kl-controller adaptive steers nothing with --step.kl none: choose full, k2 or k3")

    @property
    def streams(self) -> tuple[str, ...]:
        """All H stream names, objectives first."""
        return self.objectives + self.constraints


_CHOICES = {
    "adv_norm": ("stream", "center", "none"),
    "clip": ("per_stream", "mixed"),
    "mix_norm": ("one_plus_lambda", "sum_to_one", "none"),
    "kl": ("full", "k2", "k3", "none"),
    "kl_controller": ("fixed", "adaptive"),
    "multipliers": ("pid", "clip", "fixed"),
    "weights": ("fixed", "inv_norm", "gradnorm_cf"),
    "norm_at": ("virtual", "all"),
}


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of a step; they live in the state as arrays, so a sweep over them never recompiles."""

    learning_rate: float = 1e-4
    """Adam step size of the policy."""
    value_learning_rate: float = 1e-3
    """Adam step size of the critic."""
    decay_steps: int = 0
    """Steps over which the policy's learning rate falls linearly to a tenth; 0 keeps it."""
    warmup_steps: int = 2
    """First steps that train the critic only."""
    max_grad_norm: float = 1.0
    """Global norm to which the policy's and the critic's gradients are clipped, each on its own."""
    clip_low: float = 0.2
    """PPO clip: smallest ratio is 1 - clip_low."""
    clip_high: float = 0.2
    """PPO clip: largest ratio is 1 + clip_high."""
    clip_value: float = 0.5
    """Range of the critic's move, in units of its running scale."""
    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 1.0
    """GAE lambda per token."""
    sigma_floor: float = 0.1
    """Smallest std used in normalisation, as a share of the running one."""
    kl_coef: float = 0.05
    """Coefficient of the KL to the reference (start value when adaptive)."""
    kl_target: float = 0.05
    """KL per token, nats, that the adaptive controller steers to."""
    kl_gain: float = 0.1
    """Gain of the adaptive controller."""
    stop_kl: float = 0.1
    """Skip the rest of a step's updates once KL(old || new) per token passes this, nats."""
    entropy_coef: float = 0.0
    """Coefficient of the entropy bonus."""
    score_ema: float = 0.8
    """Decay of the running means of the objectives' J used for deficits."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """d_m per constraint."""
    multiplier_init: float = 1.0
    """Multiplier of every constraint at the start (and always, with `multipliers = fixed`)."""
    multiplier_values: Mapping[str, float] = field(default_factory=dict)
    """Start multiplier of single constraints."""
    multiplier_lr: float = 0.05
    """Step size of the `clip` rule."""
    multiplier_kp: float = 2.0
    """Proportional gain of `pid`."""
    multiplier_ki: float = 0.05
    """Integral gain of `pid`."""
    multiplier_kd: float = 0.0
    """Derivative gain of `pid`."""
    multiplier_max: float = 10.0
    """Largest multiplier."""
    multiplier_ema: float = 0.9
    """Decay of the running mean of J_m that multipliers see."""
    multiplier_dead_band: float = 0.0
    """Violations below this many standard errors do not move the integral."""
    objective_weights: Mapping[str, float] = field(default_factory=dict)
    """Start (and `fixed`) weight of single objectives; the others get 1; normalised to sum 1."""
    targets: Mapping[str, float] = field(default_factory=dict)
    """J*_k that deficits are measured against; 1 where not given."""
    weight_ema: float = 0.9
    """Decay of the weights."""
    weight_floor: float = 0.1
    """Share of the simplex spread evenly: no weight falls below weight_floor / K."""
    weight_alpha: float = 1.0
    """Power of the remaining deficit in `gradnorm_cf`."""

    def __post_init__(self) -> None:
        for (least, most), names in _RANGES.items():
            for name in names.split():
                value = getattr(self, name)
                # The negation, so that a NaN is refused too.
                if not least <= value <= most:
                    flag = f"--numbers.{name.replace('_', '-')}"
                    wanted = f"at least {least}" if most == math.inf else f"between {least} and {most}"
                    raise ValueError(f"{flag} must be {wanted}, not {value}")


_RANGES = {
    (0, math.inf): (
        "learning_rate value_learning_rate decay_steps warmup_steps max_grad_norm clip_high clip_value sigma_floor "
        "kl_coef kl_gain stop_kl multiplier_init multiplier_lr multiplier_kp multiplier_ki multiplier_kd "
        "multiplier_max multiplier_dead_band weight_alpha"
    ),
    (0, 1): "clip_low gamma gae_lambda score_ema multiplier_ema weight_ema weight_floor",
    (1e-8, math.inf): "kl_target",
}


@struct.dataclass
class Hyper:
    """`StepNumbers` as arrays: scalars f32[], per stream f32[H], per constraint f32[M], per objective f32[K]."""

    learning_rate: jax.Array
    value_learning_rate: jax.Array
    decay_steps: jax.Array
    warmup_steps: jax.Array
    max_grad_norm: jax.Array
    clip_low: jax.Array
    clip_high: jax.Array
    clip_value: jax.Array
    gamma: jax.Array
    gae_lambda: jax.Array
    sigma_floor: jax.Array
    kl_target: jax.Array
    kl_gain: jax.Array
    stop_kl: jax.Array
    entropy_coef: jax.Array
    score_ema: jax.Array
    thresholds: jax.Array
    targets: jax.Array
    gains: MultiplierGains
    weighting: WeightSettings


_BY_STREAM = ("gamma", "gae_lambda", "thresholds", "targets", "gains", "weighting")
_SCALARS = tuple(field.name for field in fields(Hyper) if field.name not in _BY_STREAM)


def hyper(config: StepConfig, numbers: StepNumbers) -> Hyper:
    """Arrays of the numbers, in stream order.

    Raises:
      ValueError: a mapping names a stream that the config does not have, or a constraint has no threshold.
    """
    known = {
        "thresholds": config.constraints,
        "multiplier_values": config.constraints,
        "objective_weights": config.objectives,
        "targets": config.objectives,
    }
    for name, streams in known.items():
        unknown = sorted(set(getattr(numbers, name)) - set(streams))
        if unknown:
            flag = f"--numbers.{name.replace('_', '-')}"
            raise ValueError(f"{flag}: {', '.join(unknown)} is not one of {', '.join(streams)}")
    missing = [name for name in config.constraints if name not in numbers.thresholds]
    if missing:
        raise ValueError(f"--numbers.thresholds has no threshold for constraint {', '.join(missing)}")
    scalars = {name: jnp.float32(getattr(numbers, name)) for name in _SCALARS}
    count = len(config.streams)
    return Hyper(
        **scalars,
        gamma=jnp.full((count,), numbers.gamma, jnp.float32),
        gae_lambda=jnp.full((count,), numbers.gae_lambda, jnp.float32),
        thresholds=_vector(numbers.thresholds, config.constraints, 0.0),
        targets=_vector(numbers.targets, config.objectives, 1.0),
        gains=MultiplierGains(
            lr=jnp.float32(numbers.multiplier_lr),
            kp=jnp.float32(numbers.multiplier_kp),
            ki=jnp.float32(numbers.multiplier_ki),
            kd=jnp.float32(numbers.multiplier_kd),
            max=jnp.float32(numbers.multiplier_max),
            ema=jnp.float32(numbers.multiplier_ema),
            dead_band_z=jnp.float32(numbers.multiplier_dead_band),
        ),
        weighting=WeightSettings(
            ema=jnp.float32(numbers.weight_ema),
            floor=jnp.float32(numbers.weight_floor),
            alpha=jnp.float32(numbers.weight_alpha),
        ),
    )


def initial_weights(config: StepConfig, numbers: StepNumbers) -> jax.Array:
    """f32[K] start weights on the simplex."""
    weights = _vector(numbers.objective_weights, config.objectives, 1.0)
    return weights / weights.sum()


def initial_multipliers(config: StepConfig, numbers: StepNumbers) -> jax.Array:
    """f32[M] start multipliers."""
    return _vector(numbers.multiplier_values, config.constraints, numbers.multiplier_init)


def _vector(values: Mapping[str, float], names: tuple[str, ...], default: float) -> jax.Array:
    return jnp.asarray(np.array([values.get(name, default) for name in names], np.float32))
