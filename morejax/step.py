"""The constrained multi-objective PPO step: one pure function from (state, rollout) to (state, metrics).

    max sum_k w_k J_k   s.t.   J_m >= d_m,   KL(pi || reference) small

Order of one step: streams' advantages -> J and multipliers -> normalisation -> a scan over epochs x minibatches
(forward, per-token coefficients, gradient norms, weights, ONE backward, optimizer) -> metrics. Multipliers move once
a rollout, weights once a minibatch, before the backward pass that uses them.

Shape letters: S sequences, C context, T response positions, K objectives, M constraints, H = K + M streams,
D width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from morejax import advantages as adv
from morejax import losses
from morejax.collectives import masked_mean, masked_moments, psum
from morejax.config import StepConfig
from morejax.gradients import gram_all, gram_virtual
from morejax.lagrange import MultiplierState, mixing_coefficients, update_multipliers
from morejax.models.split import Params, merge
from morejax.reweight import (
    WeightState,
    WeightStats,
    alignment,
    cosines,
    deficit,
    norms,
    shares,
    update_weights,
)
from morejax.rollout import Rollout, token_logp
from morejax.state import TrainState

_SCALE_DECAY = 0.9  # of the running scales of advantages and returns


class Batch(NamedTuple):
    """What one minibatch needs; leading axis: sequences."""

    tokens: jax.Array
    mask: jax.Array
    resp_mask: jax.Array
    logp_old: jax.Array
    values_old: jax.Array
    advantages: jax.Array
    returns: jax.Array
    applies: jax.Array
    logp_ref: jax.Array | None
    ref_logps: jax.Array | None


class Learner(NamedTuple):
    """What one minibatch changes."""

    params: Params
    opt_state: tuple
    weights: WeightState
    updates: jax.Array
    """i32[]: optimizer updates made in this step (early stop leaves some out)."""
    running: jax.Array
    """bool[]: still within `stop_kl`."""


class Scales(NamedTuple):
    """Constants of one step."""

    tokens: jax.Array
    """f32[]: response tokens per minibatch, over all devices."""
    stream_tokens: jax.Array
    """f32[H]: of them, those whose sequence the stream applies to."""
    multipliers: jax.Array
    """f32[M]."""
    score: jax.Array
    """f32[K]: smoothed J of the objectives."""
    score_initial: jax.Array
    """f32[K]."""
    score_count: jax.Array
    """f32[K]: weight behind J in this rollout."""


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

    def update(learner, batch):
        return _update(state, scales, config, axis_name, learner, batch)

    learner, logs = jax.lax.scan(
        lambda carry, _: jax.lax.scan(update, carry, batches), learner, None, length=config.epochs
    )
    kl = _mean_made(logs)["kl"]
    kl_coef = state.kl_coef
    if config.kl_controller == "adaptive":
        kl_coef = losses.update_kl_coef(kl_coef, kl, state.hyper.kl_target, state.hyper.kl_gain)
    metrics = _metrics(config, state, multipliers, info, score, logs, scales, explained)
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


def _update(
    state: TrainState,
    scales: Scales,
    config: StepConfig,
    axis_name: str | None,
    learner: Learner,
    batch: Batch,
) -> tuple[Learner, dict[str, jax.Array]]:
    """One minibatch: forward, coefficients, Gram matrix, weights, one backward, optimizer."""
    graphdef, params = state.graphdef, learner.params
    context = batch.tokens.shape[1] - batch.resp_mask.shape[1]
    actor = {name: part for name, part in params.items() if name != "value"}
    critic = {name: part for name, part in params.items() if name == "value"}

    def trunk(actor):
        return merge(graphdef, actor | critic).hidden(batch.tokens, batch.mask)

    def head(actor, hidden):
        return merge(graphdef, actor | critic).logits(hidden)

    hidden_all, pull_trunk = jax.vjp(trunk, actor)
    hidden = hidden_all[:, context - 1 : -1]
    logits, pull_head = jax.vjp(head, actor, hidden)
    logps = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    tokens = batch.tokens[:, context:]
    logp = jnp.where(batch.resp_mask, token_logp(logps, tokens), 0.0)
    # d log pi(y) / d logits; everything the policy's gradient needs is a per-token multiple of it.
    residual = jax.nn.one_hot(tokens, logps.shape[-1]) - jnp.exp(logps)

    rho = jnp.where(batch.resp_mask, losses.ratio(logp, batch.logp_old), 1.0)
    valid = batch.resp_mask[..., None] & batch.applies[:, None, :]
    per_stream = losses.surrogate_coefficients(rho, batch.advantages, state.hyper.clip_low, state.hyper.clip_high)
    coefficients = jnp.where(valid, per_stream, 0.0) / scales.stream_tokens[None, None, :]

    def pull(cotangent):
        """Gradient of the actor from a cotangent of the logits: the only backward pass through the trunk."""
        head_grads, hidden_bar = pull_head(cotangent.astype(logits.dtype))
        hidden_bar = jnp.pad(hidden_bar, ((0, 0), (context - 1, 1), (0, 0)))
        (trunk_grads,) = pull_trunk(hidden_bar.astype(hidden_all.dtype))
        return jax.tree.map(jnp.add, head_grads, trunk_grads)

    if config.norm_at == "virtual":
        pulled = pull_head(residual.astype(logits.dtype))[1]
        gram = gram_virtual(coefficients, pulled.astype(jnp.float32), hidden.astype(jnp.float32), axis_name)
    else:
        gram, _ = gram_all(coefficients, lambda c: pull(c[..., None] * residual), axis_name)

    objectives = len(config.objectives)
    stats = WeightStats(
        gram=gram[:objectives, :objectives],
        score=scales.score,
        initial_score=scales.score_initial,
        target=state.hyper.targets,
        count=scales.score_count,
    )
    weights = update_weights(learner.weights, stats, config.weights, state.hyper.weighting)
    mix = jnp.concatenate(mixing_coefficients(weights.weights, scales.multipliers, config.mix_norm))
    if config.clip == "per_stream":
        combined = (coefficients * mix[None, None, :]).sum(-1)
    else:
        # The sum is clipped as one: every stream is first brought to the scale of its own mean.
        scaled = jnp.where(valid, batch.advantages, 0.0) / scales.stream_tokens[None, None, :]
        combined = losses.mixed_coefficients(rho, scaled, mix, state.hyper.clip_low, state.hyper.clip_high)
    kl, kl_grad = _kl(config, batch, logps, logp, residual)
    entropy, entropy_grad = losses.entropy_and_grad(logps)
    beta = 0.0 if config.kl == "none" else state.kl_coef
    regulariser = (beta * kl_grad - state.hyper.entropy_coef * entropy_grad) / scales.tokens
    # A choice, not a product: the reference may hold anything on padding, and 0 x inf is not 0.
    regulariser = jnp.where(batch.resp_mask[..., None], regulariser, 0.0)
    cotangent = regulariser - combined[..., None] * residual
    actor_grads = psum(pull(cotangent), axis_name)
    value_loss, value_grads = jax.value_and_grad(
        lambda critic: _value_loss(state, merge(graphdef, actor | critic), batch, hidden_all, scales, config)
    )(critic)
    value_loss, value_grads = psum((value_loss, value_grads), axis_name)

    kl_old = masked_mean(_k3_old(logp, batch), batch.resp_mask, axis_name)
    running = learner.running & (kl_old <= state.hyper.stop_kl)
    new_params, new_opt, grad_norms = _optimise(state, learner, actor_grads, value_grads)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(running, n, o), new, old)  # noqa: E731
    learner = Learner(
        params=keep(new_params, params),
        opt_state=keep(new_opt, learner.opt_state),
        weights=keep(weights, learner.weights),
        updates=learner.updates + running.astype(jnp.int32),
        running=running,
    )
    surrogate = losses.clipped_surrogate(rho, batch.advantages, state.hyper.clip_low, state.hyper.clip_high)
    stream_loss = -psum(jnp.where(valid, surrogate, 0.0).sum((0, 1)), axis_name) / scales.stream_tokens
    kept = jnp.where(valid, per_stream == 0, False) & (batch.advantages != 0)
    log = {
        "gram": gram,
        "weights": learner.weights.weights,
        "made": running.astype(jnp.float32),
        "stream_loss": stream_loss,
        "clip_fraction": masked_mean(kept.astype(jnp.float32), valid, axis_name, axis=(0, 1)),
        "kl": masked_mean(kl, batch.resp_mask, axis_name),
        "kl_old": kl_old,
        "entropy": masked_mean(entropy, batch.resp_mask, axis_name),
        "value_loss": value_loss,
        "ratio_max": _pmax(rho.max(), axis_name),
        "grad_norm": grad_norms[0],
        "value_grad_norm": grad_norms[1],
    }
    return learner, log


def _kl(config: StepConfig, batch: Batch, logps, logp, residual):
    """KL to the reference per token f32[S, T], nats, and its gradient wrt the logits f32[S, T, V] (or 0)."""
    if config.kl == "full":
        return losses.kl_full_grad(logps, batch.ref_logps)
    if batch.logp_ref is None:
        return jnp.zeros_like(logp), 0.0
    if config.kl == "none":
        return losses.kl_k3(logp, batch.logp_ref), 0.0
    estimator = {"k2": losses.kl_k2, "k3": losses.kl_k3}[config.kl]
    coefficient = losses.kl_coefficient(config.kl, logp, batch.logp_ref)
    return estimator(logp, batch.logp_ref), coefficient[..., None] * residual


def _pmax(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else jax.lax.pmax(x, axis_name)


def _k3_old(logp: jax.Array, batch: Batch) -> jax.Array:
    """KL(old || new) per token by k3 on samples of the old policy: rho - 1 - log rho."""
    return losses.kl_k3(batch.logp_old, logp)


def _value_loss(state, model, batch, hidden, scales, config) -> jax.Array:
    """Sum over streams of the mean clipped squared error, this device's part of it."""
    context = batch.tokens.shape[1] - batch.resp_mask.shape[1]
    values = model.values(batch.tokens, batch.mask, hidden)[:, context - 1 : -1]
    valid = batch.resp_mask[..., None] & batch.applies[:, None, :]
    clip = state.hyper.clip_value if config.value_clip else None
    loss = losses.value_loss(values, batch.returns, batch.values_old, clip)
    return (jnp.where(valid, loss, 0.0) / scales.stream_tokens[None, None, :]).sum()


