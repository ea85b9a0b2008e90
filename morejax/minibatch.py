"""One minibatch of the step: forward, the streams' norms, weights, ONE backward pass, optimizer.

The weights are decided from the streams' coefficients before the backward pass that uses them. A minibatch may be cut
into slices (`accumulation_steps`), whose sums are added up: the norms are of the whole minibatch, so weights that need
them cost one more forward pass then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from morejax.batch import Batch, Scales, strided
from morejax.collectives import psum
from morejax.config import StepConfig
from morejax.critic_gradient import critic_gradient
from morejax.gradients import adam_preconditioner, combine_rows, gram, signal_gram
from morejax.losses import mix_streams
from morejax.models.split import Params
from morejax.policy_gradient import (
    Forward,
    forward,
    gradient_rows,
    log_sums,
    mixed,
    pull,
    regulariser,
    stream_mix,
    surrogate,
)
from morejax.reweight import NEEDS_GRAM, WeightState, update_weights
from morejax.state import TrainState

Decision = tuple[jax.Array, WeightState]
"""Gram matrix f32[R, R] of the measured streams' gradients, and the weights that follow from it."""


class Learner(NamedTuple):
    """What one minibatch changes."""

    params: Params
    opt_state: Any
    weights: WeightState
    gram: jax.Array
    """f32[R, R]: inner products of the measured streams' gradients when last measured."""
    updates: jax.Array
    """i32[]: optimizer updates made in this step (early stop leaves some out)."""
    running: jax.Array
    """bool[]: still within `stop_kl`."""


class Gradient(NamedTuple):
    """What the backward pass leaves, summed over slices and devices."""

    actor: Params
    critic: Params
    value_loss: jax.Array
    """f32[]."""
    sums: dict[str, jax.Array]
    """Of what is logged, over tokens (`policy_gradient.log_sums`)."""


