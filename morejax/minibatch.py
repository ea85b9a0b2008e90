"""One minibatch of the step: forward, the streams' coefficients, their Gram matrix, weights, ONE backward, optimizer.

Every stream's surrogate has the gradient sum_n c_ni grad log pi(y_n), so all that the policy's backward pass needs is
one scalar a token: the weighted sum of the streams' coefficients c_ni, times d log pi / d logits, plus the
regularisers' cotangent. The weights are decided from the coefficients before that pass.

Shape letters: B sequences of the minibatch, C context, T response positions, K objectives, M constraints, H = K + M, V
vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from morejax import losses
from morejax.collectives import masked_mean, psum
from morejax.config import StepConfig
from morejax.gradients import (
    adam_preconditioner,
    gram_all,
    gram_final_norm,
    gram_last_layer,
    gram_virtual,
    signal_gram,
    split_halves,
)
from morejax.lagrange import EXCLUSIVE, mixing_coefficients
from morejax.models.response import response_hidden, response_values
from morejax.models.split import Params, merge
from morejax.reweight import WeightState, WeightStats, update_weights
from morejax.rollout import token_logp
from morejax.state import TrainState


class Batch(NamedTuple):
    """What one minibatch needs; leading axis: sequences."""

    tokens: jax.Array
    mask: jax.Array
    resp_mask: jax.Array
    token_weights: jax.Array
    half: jax.Array
    logp_old: jax.Array
    values_old: jax.Array | None
    advantages: jax.Array
    returns: jax.Array
    applies: jax.Array
    logp_ref: jax.Array | None
    ref_logps: jax.Array | None


class Learner(NamedTuple):
    """What one minibatch changes."""

    params: Params
    opt_state: Any
    weights: WeightState
    gram: jax.Array
    """f32[H, H]: inner products of the streams' gradients when last measured."""
    updates: jax.Array
    """i32[]: optimizer updates made in this step (early stop leaves some out)."""
    running: jax.Array
    """bool[]: still within `stop_kl`."""


class Scales(NamedTuple):
    """Constants of one step."""

    tokens: jax.Array
    """f32[]: weight of the response tokens per minibatch (their number, or that of sequences), over all devices."""
    stream_tokens: jax.Array
    """f32[H]: of them, those whose sequence the stream applies to."""
    multipliers: jax.Array
    """f32[M]."""
    stats: WeightStats
    """What weights are decided from, but for the Gram matrix, which every minibatch measures."""


class Forward(NamedTuple):
    """The policy on a minibatch, and how to pull gradients back through it."""

    hidden: jax.Array
    """f32[B, T, D]: hidden states that predict the response."""
    for_critic: jax.Array
    """f32[B, T, D], or of all positions: what a critic on the policy's trunk reads."""
    logps: jax.Array
    """f32[B, T, V]: log-probabilities of every response position."""
    logp: jax.Array
    """f32[B, T]: of the sampled tokens; 0 on padding."""
    residual: jax.Array
    """f32[B, T, V]: d log pi(y) / d logits = onehot(y) - p."""
    pulled: jax.Array
    """f32[B, T, D]: pull of the residual through the head, d log pi(y) / d hidden."""
    to_params: Callable[..., Params]
    """(c f32[B, T], rest f32[B, T, V] or None) -> gradient of the actor of sum_n c_n log pi(y_n), and of what has the
    cotangent `rest` at the logits: the only backward pass through the trunk."""


