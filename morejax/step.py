"""The constrained multi-objective PPO step: one pure function from (state, rollout) to (state, metrics).

    max sum_k w_k J_k   s.t.   J_m >= d_m,   KL(pi || reference) small

Order of one step: streams' advantages -> J and multipliers -> normalisation -> a scan over epochs x minibatches
(forward, per-token coefficients, gradient norms, weights, ONE backward, optimizer) -> metrics. Multipliers move once
a rollout, weights once a minibatch, before the backward pass that uses them.

Shape letters: S sequences, C context, T response positions, K objectives, M constraints, H = K + M streams,
D width, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from morejax import advantages as adv
from morejax import losses
from morejax.collectives import masked_moments, psum
from morejax.config import StepConfig
from morejax.lagrange import update_multipliers
from morejax.minibatch import Batch, Learner, Scales, update
from morejax.rollout import Rollout
from morejax.state import TrainState
from morejax.step_metrics import mean_over_updates, step_metrics

_SCALE_DECAY = 0.9  # of the running scales of advantages and returns


def train_step(
    state: TrainState, rollout: Rollout, config: StepConfig, axis_name: str | None = None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of constrained, adaptively weighted PPO on one rollout.

    The policy loss of a minibatch is L = -sum_i a_i mean_n min(rho_n A_n^i, clip(rho_n) A_n^i) + beta KL - c H with
    a_k = w_k / (1 + Lambda) for objectives and a_m = lambda_m / (1 + Lambda) for constraints (`mix_norm`).

    Args:
      state: from `init_state`; donate it when compiling.
      rollout: S sequences, S a multiple of `config.minibatches` (on every device).
      config: the structure of the step; static.
      axis_name: device axis when compiled by `pmap` or `shard_map`; None under plain `jit`, on any mesh.

    Returns:
      The new state and a flat dict of scalars, named as docs/metrics.md says.

    Raises:
      ValueError: the rollout lacks what the config needs, or its shapes do not fit.
    """
    check(rollout, config)
    advantages, returns = _advantages(state, rollout)
    explained = _explained(state, rollout, returns, axis_name)
    score, count = mean_scores(rollout, axis_name)
    objectives = len(config.objectives)
    multipliers, info = update_multipliers(
        state.multipliers,
        score[objectives:],
        count[objectives:],
        state.hyper.thresholds,
        config.multipliers,
        state.hyper.gains,
    )
    state = _update_scores(state, score[:objectives], count[:objectives]).replace(multipliers=multipliers)
    before = state.value_scale
    state, advantages, returns = _normalise(state, rollout, advantages, returns, config, axis_name)
    # The critic spoke in units of the scale before; its clip range is around that, in the new unit.
    rollout = rollout.replace(values_old=rollout.values_old * (before / state.value_scale)[None, None, :])
    scales = _scales(state, rollout, count, config, axis_name)
    learner = Learner(state.params, state.opt_state, state.weights, jnp.int32(0), jnp.bool_(True))
    batches = _minibatches(rollout, advantages, returns, config)
    one_update = partial(update, state, scales, config, axis_name)
    learner, logs = jax.lax.scan(
        lambda carry, _: jax.lax.scan(one_update, carry, batches), learner, None, length=config.epochs
    )
    kl = mean_over_updates(logs)["kl"]
    kl_coef = state.kl_coef
    if config.kl_controller == "adaptive":
        kl_coef = losses.update_kl_coef(kl_coef, kl, state.hyper.kl_target, state.hyper.kl_gain)
    metrics = step_metrics(config, state, multipliers, info, score, logs, scales, explained)
    new = state.replace(
        params=learner.params,
        opt_state=learner.opt_state,
        weights=learner.weights,
        kl_coef=kl_coef,
        step=state.step + 1,
    )
    return new, metrics | {"updates": learner.updates.astype(jnp.float32), "kl_coef": kl_coef}


def check(rollout: Rollout, config: StepConfig) -> None:
    """Refuse a rollout that does not fit the config (at trace time, so for free).

    Raises:
      ValueError: a missing reference, an array of the wrong shape, or sequences that do not divide into minibatches.
    """
    sequences, _ = rollout.resp_mask.shape
    if config.kl == "full" and rollout.ref_logps is None:
        raise ValueError("step.kl = full needs rollout.ref_logps f32[S, T, V]; use k2 or k3 with rollout.logp_ref")
    if config.kl in ("k2", "k3") and rollout.logp_ref is None:
        raise ValueError(f"step.kl = {config.kl} needs rollout.logp_ref f32[S, T]")
    if sequences % config.minibatches:
        raise ValueError(
            f"{sequences} sequences (on each device) do not divide into step.minibatches = {config.minibatches}"
        )
    for name, expected, meaning in _shapes(rollout, config):
        value = getattr(rollout, name)
        found = None if value is None else jnp.shape(value)
        if found is not None and found != expected:
            raise ValueError(f"rollout.{name} has shape {found}, expected {expected}: {meaning}")


