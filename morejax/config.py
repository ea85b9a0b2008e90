"""What a training step does (`StepConfig`, static, one compile each) and its numbers (`StepNumbers`, traced)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, get_args, get_origin, get_type_hints

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
    accumulation_steps: int = 1
    """Slices that a minibatch is cut into, whose gradients are added up: the same numbers in less memory, and one more
    forward pass where the weights need gradient norms."""
    baseline: Literal["critic", "group_mean", "leave_one_out"] = "critic"
    """What returns are compared with: the critic's values (GAE), the mean over the sequences of the same prompt (GRPO),
    or the mean of the others among them (RLOO). The last two need no critic, but `group` in the rollout."""
    adv_norm: Literal["stream", "center", "group", "after", "none"] = "stream"
    """Advantage normalisation: each stream by its own std, with a floor; its mean taken off only; each stream in its
    prompt's group, then the mixture over the batch (GDPO; needs a group baseline); the mixture only; or as it is."""
    clip: Literal["per_stream", "mixed"] = "per_stream"
    """PPO clip on every stream's own advantage (linear in the weights) or on the weighted sum of advantages."""
    loss_mean: Literal["token", "sequence"] = "token"
    """Every token weighs the same in the loss, or every sequence."""
    mix_norm: Literal["one_plus_lambda", "sum_to_one", "none"] = "one_plus_lambda"
    """Scale of the mixing coefficients of objectives (w_k) and constraints (lambda_m)."""
    kl: Literal["full", "k1_reward", "k2", "k3", "none"] = "full"
    """Divergence from the reference: in the loss, exact over the vocabulary or by an estimator; as a reward stream of
    its own, with its own values; or none (still reported)."""
    kl_controller: Literal["fixed", "adaptive", "multiplier"] = "fixed"
    """Keep the KL coefficient, steer it to `kl_target`, or hold KL <= `kl_target` as one more constraint, whose
    multiplier the coefficient then is."""
    multipliers: Literal["pid", "clip", "softplus", "exp", "sigmoid", "tanh", "crpo", "hinge", "fixed"] = "pid"
    """How the multipliers move: PID control of the violation, projected ascent, ascent on a transformed multiplier, or
    not at all; crpo optimises the worst violated constraint alone, hinge holds them prompt by prompt."""
    weights: Literal[
        "fixed", "inv_norm", "gradnorm", "gradnorm_cf", "dyn", "improve", "mgda", "pcgrad", "cagrad", "upgrad", "cv",
        "var", "ctwa",
    ] = "gradnorm_cf"  # fmt: skip
    """How the objectives are reweighed while training; docs/variants.md has the formulas."""
    norm_at: Literal["virtual", "all", "last_layer", "final_norm"] = "virtual"
    """Where gradient norms are taken: a virtual d x d layer before the head (about 2 % of a step), all parameters
    (exact, one more backward pass a stream), the head, or a virtual gain and bias before it."""
    norm_every: int = 1
    """Minibatches from one measurement of the norms, and update of the weights, to the next; 0: once a rollout."""
    norm_for: Literal["streams", "objectives"] = "streams"
    """Whose gradients are measured: all streams', or the objectives' alone, which is all that weights need: with
    `norm_at = all` each costs a backward pass."""
    norm_of: Literal["total", "signal"] = "total"
    """Norm of the minibatch's gradients, or of their expectation, from inner products across two half batches."""
    norm_space: Literal["euclid", "adam"] = "euclid"
    """Gradients as they are, or as Adam scales them (needs `norm_at = all`)."""
    entropy_bonus: bool = False
    """Have `entropy_coef` times the entropy of the policy in the objective: one more product with the head's matrix."""
    value_clip: bool = True
    """Clip the critic's move to `clip_value` around its old estimate, as PPO does."""

    def __post_init__(self) -> None:
        names = self.objectives + self.constraints
        if not self.objectives:
            raise ValueError("--step.objectives must name at least one objective")
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"--step.objectives and --step.constraints name a stream twice: {', '.join(repeated)}")
        for flag in ("epochs", "minibatches", "accumulation_steps"):
            if getattr(self, flag) < 1:
                raise ValueError(f"--step.{flag.replace('_', '-')} must be at least 1, not {getattr(self, flag)}")
        for flag, choices in _CHOICES.items():
            if getattr(self, flag) not in choices:
                raise ValueError(
                    f"--step.{flag.replace('_', '-')} must be one of {', '.join(choices)}, not {getattr(self, flag)!r}"
                )
        if self.norm_every < 0:
            raise ValueError(f"--step.norm-every must be 0 (once a rollout) or more, not {self.norm_every}")
        for clash in _clashes(self):
            raise ValueError(clash)

    @property
    def reward_streams(self) -> tuple[str, ...]:
        """The K + M streams that a rollout has rewards for, objectives first."""
        return self.objectives + self.constraints

    @property
    def streams(self) -> tuple[str, ...]:
        """All H streams that have values and advantages: rewards, then the KL where it is a reward."""
        return self.reward_streams + (("kl",) if self.kl == "k1_reward" else ())

    @property
    def measured(self) -> tuple[str, ...]:
        """The R streams whose gradients are measured."""
        return self.streams if self.norm_for == "streams" else self.objectives


