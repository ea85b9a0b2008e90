"""The flat dict of scalars that a step returns; docs/metrics.md says what each of them means."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from morejax import losses
from morejax.batch import Scales
from morejax.config import StepConfig
from morejax.lagrange import MultiplierState
from morejax.policy_gradient import stream_mix
from morejax.reweight import alignment, cosines, deficit, norms, shares
from morejax.state import TrainState


def mean_over_updates(logs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Mean over the minibatches whose update was made; over all, should there be none."""
    made = logs["made"]
    weight = jnp.where(made.sum() > 0, made, 1.0)
    weight = weight / weight.sum()

    def mean(value):
        shaped = weight.reshape(weight.shape + (1,) * (value.ndim - 2))
        # A skipped minibatch may hold anything, and 0 x inf is not 0.
        return jnp.where(shaped > 0, value * shaped, 0.0).sum((0, 1))

    return {name: mean(value) for name, value in logs.items()}


def step_metrics(
    config: StepConfig,
    state: TrainState,
    multipliers: MultiplierState,
    info: dict[str, jax.Array],
    score: jax.Array,
    logs: dict[str, jax.Array],
    scales: Scales,
    explained: jax.Array | None,
) -> dict[str, jax.Array]:
    """Flat dict of scalars; logs have leading axes [epochs, minibatches], means are over the updates made."""
    mean = mean_over_updates(logs)
    gram, weights = mean["gram"], logs["weights"][-1, -1]
    mix = stream_mix(config, weights, scales.multipliers, state.kl_coef)
    left = deficit(scales.stats)
    unwhitened = _raw_multipliers(config, state, weights, multipliers.value)
    out = _gradient_metrics(config, gram, mix)
    for i, name in enumerate(config.streams):
        out[f"stream_loss/{name}"] = mean["stream_loss"][i]
        out[f"clip_fraction/{name}"] = mean["clip_fraction"][i]
        if explained is not None:
            out[f"explained_variance/{name}"] = explained[i]
        out[f"advantage_sigma/{name}"] = state.running_sigma[i]
    for i, name in enumerate(config.reward_streams):
        out[f"J/{name}"] = score[i]
    for k, name in enumerate(config.objectives):
        out[f"weight/{name}"] = weights[k]
        out[f"deficit/{name}"] = left[k]
    for m, name in enumerate(config.constraints):
        out[f"constraint/{name}/score_ema"] = multipliers.ema_score[m]
        out[f"constraint/{name}/threshold"] = state.hyper.thresholds[m]
        out[f"constraint/{name}/violation"] = info["violation"][m]
        out[f"multiplier/{name}"] = multipliers.value[m]
        out[f"multiplier_kkt/{name}"] = unwhitened[m]
    out["policy_loss"] = losses.mix_streams(mean["stream_loss"], mix)
    out["clip_fraction"] = mean["clip_fraction"].mean()
    out["ratio_max"] = logs["ratio_max"].max()
    for name in ("kl", "kl_old", "entropy", "value_loss", "grad_norm", "value_grad_norm"):
        out[name] = mean[name]
    return out


def _gradient_metrics(config: StepConfig, gram: jax.Array, mix: jax.Array) -> dict[str, jax.Array]:
    """What the Gram matrix says of the measured streams; of their shares in the update only where all are measured."""
    length, cosine = norms(gram), cosines(gram)
    out = {}
    for i, name in enumerate(config.measured):
        out[f"grad_norm/{name}"] = length[i]
        for j in range(i + 1, len(config.measured)):
            out[f"cosine/{name}/{config.measured[j]}"] = cosine[i, j]
    if config.measured == config.streams:
        share, aligned = shares(mix, gram), alignment(mix, gram)
        out |= {f"share/{name}": share[i] for i, name in enumerate(config.streams)}
        out |= {f"alignment/{name}": aligned[i] for i, name in enumerate(config.streams)}
    return out


def _raw_multipliers(config: StepConfig, state: TrainState, weights: jax.Array, multipliers: jax.Array) -> jax.Array:
    """Multipliers f32[M] in reward units: lambda_m / sigma_m over sum_k w_k / sigma_k.

    Under `adv_norm = stream` a multiplier weighs advantages of unit variance; this is what it means for the rewards as
    they are, the objectives together weighing 1: the number to compare with a KKT multiplier.
    """
    if config.adv_norm != "stream":
        return multipliers
    sigma = jnp.maximum(state.running_sigma, 1e-8)
    objectives = len(config.objectives)
    unit = (weights / sigma[:objectives]).sum()
    return multipliers / sigma[objectives : len(config.reward_streams)] / jnp.maximum(unit, 1e-8)