def _shapes(rollout: Rollout, config: StepConfig) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and meaning of every array of a rollout whose `resp_mask` is [S, T]."""
    sequences, response = rollout.resp_mask.shape
    positions, streams = (sequences, response), len(config.streams)
    per_stream = f"one column for each stream of {config.streams}"
    shapes = [
        ("tokens", (sequences, jnp.shape(rollout.context_mask)[-1] + response), "[S, C + T], context, then response"),
        ("context_mask", (sequences, jnp.shape(rollout.tokens)[-1] - response), "[S, C]"),
        ("logp_old", positions, "[S, T]"),
        ("logp_ref", positions, "[S, T]"),
        ("values_old", (*positions, streams), per_stream),
        ("applies", (sequences, streams), per_stream),
        ("scores", (sequences, streams), per_stream),
        ("score_weights", (sequences, streams), per_stream),
        ("group", (sequences,), "[S]"),
    ]
    for name in ("objectives", "constraints"):
        names = getattr(config, name)
        shapes.append((name, (*positions, len(names)), f"one column for each of step.{name} = {names}"))
    if rollout.ref_logps is not None:
        shapes.append(("ref_logps", (*positions, jnp.shape(rollout.ref_logps)[-1]), "[S, T, V]"))
    return shapes


def mean_scores(rollout: Rollout, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """J of every stream: sum(weight score) / sum(weight) over the sequences it applies to.

    Returns:
      J f32[H] (0 where nothing applies) and the weight behind it f32[H].
    """
    rewards = jnp.concatenate([rollout.objectives, rollout.constraints], axis=-1)
    summed = jnp.where(rollout.resp_mask[..., None], rewards, 0.0).sum(1)
    scores = summed if rollout.scores is None else rollout.scores
    weights = rollout.applies.astype(jnp.float32)
    if rollout.score_weights is not None:
        weights = weights * rollout.score_weights
    # Under a mask, not by a product alone: a score that does not apply may be anything, NaN included.
    scores = jnp.where(weights > 0, scores, 0.0)
    total, count = psum((scores * weights).sum(0), axis_name), psum(weights.sum(0), axis_name)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), 0.0), count


def _advantages(state: TrainState, rollout: Rollout) -> tuple[jax.Array, jax.Array]:
    """GAE of every stream in reward units: advantages and returns f32[S, T, H]."""
    rewards = jnp.concatenate([rollout.objectives, rollout.constraints], axis=-1)
    rewards = jnp.where(rollout.applies[:, None, :], rewards, 0.0)
    values = rollout.values_old * state.value_scale[None, None, :]
    return adv.gae(rewards, values, rollout.resp_mask, state.hyper.gamma, state.hyper.gae_lambda)


def _stream_mask(rollout: Rollout) -> jax.Array:
    return rollout.resp_mask[..., None] & rollout.applies[:, None, :]


def _update_scores(state: TrainState, score: jax.Array, count: jax.Array) -> TrainState:
    """Move the running J of the objectives; the first one is adopted and kept as the start."""
    applies, first = count > 0, state.score_seen == 0
    decay = jnp.where(first, 0.0, state.hyper.score_ema)
    moved = decay * state.score_ema + (1.0 - decay) * score
    return state.replace(
        score_ema=jnp.where(applies, moved, state.score_ema),
        score_initial=jnp.where(applies & first, score, state.score_initial),
        score_seen=state.score_seen + applies.astype(jnp.int32),
    )


def _normalise(state, rollout, advantages, returns, config, axis_name):
    """Normalised advantages, returns in units of the running scale, and the state with both scales moved."""
    mask = _stream_mask(rollout)
    advantages, sigma = adv.normalise(
        advantages, mask, state.running_sigma, config.adv_norm, state.hyper.sigma_floor, axis_name
    )
    count = psum(mask.sum((0, 1)).astype(jnp.float32), axis_name)
    running_sigma = adv.update_running_sigma(state.running_sigma, sigma, count, _SCALE_DECAY)
    _, spread, _ = masked_moments(returns, mask, axis_name)
    measured = jnp.where(state.value_seen, state.value_scale, 0.0)
    scale = adv.value_scale(adv.update_running_sigma(measured, spread, count, _SCALE_DECAY))
    seen = state.value_seen | (count > 0)
    scale = jnp.where(seen, scale, 1.0)
    state = state.replace(running_sigma=running_sigma, value_scale=scale, value_seen=seen)
    return state, advantages, returns / scale[None, None, :]


def _scales(state, rollout, count, config, axis_name) -> Scales:
    objectives = len(config.objectives)
    tokens = psum(rollout.resp_mask.sum().astype(jnp.float32), axis_name)
    stream_tokens = psum(_stream_mask(rollout).sum((0, 1)).astype(jnp.float32), axis_name)
    # The rollout's mean per minibatch, not the minibatch's own count: every token then weighs the same.
    return Scales(
        tokens=jnp.maximum(tokens / config.minibatches, 1.0),
        stream_tokens=jnp.maximum(stream_tokens / config.minibatches, 1.0),
        multipliers=state.multipliers.value,
        score=state.score_ema,
        score_initial=state.score_initial,
        score_count=count[:objectives],
    )


def _minibatches(rollout: Rollout, advantages: jax.Array, returns: jax.Array, config: StepConfig) -> Batch:
    """Strided minibatches [minibatches, S / minibatches, ...]: each device keeps its own rows of each of them."""
    batch = Batch(
        tokens=rollout.tokens,
        mask=rollout.mask,
        resp_mask=rollout.resp_mask,
        logp_old=rollout.logp_old,
        values_old=rollout.values_old,
        advantages=advantages,
        returns=returns,
        applies=rollout.applies,
        logp_ref=rollout.logp_ref,
        ref_logps=rollout.ref_logps if config.kl == "full" else None,
    )
    count = config.minibatches
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)


def _explained(state: TrainState, rollout: Rollout, returns: jax.Array, axis_name: str | None) -> jax.Array:
    """f32[H]: how much of the returns' variance the critic knew before this step."""
    values = rollout.values_old * state.value_scale[None, None, :]
    return losses.explained_variance(values, returns, _stream_mask(rollout), axis_name)