def _optimise(state: TrainState, learner: Learner, actor_grads: Params, value_grads: Params):
    """Clip both parts' gradients by their own global norm and apply the optimizer with their own rates."""
    numbers = state.hyper
    actor_grads, actor_norm = _clip_norm(actor_grads, numbers.max_grad_norm)
    value_grads, value_norm = _clip_norm(value_grads, numbers.max_grad_norm)
    updates, opt_state = state.tx.update(actor_grads | value_grads, learner.opt_state, learner.params)
    progress = jnp.clip(state.step / jnp.maximum(numbers.decay_steps, 1.0), 0.0, 1.0)
    decay = jnp.where(numbers.decay_steps > 0, 1.0 - 0.9 * progress, 1.0)
    # While the critic warms up, the policy (and so its KL and entropy terms) stays where it is.
    rate = jnp.where(state.step < numbers.warmup_steps, 0.0, numbers.learning_rate * decay)
    rates = {name: numbers.value_learning_rate if name == "value" else rate for name in learner.params}
    params = {
        name: jax.tree.map(lambda p, u, r=rates[name]: p - r * u, part, updates[name])
        for name, part in learner.params.items()
    }
    return params, opt_state, (actor_norm, value_norm)


def _clip_norm(grads: Params, largest: jax.Array) -> tuple[Params, jax.Array]:
    # Not vdot: matrix units round float32 to TF32.
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)))
    scale = jnp.minimum(1.0, largest / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda leaf: leaf * scale, grads), norm