def update(
    state: TrainState,
    scales: Scales,
    config: StepConfig,
    axis_name: str | None,
    learner: Learner,
    batch: Batch,
) -> tuple[Learner, dict[str, jax.Array]]:
    """One minibatch.

    Args:
      state: at the start of the step; its hyper-parameters, KL coefficient and structure.
      scales: constants of the step.
      config, axis_name: as in `train_step`.
      learner: what the minibatches before left.
      batch: this minibatch.

    Returns:
      The new learner and what is logged of this minibatch.
    """
    actor, critic = _parts(learner.params)
    forward = _forward(state, actor, critic, batch)
    rho = jnp.where(batch.resp_mask, losses.ratio(forward.logp, batch.logp_old), 1.0)
    valid = batch.resp_mask[..., None] & batch.applies[:, None, :]
    clip = (state.hyper.clip_low, state.hyper.clip_high, state.hyper.dual_clip)
    # Every token's share of its stream's mean.
    share = jnp.where(valid, batch.token_weights[..., None], 0.0) / scales.stream_tokens[None, None, :]
    per_stream = jnp.where(valid, losses.surrogate_coefficients(rho, batch.advantages, *clip), 0.0)
    coefficients = per_stream * share
    gram, weights = _reweigh(state, scales, config, axis_name, learner, forward, coefficients, batch)
    mix = stream_mix(config, weights.weights, scales.multipliers, state.kl_coef)
    if config.clip == "per_stream":
        combined = (coefficients * mix[None, None, :]).sum(-1)
    else:
        # The sum is clipped as one: every stream is first brought to the scale of its own mean.
        scaled = jnp.where(valid, batch.advantages, 0.0) * share
        combined = losses.mixed_coefficients(rho, scaled, mix, *clip)
    along, rest, kl, entropy = _regulariser(state, scales, config, forward, batch)
    actor_grads = psum(forward.to_params(along - combined, rest), axis_name)
    value_loss, value_grads = _critic_gradient(state, scales, config, axis_name, actor, critic, forward, batch)
    kl_old = masked_mean(_k3_old(forward.logp, batch), batch.resp_mask, axis_name)
    # Not `kl_old <= stop`: a NaN must go on and be seen, not end the step in silence.
    running = learner.running & ~(kl_old > state.hyper.stop_kl)
    learner, grad_norms = _advance(state, learner, weights, gram, actor_grads, value_grads, running)
    surrogate = jnp.where(valid, losses.clipped_surrogate(rho, batch.advantages, *clip), 0.0) * share
    clipped = (per_stream == 0) & valid & (batch.advantages != 0)
    return learner, {
        "gram": gram,
        "weights": learner.weights.weights,
        "made": running.astype(jnp.float32),
        "stream_loss": -psum(surrogate.sum((0, 1)), axis_name),
        "clip_fraction": masked_mean(clipped.astype(jnp.float32), valid, axis_name, axis=(0, 1)),
        "kl": masked_mean(kl, batch.resp_mask, axis_name),
        "kl_old": kl_old,
        "entropy": masked_mean(entropy, batch.resp_mask, axis_name),
        "value_loss": value_loss,
        "ratio_max": _pmax(jnp.where(batch.resp_mask, rho, 0.0).max(), axis_name),
        "grad_norm": grad_norms[0],
        "value_grad_norm": grad_norms[1],
    }


def _parts(params: Params) -> tuple[Params, Params]:
    """Actor (trunk and policy head) and critic."""
    actor = {name: part for name, part in params.items() if name != "value"}
    return actor, {name: part for name, part in params.items() if name == "value"}


def _forward(state: TrainState, actor: Params, critic: Params, batch: Batch) -> Forward:
    """Forward pass, split at the head, so that the head's pull can be used on its own."""
    context = batch.tokens.shape[1] - batch.resp_mask.shape[1]
    graphdef = state.graphdef
    hidden, pull_trunk, for_critic = jax.vjp(
        lambda actor: response_hidden(merge(graphdef, actor | critic), batch.tokens, batch.mask, context),
        actor,
        has_aux=True,
    )
    logits, pull_head = jax.vjp(lambda actor, hidden: merge(graphdef, actor | critic).logits(hidden), actor, hidden)
    logps = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    tokens = batch.tokens[:, context:]

    residual = jax.nn.one_hot(tokens, logps.shape[-1]) - jnp.exp(logps)
    pulled = pull_head(residual.astype(logits.dtype))[1]

    def at_head(coefficients: jax.Array, rest: jax.Array | None) -> tuple[Params, jax.Array]:
        cotangent = coefficients[..., None] * residual
        if rest is not None:
            return pull_head((cotangent + rest).astype(logits.dtype))
        # The residual has been pulled through the head already: what is left to do is one scalar a token.
        return pull_head(cotangent.astype(logits.dtype))[0], coefficients[..., None].astype(pulled.dtype) * pulled

    def to_params(coefficients: jax.Array, rest: jax.Array | None = None) -> Params:
        head_grads, hidden_bar = at_head(coefficients, rest)
        (trunk_grads,) = pull_trunk(hidden_bar.astype(hidden.dtype))
        return jax.tree.map(jnp.add, head_grads, trunk_grads)

    return Forward(
        hidden=hidden,
        for_critic=for_critic,
        logps=logps,
        logp=jnp.where(batch.resp_mask, token_logp(logps, tokens), 0.0),
        residual=residual,
        pulled=pulled,
        to_params=to_params,
    )