def _clashes(config: StepConfig) -> Iterator[str]:
    """Combinations that mean nothing, each named by its two flags."""
    if config.clip == "mixed" and config.weights != "fixed":
        yield (
            f"--step.clip mixed needs --step.weights fixed, not {config.weights}: one clip on the sum leaves no "
            "gradient per objective to weigh by"
        )
    if config.kl == "none" and config.kl_controller != "fixed":
        yield (
            f"--step.kl-controller {config.kl_controller} steers nothing with --step.kl none: choose full, k1_reward, "
            "k2 or k3"
        )
    if config.kl == "k1_reward" and "kl" in config.reward_streams:
        yield "--step.kl k1_reward adds a stream named kl: rename the one of --step.objectives or --step.constraints"
    if config.kl == "k1_reward" and config.adv_norm in ("group", "after"):
        yield (
            f"--step.kl k1_reward keeps the unit of its stream, nats, and --step.adv-norm {config.adv_norm} scales the "
            "mixture: choose stream, center or none"
        )
    if config.kl_controller == "multiplier" and config.multipliers in ("fixed", "crpo", "hinge", "tanh"):
        yield (
            f"--step.kl-controller multiplier moves the coefficient by the rule of --step.multipliers, and "
            f"{config.multipliers} has none for it: choose pid, clip, softplus, exp or sigmoid"
        )
    if config.adv_norm == "group" and config.baseline != "group_mean":
        yield f"--step.adv-norm group needs --step.baseline group_mean, not {config.baseline}"
    if config.multipliers == "crpo" and config.mix_norm != "one_plus_lambda":
        yield (
            f"--step.multipliers crpo optimises one thing at a time, --step.mix-norm {config.mix_norm} has nothing to "
            "mix: leave one_plus_lambda"
        )
    if config.norm_of == "signal" and config.weights in ("mgda", "pcgrad", "cagrad", "upgrad"):
        yield (
            f"--step.norm-of signal estimates a matrix that may be indefinite, and --step.weights {config.weights} "
            "looks for the geometry in it: choose total, or another rule"
        )
    if config.norm_space == "adam" and config.norm_at != "all":
        yield f"--step.norm-space adam needs --step.norm-at all, not {config.norm_at}: only parameters have moments"


