"""The policy on a batch of sequences: forward pass, the streams' coefficients, and the one pull back through it.

Every stream's surrogate has the gradient sum_n c_ni grad log pi(y_n), so all that the backward pass needs is one
scalar a token: the weighted sum of the streams' coefficients, times d log pi / d logits, plus what the regularisers
add. Sums over tokens are plain sums here: over slices of a minibatch and over devices they are added up by the caller.

Shape letters: B sequences, C context, T response positions, H streams, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from morejax import losses
from morejax.batch import Batch, Scales
from morejax.config import StepConfig
from morejax.gradients import rows_all, rows_final_norm, rows_last_layer, rows_virtual, split_halves
from morejax.lagrange import EXCLUSIVE, mixing_coefficients
from morejax.models.response import response_hidden
from morejax.models.split import Params, merge
from morejax.rollout import token_logp
from morejax.state import TrainState


class Forward(NamedTuple):
    """The policy on a batch, and how to pull gradients back through it."""

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


class Surrogate(NamedTuple):
    """The streams' part of the loss, per token."""

    coefficients: jax.Array
    """f32[B, T, H]: c_ni, derivative by log pi(y_n) of stream i's mean surrogate; 0 where it is clipped."""
    rho: jax.Array
    """f32[B, T]: importance ratio; 1 on padding."""
    share: jax.Array
    """f32[B, T, H]: weight of a token in its stream's mean."""


class Regulariser(NamedTuple):
    """Gradient of beta KL - c H by the logits, and both, per token."""

    along: jax.Array | None
    """f32[B, T]: its part along d log pi(y) / d logits; None where there is none."""
    rest: jax.Array | None
    """f32[B, T, V]: what does not lie along it; None where there is none."""
    kl: jax.Array
    """f32[B, T], nats."""
    entropy: jax.Array
    """f32[B, T], nats."""


def forward(state: TrainState, actor: Params, critic: Params, batch: Batch) -> Forward:
    """Forward pass, split at the head, so that the head's pull can be used on its own."""
    graphdef = state.graphdef
    hidden, pull_trunk, for_critic = jax.vjp(
        lambda actor: response_hidden(merge(graphdef, actor | critic), batch.tokens, batch.mask, batch.context),
        actor,
        has_aux=True,
    )
    logits, pull_head = jax.vjp(lambda actor, hidden: merge(graphdef, actor | critic).logits(hidden), actor, hidden)
    logps = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    tokens = batch.tokens[:, batch.context :]
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


def surrogate(state: TrainState, scales: Scales, ahead: Forward, batch: Batch) -> Surrogate:
    """Importance ratios and the derivative of every stream's clipped surrogate."""
    rho = jnp.where(batch.resp_mask, losses.ratio(ahead.logp, batch.logp_old), 1.0)
    share = jnp.where(batch.valid, batch.token_weights[..., None], 0.0) / scales.stream_tokens[None, None, :]
    slope = losses.surrogate_coefficients(rho, batch.advantages, *_clip(state))
    return Surrogate(jnp.where(batch.valid, slope, 0.0) * share, rho, share)


def gradient_rows(config: StepConfig, ahead: Forward, batch: Batch, coefficients: jax.Array) -> Any:
    """What the Gram matrix is made of (see `gradients.gram`): one row a measured stream, two for `norm_of = signal`."""
    coefficients = coefficients[..., : len(config.measured)]
    if config.norm_of == "signal":
        coefficients = split_halves(coefficients, batch.half)
    if config.norm_at == "all":
        return rows_all(coefficients, ahead.to_params)
    hidden = ahead.hidden.astype(jnp.float32)
    if config.norm_at == "last_layer":
        return rows_last_layer(coefficients, ahead.residual, hidden)
    rows = {"virtual": rows_virtual, "final_norm": rows_final_norm}[config.norm_at]
    return rows(coefficients, ahead.pulled.astype(jnp.float32), hidden)


def stream_mix(config: StepConfig, weights: jax.Array, multipliers: jax.Array, kl_coef: jax.Array) -> jax.Array:
    """Coefficients f32[H] of all streams in the policy loss; the KL's, in nats, is not divided by 1 + Lambda."""
    mix = mixing_coefficients(weights, multipliers, config.mix_norm, exclusive=config.multipliers in EXCLUSIVE)
    return jnp.concatenate([*mix, kl_coef[None]] if config.kl == "k1_reward" else mix)