def stream_mix(config: StepConfig, weights: jax.Array, multipliers: jax.Array, kl_coef: jax.Array) -> jax.Array:
    """Coefficients f32[H] of all streams in the policy loss; the KL's, in nats, is not divided by 1 + Lambda."""
    mix = mixing_coefficients(weights, multipliers, config.mix_norm, exclusive=config.multipliers in EXCLUSIVE)
    return jnp.concatenate([*mix, kl_coef[None]] if config.kl == "k1_reward" else mix)


def _reweigh(
    state: TrainState,
    scales: Scales,
    config: StepConfig,
    axis_name: str | None,
    learner: Learner,
    forward: Forward,
    coefficients: jax.Array,
    batch: Batch,
) -> tuple[jax.Array, WeightState]:
    """Measure the Gram matrix and move the weights, where this minibatch is one of those that do."""
    objectives = len(config.objectives)

    def measure() -> tuple[jax.Array, WeightState]:
        gram = _gram(config, forward, coefficients, batch, axis_name, learner)
        stats = replace(scales.stats, gram=gram[:objectives, :objectives])
        return gram, update_weights(learner.weights, stats, config.weights, state.hyper.weighting)

    if config.norm_every == 1:
        return measure()
    first = learner.updates == 0
    due = first if config.norm_every == 0 else first | (learner.updates % config.norm_every == 0)
    return jax.lax.cond(due, measure, lambda: (learner.gram, learner.weights))


def _gram(
    config: StepConfig,
    forward: Forward,
    coefficients: jax.Array,
    batch: Batch,
    axis_name: str | None,
    learner: Learner,
) -> jax.Array:
    """Inner products f32[H, H] of the streams' gradients, where `norm_at` says."""
    if config.norm_of == "signal":
        coefficients = split_halves(coefficients, batch.half)
    if config.norm_at == "all":
        actor, _ = _parts(learner.params)
        preconditioner = adam_preconditioner(learner.opt_state, actor) if config.norm_space == "adam" else None
        gram = gram_all(coefficients, forward.to_params, axis_name, preconditioner)
    else:
        gram = _gram_at_head(config, forward, coefficients, batch, axis_name)
    return signal_gram(gram) if config.norm_of == "signal" else gram


def _gram_at_head(config: StepConfig, forward: Forward, coefficients: jax.Array, batch: Batch, axis_name: str | None):
    hidden = forward.hidden.astype(jnp.float32)
    if config.norm_at == "last_layer":
        return gram_last_layer(coefficients, forward.residual, hidden, axis_name)
    pulled = forward.pulled.astype(jnp.float32)
    return {"virtual": gram_virtual, "final_norm": gram_final_norm}[config.norm_at](
        coefficients, pulled, hidden, axis_name
    )


def _regulariser(
    state: TrainState, scales: Scales, config: StepConfig, forward: Forward, batch: Batch
) -> tuple[jax.Array, jax.Array | None, jax.Array, jax.Array]:
    """Gradient of beta KL - c H by the logits, and KL and entropy per token f32[B, T], nats.

    Returns:
      The part along d log pi(y) / d logits as a scalar a token f32[B, T], the rest f32[B, T, V] (None where there is
      none), KL, entropy.
    """
    share = jnp.where(batch.resp_mask, batch.token_weights / scales.tokens, 0.0)
    kl, along, rest = _kl(config, batch, forward.logps, forward.logp)
    entropy, entropy_grad = losses.entropy_and_grad(forward.logps)
    parts = [] if rest is None else [state.kl_coef * rest]
    if config.entropy_bonus:
        parts.append(-state.hyper.entropy_coef * entropy_grad)
    # A choice, not a product: the reference may hold anything on padding, and 0 x inf is not 0.
    along = jnp.where(batch.resp_mask, state.kl_coef * along * share, 0.0)
    rest = jnp.where(batch.resp_mask[..., None], sum(parts) * share[..., None], 0.0) if parts else None
    return along, rest, kl, entropy