def _explained(state: TrainState, rollout: Rollout, returns: jax.Array, axis_name: str | None) -> jax.Array:
    """f32[H]: how much of the returns' variance the critic knew before this step."""
    values = rollout.values_old * state.value_scale[None, None, :]
    return losses.explained_variance(values, returns, _stream_mask(rollout), axis_name)


def _mean_made(logs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Mean over the minibatches whose update was made; over all, should there be none."""
    made = logs["made"]
    weight = jnp.where(made.sum() > 0, made, 1.0)
    weight = weight / weight.sum()

    def mean(value):
        shaped = weight.reshape(weight.shape + (1,) * (value.ndim - 2))
        # A skipped minibatch may hold anything, and 0 x inf is not 0.
        return jnp.where(shaped > 0, value * shaped, 0.0).sum((0, 1))

    return {name: mean(value) for name, value in logs.items()}


def _metrics(
    config: StepConfig,
    state: TrainState,
    multipliers: MultiplierState,
    info: dict[str, jax.Array],
    score: jax.Array,
    logs: dict[str, jax.Array],
    scales: Scales,
    explained: jax.Array,
) -> dict[str, jax.Array]:
    """Flat dict of scalars; logs have leading axes [epochs, minibatches], means are over the updates made."""
    mean = _mean_made(logs)
    gram, weights = mean["gram"], logs["weights"][-1, -1]
    mix = jnp.concatenate(mixing_coefficients(weights, scales.multipliers, config.mix_norm))
    objectives = len(config.objectives)
    stats = WeightStats(
        gram[:objectives, :objectives],
        scales.score,
        scales.score_initial,
        state.hyper.targets,
        scales.score_count,
    )
    length, cosine, share = norms(gram), cosines(gram), shares(mix, gram)
    left, aligned = deficit(stats), alignment(mix, gram)
    out = {}
    for i, name in enumerate(config.streams):
        out[f"J/{name}"] = score[i]
        out[f"grad_norm/{name}"] = length[i]
        out[f"share/{name}"] = share[i]
        out[f"alignment/{name}"] = aligned[i]
        out[f"stream_loss/{name}"] = mean["stream_loss"][i]
        out[f"clip_fraction/{name}"] = mean["clip_fraction"][i]
        out[f"explained_variance/{name}"] = explained[i]
        out[f"advantage_sigma/{name}"] = state.running_sigma[i]
        for j in range(i + 1, len(config.streams)):
            out[f"cosine/{name}/{config.streams[j]}"] = cosine[i, j]
    for k, name in enumerate(config.objectives):
        out[f"weight/{name}"] = weights[k]
        out[f"deficit/{name}"] = left[k]
    for m, name in enumerate(config.constraints):
        out[f"constraint/{name}/score_ema"] = multipliers.ema_score[m]
        out[f"constraint/{name}/threshold"] = state.hyper.thresholds[m]
        out[f"constraint/{name}/violation"] = info["violation"][m]
        out[f"multiplier/{name}"] = multipliers.value[m]
    out["policy_loss"] = losses.mix_streams(mean["stream_loss"], mix)
    out["clip_fraction"] = mean["clip_fraction"].mean()
    out["ratio_max"] = logs["ratio_max"].max()
    for name in ("kl", "kl_old", "entropy", "value_loss", "grad_norm", "value_grad_norm"):
        out[name] = mean[name]
    return out