_CHOICES = {name: get_args(hint) for name, hint in get_type_hints(StepConfig).items() if get_origin(hint) is Literal}


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
    dual_clip: float = 0.0
    """Bound of the loss of a token with a negative advantage, as a multiple of it (above 1, usually 3); 0 is off."""
    clip_value: float = 0.5
    """Range of the critic's move, in units of its running scale."""
    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 1.0
    """GAE lambda per token."""
    gamma_turn: float = 0.0
    """Discount per turn of rewards that later turns of the same dialogue bring; 0 leaves turns on their own. Has
    no effect on a rollout without `dialogue` and `turn`."""
    stream_gamma: Mapping[str, float] = field(default_factory=dict)
    """Discount per token of single streams."""
    stream_gae_lambda: Mapping[str, float] = field(default_factory=dict)
    """GAE lambda of single streams."""
    stream_gamma_turn: Mapping[str, float] = field(default_factory=dict)
    """Discount per turn of single streams."""
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
    """Coefficient of the entropy bonus; needs `--step.entropy-bonus`."""
    score_ema: float = 0.8
    """Decay of the running means of the objectives' J used for deficits."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """d_m per constraint."""
    multiplier_init: float | None = None
    """Multiplier of every constraint at the start (and always, with `multipliers = fixed` or `hinge`). Not given: 1;
    0.5 for `sigmoid`, 0 for `tanh` and `crpo`."""
    multiplier_values: Mapping[str, float] = field(default_factory=dict)
    """Start multiplier of single constraints."""
    multiplier_lr: float = 0.05
    """Step size of `clip`, `softplus`, `exp`, `sigmoid` and `tanh`."""
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
    multiplier_tolerance: float = 0.0
    """Violation that `crpo` lets pass."""
    objective_weights: Mapping[str, float] = field(default_factory=dict)
    """Start (and `fixed`) weight of single objectives; the others get 1; normalised to sum 1."""
    targets: Mapping[str, float] = field(default_factory=dict)
    """J*_k that deficits are measured against. Not given: 1 in the step; the experiments take what people's replies
    score, and 1 for likeness to them."""
    weight_ema: float = 0.9
    """Decay of the weights."""
    weight_floor: float = 0.1
    """Share of the simplex that stays with the start weights b: no weight falls below weight_floor b_k, which is
    weight_floor / K where all start alike."""
    weight_alpha: float = 1.0
    """Power of the remaining deficit in `gradnorm` and `gradnorm_cf`."""
    weight_cap: float = 1.0
    """Largest weight; 1 is off."""
    weight_lr: float = 0.05
    """Step size of `gradnorm`, `dyn` and `ctwa`."""
    weight_tau: float = 0.05
    """Temperature of `improve`, in shares of the way to the target per rollout."""
    weight_power: float = 1.0
    """Exponent of the standard deviation in `var`."""
    weight_cagrad_c: float = 0.4
    """How far `cagrad` may go from the mean gradient, in units of its norm."""
    weight_corr_target: float = 0.5
    """Correlation with the weighted sum up to which `ctwa` pushes an objective."""

    def __post_init__(self) -> None:
        for (least, most), names in _RANGES.items():
            for name in names.split():
                value = getattr(self, name)
                # The negation, so that a NaN is refused too.
                if value is not None and not least <= value <= most:
                    flag = f"--numbers.{name.replace('_', '-')}"
                    wanted = f"at least {least}" if most == math.inf else f"between {least} and {most}"
                    raise ValueError(f"{flag} must be {wanted}, not {value}")
        if 0 < self.dual_clip <= 1:
            raise ValueError(f"--numbers.dual-clip must be above 1, or 0 for off, not {self.dual_clip}")
        for name in ("stream_gamma", "stream_gae_lambda", "stream_gamma_turn"):
            for stream, value in getattr(self, name).items():
                if not 0 <= value <= 1:
                    flag = f"--numbers.{name.replace('_', '-')}"
                    raise ValueError(f"{flag} {stream} must be between 0 and 1, not {value}")


_RANGES = {
    (0, math.inf): (
        "learning_rate value_learning_rate decay_steps warmup_steps max_grad_norm clip_high dual_clip clip_value "
        "sigma_floor kl_coef kl_gain stop_kl multiplier_init multiplier_lr multiplier_kp multiplier_ki multiplier_kd "
        "multiplier_max multiplier_dead_band multiplier_tolerance weight_alpha weight_lr weight_power"
    ),
    (0, 1): (
        "clip_low gamma gae_lambda gamma_turn score_ema multiplier_ema weight_ema weight_floor weight_cap "
        "weight_cagrad_c"
    ),
    (-1, 1): "weight_corr_target",
    (1e-8, math.inf): "kl_target weight_tau",
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
    dual_clip: jax.Array
    clip_value: jax.Array
    gamma: jax.Array
    gae_lambda: jax.Array
    gamma_turn: jax.Array
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


_BY_STREAM = ("dual_clip", "gamma", "gae_lambda", "gamma_turn", "thresholds", "targets", "gains", "weighting")
_SCALARS = tuple(field.name for field in fields(Hyper) if field.name not in _BY_STREAM)


def hyper(config: StepConfig, numbers: StepNumbers) -> Hyper:
    """Arrays of the numbers, in stream order.

    Raises:
      ValueError: a mapping names a stream that the config does not have, a constraint has no threshold, or a number
        belongs to a part of the step that is off.
    """
    known = {
        "thresholds": config.constraints,
        "multiplier_values": config.constraints,
        "objective_weights": config.objectives,
        "targets": config.objectives,
        "stream_gamma": config.streams,
        "stream_gae_lambda": config.streams,
        "stream_gamma_turn": config.reward_streams,
    }
    for name, streams in known.items():
        unknown = sorted(set(getattr(numbers, name)) - set(streams))
        if unknown:
            flag = f"--numbers.{name.replace('_', '-')}"
            raise ValueError(f"{flag}: {', '.join(unknown)} is not one of {', '.join(streams)}")
    missing = [name for name in config.constraints if name not in numbers.thresholds]
    if missing:
        raise ValueError(f"--numbers.thresholds has no threshold for constraint {', '.join(missing)}")
    if numbers.entropy_coef != 0 and not config.entropy_bonus:
        raise ValueError(
            f"--numbers.entropy-coef {numbers.entropy_coef} has no effect without --step.entropy-bonus: give both"
        )
    scalars = {name: jnp.float32(getattr(numbers, name)) for name in _SCALARS}
    return Hyper(
        **scalars,
        dual_clip=jnp.float32(numbers.dual_clip or math.inf),
        gamma=_vector(numbers.stream_gamma, config.streams, numbers.gamma),
        gae_lambda=_vector(numbers.stream_gae_lambda, config.streams, numbers.gae_lambda),
        gamma_turn=_vector(numbers.stream_gamma_turn, config.streams, numbers.gamma_turn),
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
            tolerance=jnp.float32(numbers.multiplier_tolerance),
        ),
        weighting=WeightSettings(
            ema=jnp.float32(numbers.weight_ema),
            floor=jnp.float32(numbers.weight_floor),
            alpha=jnp.float32(numbers.weight_alpha),
            lr=jnp.float32(numbers.weight_lr),
            tau=jnp.float32(numbers.weight_tau),
            power=jnp.float32(numbers.weight_power),
            cagrad_c=jnp.float32(numbers.weight_cagrad_c),
            corr_target=jnp.float32(numbers.weight_corr_target),
            cap=jnp.float32(numbers.weight_cap),
        ),
    )


def initial_weights(config: StepConfig, numbers: StepNumbers) -> jax.Array:
    """f32[K] start weights on the simplex."""
    weights = _vector(numbers.objective_weights, config.objectives, 1.0)
    return weights / weights.sum()


def initial_multipliers(config: StepConfig, numbers: StepNumbers) -> jax.Array:
    """f32[M] start multipliers."""
    usual = {"sigmoid": 0.5, "tanh": 0.0, "crpo": 0.0}.get(config.multipliers, 1.0)
    initial = usual if numbers.multiplier_init is None else numbers.multiplier_init
    for name in config.constraints:
        value = numbers.multiplier_values.get(name, initial)
        # The negation, so that a NaN is refused too. A multiplier that never moves has no cap to respect.
        most = math.inf if config.multipliers in ("fixed", "hinge") else numbers.multiplier_max
        if not -most <= value <= most:
            raise ValueError(
                f"--numbers.multiplier-init or --numbers.multiplier-values: {name} starts at {value}, expected at most "
                f"--numbers.multiplier-max {numbers.multiplier_max}"
            )
    return _vector(numbers.multiplier_values, config.constraints, initial)


def _vector(values: Mapping[str, float], names: tuple[str, ...], default: float) -> jax.Array:
    return jnp.asarray(np.array([values.get(name, default) for name in names], np.float32))