def _advance(
    state: TrainState,
    learner: Learner,
    weights: WeightState,
    gram: jax.Array,
    actor_grads: Params,
    value_grads: Params,
    running: jax.Array,
) -> tuple[Learner, tuple[jax.Array, jax.Array]]:
    """The learner after the optimizer, or as it was once the step has been stopped early; and both gradient norms."""
    params, opt_state, grad_norms = _optimise(state, learner, actor_grads, value_grads)

    def keep(new, old):
        return jax.tree.map(lambda n, o: jnp.where(running, n, o), new, old)

    moved = Learner(
        params=keep(params, learner.params),
        opt_state=keep(opt_state, learner.opt_state),
        weights=keep(weights, learner.weights),
        gram=keep(gram, learner.gram),
        updates=learner.updates + running.astype(jnp.int32),
        running=running,
    )
    return moved, grad_norms


def _kl(config: StepConfig, batch: Batch, logps: jax.Array, logp: jax.Array):
    """KL to the reference per token f32[B, T], nats, and its gradient: along d log pi(y), and the rest (or None)."""
    nothing = jnp.zeros_like(logp)
    if config.kl == "full" and batch.ref_logps is not None:
        kl, gradient = losses.kl_full_grad(logps, batch.ref_logps)
        return kl, nothing, gradient
    if batch.logp_ref is None:
        return nothing, nothing, None
    if config.kl in ("none", "k1_reward"):
        return losses.kl_k3(logp, batch.logp_ref), nothing, None
    estimator = {"k2": losses.kl_k2, "k3": losses.kl_k3}[config.kl]
    return estimator(logp, batch.logp_ref), losses.kl_coefficient(config.kl, logp, batch.logp_ref), None


def _pmax(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else jax.lax.pmax(x, axis_name)


def _k3_old(logp: jax.Array, batch: Batch) -> jax.Array:
    """KL(old || new) per token by k3 on samples of the old policy: rho - 1 - log rho."""
    return losses.kl_k3(batch.logp_old, logp)


def _critic_gradient(
    state: TrainState,
    scales: Scales,
    config: StepConfig,
    axis_name: str | None,
    actor: Params,
    critic: Params,
    forward: Forward,
    batch: Batch,
) -> tuple[jax.Array, Params]:
    """Loss of the critic f32[] and its gradient; 0 and nothing for a model without one."""
    if not critic or batch.values_old is None:
        return jnp.float32(0.0), {}
    loss, gradient = jax.value_and_grad(
        lambda critic: _value_loss(
            state, merge(state.graphdef, actor | critic), batch, forward.for_critic, scales, config
        )
    )(critic)
    return psum((loss, gradient), axis_name)


def _value_loss(
    state: TrainState, model: Any, batch: Batch, hidden: jax.Array, scales: Scales, config: StepConfig
) -> jax.Array:
    """Sum over streams of the mean clipped squared error, this device's part of it."""
    context = batch.tokens.shape[1] - batch.resp_mask.shape[1]
    values = response_values(model, batch.tokens, batch.mask, hidden, context)
    valid = batch.resp_mask[..., None] & batch.applies[:, None, :]
    clip = state.hyper.clip_value if config.value_clip else None
    assert batch.values_old is not None  # no critic is trained without
    # Masked before, not only after: the gradient of a NaN that `where` drops is still NaN.
    returns, values_old = (jnp.where(valid, x, 0.0) for x in (batch.returns, batch.values_old))
    loss = losses.value_loss(values, returns, values_old, clip)
    share = batch.token_weights[..., None] / scales.stream_tokens[None, None, :]
    return jnp.where(valid, loss * share, 0.0).sum()


def _optimise(state: TrainState, learner: Learner, actor_grads: Params, value_grads: Params):
    """Clip both parts' gradients by their own global norm and apply the optimizer with their own rates."""
    numbers = state.hyper
    actor_grads, actor_norm = _clip_norm(actor_grads, numbers.max_grad_norm)
    value_grads, value_norm = _clip_norm(value_grads, numbers.max_grad_norm)
    updates: Any
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
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)]
    norm = jnp.sqrt(jnp.stack([jnp.float32(0.0), *squares]).sum())
    scale = jnp.minimum(1.0, largest / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda leaf: leaf * scale, grads), norm