def mixed(state: TrainState, config: StepConfig, terms: Surrogate, batch: Batch, mix: jax.Array) -> jax.Array:
    """Derivative f32[B, T] by log pi(y_n) of the streams' weighted sum."""
    if config.clip == "per_stream":
        return losses.mix_streams(terms.coefficients, mix)
    # The sum is clipped as one: every stream is first brought to the scale of its own mean.
    scaled = jnp.where(batch.valid, batch.advantages, 0.0) * terms.share
    return losses.mixed_coefficients(terms.rho, scaled, mix, *_clip(state))


def regulariser(state: TrainState, scales: Scales, config: StepConfig, ahead: Forward, batch: Batch) -> Regulariser:
    """KL to the reference and entropy bonus."""
    share = jnp.where(batch.resp_mask, batch.token_weights / scales.tokens, 0.0)
    kl, along, rest = _kl(config, batch, ahead.logps, ahead.logp)
    entropy, entropy_grad = losses.entropy_and_grad(ahead.logps)
    parts = [] if rest is None else [state.kl_coef * rest]
    if config.entropy_bonus:
        parts.append(-state.hyper.entropy_coef * entropy_grad)
    # A choice, not a product: the reference may hold anything on padding, and 0 x inf is not 0.
    if along is not None:
        along = jnp.where(batch.resp_mask, state.kl_coef * along * share, 0.0)
    rest = jnp.where(batch.resp_mask[..., None], sum(parts) * share[..., None], 0.0) if parts else None
    return Regulariser(along, rest, kl, entropy)


def pull(ahead: Forward, extra: Regulariser, towards: jax.Array | None, actor: Params) -> Params:
    """Gradient of the policy loss -sum_n c_n log pi(y_n) + regulariser, for c = `towards` f32[B, T] or None for 0."""
    if towards is None and extra.along is None and extra.rest is None:
        return jax.tree.map(jnp.zeros_like, actor)
    coefficients = jnp.zeros_like(ahead.logp) if extra.along is None else extra.along
    return ahead.to_params(coefficients if towards is None else coefficients - towards, extra.rest)


def log_sums(
    state: TrainState, ahead: Forward, terms: Surrogate, extra: Regulariser, batch: Batch
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Sums over tokens of what is logged, and the largest importance ratio."""
    values = losses.clipped_surrogate(terms.rho, batch.advantages, *_clip(state))
    clipped = (terms.coefficients == 0) & batch.valid & (batch.advantages != 0)
    per_token = {
        "kl": extra.kl,
        # KL(old || new) per token by k3 on samples of the old policy: rho - 1 - log rho.
        "kl_old": losses.kl_k3(batch.logp_old, ahead.logp),
        "entropy": extra.entropy,
        "tokens": jnp.ones_like(ahead.logp),
    }
    sums = {name: jnp.where(batch.resp_mask, value, 0.0).sum() for name, value in per_token.items()}
    sums |= {
        "stream_loss": -(jnp.where(batch.valid, values, 0.0) * terms.share).sum((0, 1)),
        "clipped": clipped.sum((0, 1)).astype(jnp.float32),
        "stream_tokens": batch.valid.sum((0, 1)).astype(jnp.float32),
    }
    return sums, jnp.where(batch.resp_mask, terms.rho, 0.0).max()


def _clip(state: TrainState) -> tuple[jax.Array, jax.Array, jax.Array]:
    return state.hyper.clip_low, state.hyper.clip_high, state.hyper.dual_clip


def _kl(config: StepConfig, batch: Batch, logps: jax.Array, logp: jax.Array):
    """KL to the reference per token f32[B, T], nats, and its gradient: along d log pi(y), and the rest (or None)."""
    nothing = jnp.zeros_like(logp)
    if config.kl == "full" and batch.ref_logps is not None:
        kl, gradient = losses.kl_full_grad(logps, batch.ref_logps)
        return kl, None, gradient
    if batch.logp_ref is None:
        return nothing, None, None
    if config.kl in ("none", "k1_reward"):
        return losses.kl_k3(logp, batch.logp_ref), None, None
    estimator = {"k2": losses.kl_k2, "k3": losses.kl_k3}[config.kl]
    return estimator(logp, batch.logp_ref), losses.kl_coefficient(config.kl, logp, batch.logp_ref), None