class Work(NamedTuple):
    """One minibatch and what it is worked on with."""

    state: TrainState
    """At the start of the step; its hyper-parameters, KL coefficient and structure."""
    scales: Scales
    config: StepConfig
    axis_name: str | None
    learner: Learner
    actor: Params
    critic: Params
    batch: Batch
    ahead: Forward | None
    """The forward pass over all of it; None where it is cut into slices."""


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
      state: at the start of the step.
      scales: constants of the step.
      config, axis_name: as in `train_step`.
      learner: what the minibatches before left.
      batch: this minibatch.

    Returns:
      The new learner and what is logged of this minibatch.
    """
    actor = {name: part for name, part in learner.params.items() if name != "value"}
    critic = {name: part for name, part in learner.params.items() if name == "value"}
    ahead = forward(state, actor, critic, batch) if config.accumulation_steps == 1 else None
    work = Work(state, scales, config, axis_name, learner, actor, critic, batch, ahead)
    (gram, weights), gradient, ratio_max = _differentiate(work)
    sums = gradient.sums
    tokens, stream_tokens = (jnp.maximum(sums[name], 1.0) for name in ("tokens", "stream_tokens"))
    kl_old = sums["kl_old"] / tokens
    # Not `kl_old <= stop`: a NaN must go on and be seen, not end the step in silence.
    running = learner.running & ~(kl_old > state.hyper.stop_kl)
    learner, grad_norms = _advance(state, learner, weights, gram, gradient.actor, gradient.critic, running)
    return learner, {
        "gram": gram,
        "weights": learner.weights.weights,
        "made": running.astype(jnp.float32),
        "stream_loss": sums["stream_loss"],
        "clip_fraction": sums["clipped"] / stream_tokens,
        "kl": sums["kl"] / tokens,
        "kl_old": kl_old,
        "entropy": sums["entropy"] / tokens,
        "value_loss": gradient.value_loss,
        "ratio_max": ratio_max,
        "grad_norm": grad_norms[0],
        "value_grad_norm": grad_norms[1],
    }


def _differentiate(work: Work) -> tuple[Decision, Gradient, jax.Array]:
    """Measure the norms and move the weights, where this minibatch is one of those that do, and go back once."""
    config, learner = work.config, work.learner
    exact = config.norm_at == "all" and config.clip == "per_stream"
    if config.norm_every == 1:
        if exact:
            return _exact(work)
        if config.weights not in NEEDS_GRAM:
            return _at_once(work)
        decision = _measure(work)
        return decision, *_backward(work, decision[1])
    due = learner.updates == 0
    if config.norm_every > 1:
        due |= learner.updates % config.norm_every == 0
    kept = (learner.gram, learner.weights)
    if exact:
        return jax.lax.cond(due, lambda: _exact(work), lambda: (kept, *_backward(work, learner.weights)))
    decision = jax.lax.cond(due, lambda: _measure(work), lambda: kept)
    return decision, *_backward(work, decision[1])


def _measure(work: Work) -> Decision:
    """The norms before the backward pass."""

    def rows(ahead: Forward, batch: Batch):
        terms = surrogate(work.state, work.scales, ahead, batch)
        return gradient_rows(work.config, ahead, batch, terms.coefficients), jnp.float32(0.0)

    return _decide(work, _over_slices(work, rows)[0])


def _backward(work: Work, weights: WeightState) -> tuple[Gradient, jax.Array]:
    """The gradient for these weights."""
    return _over_slices(work, lambda ahead, batch: _gradient(work, ahead, batch, weights))


def _at_once(work: Work) -> tuple[Decision, Gradient, jax.Array]:
    """Weights that need no norms: these are measured beside the backward pass."""
    _, weights = _decide(work, None)

    def both(ahead: Forward, batch: Batch):
        terms = surrogate(work.state, work.scales, ahead, batch)
        gradient, ratio_max = _gradient(work, ahead, batch, weights)
        return (gradient_rows(work.config, ahead, batch, terms.coefficients), gradient), ratio_max

    (rows, gradient), ratio_max = _over_slices(work, both)
    return (_gram(work, rows), weights), gradient, ratio_max


def _exact(work: Work) -> tuple[Decision, Gradient, jax.Array]:
    """Norms over all parameters: the rows are gradients, and their weighted sum needs no pass of its own."""
    state, config = work.state, work.config
    measured = len(config.measured)

    def mix(weights: WeightState) -> jax.Array:
        return stream_mix(config, weights.weights, work.scales.multipliers, state.kl_coef)

    def both(ahead: Forward, batch: Batch):
        terms = surrogate(state, work.scales, ahead, batch)
        rows = gradient_rows(config, ahead, batch, terms.coefficients)
        others = None
        if config.measured != config.streams:
            # What multiplies the constraints does not depend on how objectives share their part: weights of before do.
            others = mix_streams(terms.coefficients[..., measured:], mix(work.learner.weights)[measured:])
        gradient, ratio_max = _gradient(work, ahead, batch, towards=others)
        return (rows, gradient), ratio_max

    (rows, gradient), ratio_max = _over_slices(work, both)
    decision = _decide(work, rows)
    objectives = combine_rows(rows, mix(decision[1])[:measured])
    actor = jax.tree.map(jnp.subtract, gradient.actor, objectives)
    return decision, gradient._replace(actor=actor), ratio_max


def _gradient(
    work: Work, ahead: Forward, batch: Batch, weights: WeightState | None = None, towards: jax.Array | None = None
) -> tuple[Gradient, jax.Array]:
    """Gradients of policy and critic on a slice and the sums of what is logged; and the largest importance ratio.

    The policy's is towards the streams as weighed by `weights`, or along given coefficients f32[B, T], if any.
    """
    state, scales, config = work.state, work.scales, work.config
    terms = surrogate(state, scales, ahead, batch)
    extra = regulariser(state, scales, config, ahead, batch)
    if weights is not None:
        mix = stream_mix(config, weights.weights, scales.multipliers, state.kl_coef)
        towards = mixed(state, config, terms, batch, mix)
    value_loss, value_grads = critic_gradient(state, scales, config, work.actor, work.critic, ahead.for_critic, batch)
    sums, ratio_max = log_sums(state, ahead, terms, extra, batch)
    return Gradient(pull(ahead, extra, towards, work.actor), value_grads, value_loss, sums), ratio_max


def _decide(work: Work, rows: Any) -> Decision:
    """Gram matrix of the rows, and the weights moved by it; without rows the matrix is that of before."""
    found = work.learner.gram if rows is None else _gram(work, rows)
    objectives = len(work.config.objectives)
    stats = replace(work.scales.stats, gram=found[:objectives, :objectives])
    return found, update_weights(work.learner.weights, stats, work.config.weights, work.state.hyper.weighting)


def _gram(work: Work, rows: Any) -> jax.Array:
    config = work.config
    preconditioner = None
    if config.norm_space == "adam":
        preconditioner = adam_preconditioner(work.learner.opt_state, work.actor)
    matrix = gram(rows, preconditioner)
    return signal_gram(matrix) if config.norm_of == "signal" else matrix


def _over_slices(work: Work, function: Callable[[Forward, Batch], tuple[Any, jax.Array]]) -> tuple[Any, jax.Array]:
    """Sum of the function's first result and maximum of its second, over slices and devices."""
    if work.ahead is not None:
        total, most = function(work.ahead, work.batch)
    else:
        total, most = _accumulate(work, function)
    if work.axis_name is None:
        return total, most
    return psum(total, work.axis_name), jax.lax.pmax(most, work.axis_name)


def _accumulate(work: Work, function: Callable[[Forward, Batch], tuple[Any, jax.Array]]) -> tuple[Any, jax.Array]:
    """One slice after the other: activations of one of them are all that is kept."""
    slices = strided(work.batch, work.config.accumulation_steps)

    def one(batch: Batch) -> tuple[Any, jax.Array]:
        return function(forward(work.state, work.actor, work.critic, batch), batch)

    def step(total: Any, batch: Batch) -> tuple[Any, jax.Array]:
        part, most = one(batch)
        return jax.tree.map(jnp.add, total, part), most

    shape, _ = jax.eval_shape(one, jax.tree.map(lambda x: x[0], slices))
    total, most = jax.lax.scan(step, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape), slices)
    return total, most.max()


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
