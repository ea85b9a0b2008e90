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
from morejax.batch import Batch, Scales, strided
from morejax.collectives import masked_moments, psum
from morejax.config import StepConfig
from morejax.lagrange import hinge_applies, update_multipliers
from morejax.minibatch import Learner, update
from morejax.policy_gradient import stream_mix
from morejax.reweight import NEEDS_MOMENTS, WeightStats
from morejax.rollout import Rollout
from morejax.scores import mean_scores, score_moments, sequence_scores
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
      rollout: S sequences, S a multiple of `config.minibatches` x `config.accumulation_steps` (on every device).
      config: the structure of the step; static.
      axis_name: device axis when compiled by `pmap` or `shard_map`; None under plain `jit`, on any mesh.

    Returns:
      The new state and a flat dict of scalars, named as docs/metrics.md says.

    Raises:
      ValueError: the rollout lacks what the config needs, or its shapes do not fit.
    """
    check(state, rollout, config)
    rewards = stream_rewards(state, rollout, config, axis_name)
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
    advantages, returns, explained = _advantages(state, rollout, rewards, config, axis_name)
    before = state.value_scale
    state, advantages, returns = _normalise(state, rollout, advantages, returns, config, axis_name)
    if config.multipliers == "hinge":
        advantages = _only_violated(state, rollout, advantages, config, axis_name)
    if rollout.values_old is not None:
        # The critic spoke in units of the scale before; its clip range is around that, in the new unit.
        rollout = rollout.replace(values_old=rollout.values_old * (before / state.value_scale)[None, None, :])
    scales = _scales(state, rollout, count, config, axis_name)
    gram = jnp.zeros((len(config.measured),) * 2, jnp.float32)  # the first minibatch measures it
    learner = Learner(state.params, state.opt_state, state.weights, gram, jnp.int32(0), jnp.bool_(True))
    batches = _minibatches(rollout, advantages, returns, config, axis_name)
    one_update = partial(update, state, scales, config, axis_name)
    learner, logs = jax.lax.scan(
        lambda carry, _: jax.lax.scan(one_update, carry, batches), learner, None, length=config.epochs
    )
    kl = mean_over_updates(logs)["kl"]
    metrics = step_metrics(config, state, multipliers, info, score, logs, scales, explained)
    new = _steer_kl(state, kl, config).replace(
        params=learner.params,
        opt_state=learner.opt_state,
        weights=learner.weights,
        step=state.step + 1,
    )
    return new, metrics | {"updates": learner.updates.astype(jnp.float32), "kl_coef": new.kl_coef}


def check(state: TrainState, rollout: Rollout, config: StepConfig) -> None:
    """Refuse a rollout, or a model, that does not fit the config (at trace time, so for free).

    Raises:
      ValueError: a missing reference, critic or group, an array of the wrong shape, or sequences that do not divide
        into minibatches.
    """
    sequences, _ = rollout.resp_mask.shape
    if config.kl == "full" and rollout.ref_logps is None:
        raise ValueError("step.kl = full needs rollout.ref_logps f32[S, T, V]; use k2 or k3 with rollout.logp_ref")
    if config.kl in ("k1_reward", "k2", "k3") and rollout.logp_ref is None:
        raise ValueError(f"step.kl = {config.kl} needs rollout.logp_ref f32[S, T]")
    if (config.baseline == "critic") != ("value" in state.params):
        found = "has one" if "value" in state.params else "has none (no `value` among its parameters)"
        wanted = "needs a model with a critic" if config.baseline == "critic" else "needs a model without a critic"
        raise ValueError(f"step.baseline = {config.baseline} {wanted}, and this one {found}")
    if config.baseline == "critic" and rollout.values_old is None:
        raise ValueError("step.baseline = critic needs rollout.values_old f32[S, T, H]")
    if config.baseline != "critic" and rollout.group is None:
        raise ValueError(f"step.baseline = {config.baseline} needs rollout.group i32[S]")
    if (rollout.dialogue is None) != (rollout.turn is None):
        missing = "dialogue" if rollout.dialogue is None else "turn"
        raise ValueError(f"discounting over turns needs rollout.dialogue and rollout.turn, and {missing} is missing")
    if sequences % (config.minibatches * config.accumulation_steps):
        raise ValueError(
            f"{sequences} sequences (on each device) do not divide into step.minibatches = {config.minibatches} of "
            f"step.accumulation_steps = {config.accumulation_steps} slices"
        )
    for name, expected, meaning in _shapes(rollout, config):
        value = getattr(rollout, name)
        found = None if value is None else jnp.shape(value)
        if found is not None and found != expected:
            raise ValueError(f"rollout.{name} has shape {found}, expected {expected}: {meaning}")


def _shapes(rollout: Rollout, config: StepConfig) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and meaning of every array of a rollout whose `resp_mask` is [S, T]."""
    sequences, response = rollout.resp_mask.shape
    positions, streams = (sequences, response), len(config.reward_streams)
    per_stream = f"one column for each stream of {config.reward_streams}"
    shapes = [
        ("tokens", (sequences, jnp.shape(rollout.context_mask)[-1] + response), "[S, C + T], context, then response"),
        ("context_mask", (sequences, jnp.shape(rollout.tokens)[-1] - response), "[S, C]"),
        ("logp_old", positions, "[S, T]"),
        ("logp_ref", positions, "[S, T]"),
        ("values_old", (*positions, len(config.streams)), f"one column for each stream of {config.streams}"),
        ("applies", (sequences, streams), per_stream),
        ("scores", (sequences, streams), per_stream),
        ("score_weights", (sequences, streams), per_stream),
        ("group", (sequences,), "[S]"),
        ("dialogue", (sequences,), "[S]"),
        ("turn", (sequences,), "[S]"),
    ]
    for name in ("objectives", "constraints"):
        names = getattr(config, name)
        shapes.append((name, (*positions, len(names)), f"one column for each of step.{name} = {names}"))
    if rollout.ref_logps is not None:
        shapes.append(("ref_logps", (*positions, jnp.shape(rollout.ref_logps)[-1]), "[S, T, V]"))
    return shapes


def stream_rewards(state: TrainState, rollout: Rollout, config: StepConfig, axis_name: str | None = None) -> jax.Array:
    """Rewards f32[S, T, H] of all streams, 0 where one does not apply.

    What later turns of the dialogue bring, discounted per turn, is added on a reply's last token; a KL that is a reward
    is the stream r_t = -(log pi_old - log pi_ref), in nats.
    """
    rewards = jnp.where(_stream_mask(rollout), jnp.concatenate([rollout.objectives, rollout.constraints], axis=-1), 0.0)
    if rollout.dialogue is not None and rollout.turn is not None:
        streams = rewards.shape[-1]
        later = adv.discount_over_turns(
            rewards.sum(1), rollout.dialogue, rollout.turn, state.hyper.gamma_turn[:streams], axis_name
        )
        last = rollout.resp_mask & (jnp.cumsum(rollout.resp_mask, axis=1) == rollout.resp_mask.sum(1, keepdims=True))
        rewards = jnp.where(last[..., None] & rollout.applies[:, None, :], rewards + later[:, None, :], rewards)
    if config.kl == "k1_reward":
        assert rollout.logp_ref is not None  # `check` has seen to it
        kl = jnp.where(rollout.resp_mask, losses.kl_k1(rollout.logp_old, rollout.logp_ref), 0.0)
        rewards = jnp.concatenate([rewards, -kl[..., None]], axis=-1)
    return rewards


def _advantages(
    state: TrainState, rollout: Rollout, rewards: jax.Array, config: StepConfig, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Advantages and returns f32[S, T, H] in reward units, and how much of the returns' variance the critic knew."""
    mask = _stream_mask(rollout, config)
    if config.baseline != "critic" and rollout.group is not None:
        returns = rewards.sum(1)
        how = {"group_mean": "mean", "leave_one_out": "leave_one_out"}[config.baseline]
        how = "standardised" if config.adv_norm == "group" else how
        # At most one group a sequence; their numbers count over all devices.
        groups = returns.shape[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
        advantages = adv.group_advantages(returns, mask.any(1), rollout.group, how, axis_name, groups)
        return jnp.where(mask, advantages[:, None, :], 0.0), jnp.where(mask, returns[:, None, :], 0.0), None
    assert rollout.values_old is not None  # `check` has seen to it
    values = rollout.values_old * state.value_scale[None, None, :]
    numbers = state.hyper
    advantages, returns = adv.gae(rewards, values, rollout.resp_mask, numbers.gamma, numbers.gae_lambda)
    return advantages, returns, losses.explained_variance(values, returns, mask, axis_name)


def _stream_mask(rollout: Rollout, config: StepConfig | None = None) -> jax.Array:
    """bool[S, T, H]: valid tokens of sequences that the stream applies to; the K + M reward streams without config."""
    applies = rollout.applies if config is None else _applies(rollout, config)
    return rollout.resp_mask[..., None] & applies[:, None, :]


def _applies(rollout: Rollout, config: StepConfig) -> jax.Array:
    """bool[S, H]: a KL that is a reward applies everywhere."""
    if config.kl != "k1_reward":
        return rollout.applies
    return jnp.concatenate([rollout.applies, jnp.ones_like(rollout.applies[:, :1])], axis=-1)


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


def _normalise(
    state: TrainState,
    rollout: Rollout,
    advantages: jax.Array,
    returns: jax.Array,
    config: StepConfig,
    axis_name: str | None,
) -> tuple[TrainState, jax.Array, jax.Array]:
    """Normalised advantages, returns in units of the running scale, and the state with both scales moved."""
    mask = _stream_mask(rollout, config)
    advantages, sigma = _by_stream(state, advantages, mask, config, axis_name)
    if config.adv_norm in ("group", "after"):
        mix = stream_mix(config, state.weights.weights, state.multipliers.value, state.kl_coef)
        advantages = adv.whiten_mixture(advantages, mask, rollout.resp_mask, mix, axis_name)
    count = psum(mask.sum((0, 1)).astype(jnp.float32), axis_name)
    running_sigma = adv.update_running_sigma(state.running_sigma, sigma, count, _SCALE_DECAY)
    _, spread, _ = masked_moments(returns, mask, axis_name)
    measured = jnp.where(state.value_seen, state.value_scale, 0.0)
    scale = adv.value_scale(adv.update_running_sigma(measured, spread, count, _SCALE_DECAY))
    seen = state.value_seen | (count > 0)
    scale = jnp.where(seen, scale, 1.0)
    state = state.replace(running_sigma=running_sigma, value_scale=scale, value_seen=seen)
    return state, advantages, returns / scale[None, None, :]


def _by_stream(
    state: TrainState, advantages: jax.Array, mask: jax.Array, config: StepConfig, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Each stream on its own scale, as `adv_norm` says, and the std f32[H] found; the KL stays in nats."""
    how = "none" if config.adv_norm in ("group", "after") else config.adv_norm
    normalise = partial(adv.normalise, floor=state.hyper.sigma_floor, axis_name=axis_name)
    if config.kl != "k1_reward":
        return normalise(advantages, mask, state.running_sigma, how)
    parts = [
        normalise(advantages[..., part], mask[..., part], state.running_sigma[part], kind)
        for part, kind in ((slice(None, -1), how), (slice(-1, None), "none" if how == "none" else "center"))
    ]
    rewards, kl = parts
    return jnp.concatenate([rewards[0], kl[0]], axis=-1), jnp.concatenate([rewards[1], kl[1]])


def _only_violated(
    state: TrainState, rollout: Rollout, advantages: jax.Array, config: StepConfig, axis_name: str | None
) -> jax.Array:
    """Hinge: a constraint pushes only the prompts that violate it."""
    first, last = len(config.objectives), len(config.reward_streams)
    scores, _ = sequence_scores(rollout)
    groups = scores.shape[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    violated = hinge_applies(
        scores[:, first:], rollout.applies[:, first:], state.hyper.thresholds, rollout.group, groups, axis_name
    )
    held = jnp.where(violated[:, None, :], advantages[..., first:last], 0.0)
    return jnp.concatenate([advantages[..., :first], held, advantages[..., last:]], axis=-1)


def _scales(state: TrainState, rollout: Rollout, count: jax.Array, config: StepConfig, axis_name: str | None) -> Scales:
    objectives = len(config.objectives)
    weights = losses.token_weights(rollout.resp_mask, config.loss_mean)
    by_stream = jnp.where(_stream_mask(rollout, config), weights[..., None], 0.0)
    tokens, stream_tokens = psum((weights.sum(), by_stream.sum((0, 1))), axis_name)
    # The rollout's mean per minibatch, not the minibatch's own count: every token then weighs the same.
    return Scales(
        tokens=jnp.maximum(tokens / config.minibatches, _least(config)),
        stream_tokens=jnp.maximum(stream_tokens / config.minibatches, _least(config)),
        multipliers=state.multipliers.value,
        stats=_stats(state, rollout, count[:objectives], config, axis_name),
    )


def _least(config: StepConfig) -> float:
    """Denominator of an empty mean."""
    return 1.0 if config.loss_mean == "token" else 1.0 / config.minibatches


def _stats(
    state: TrainState, rollout: Rollout, count: jax.Array, config: StepConfig, axis_name: str | None
) -> WeightStats:
    """What a weight rule decides from, but for the Gram matrix, which minibatches fill in."""
    objectives = len(config.objectives)
    moments: dict[str, jax.Array] = {}
    if config.weights in NEEDS_MOMENTS:
        scores, weights = (x[:, :objectives] for x in sequence_scores(rollout))
        moments = score_moments(scores, weights, state.weights.weights, axis_name)
    return WeightStats(
        gram=jnp.zeros((objectives, objectives), jnp.float32),
        score=state.score_ema,
        initial_score=state.score_initial,
        target=state.hyper.targets,
        count=count,
        rollout=state.step,
        **moments,
    )


def _minibatches(
    rollout: Rollout, advantages: jax.Array, returns: jax.Array, config: StepConfig, axis_name: str | None
) -> Batch:
    """Strided minibatches [minibatches, S / minibatches, ...]: each device keeps its own rows of each of them."""
    count, sequences = config.minibatches, rollout.tokens.shape[0]
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * sequences
    batch = Batch(
        tokens=rollout.tokens,
        mask=rollout.mask,
        resp_mask=rollout.resp_mask,
        token_weights=losses.token_weights(rollout.resp_mask, config.loss_mean),
        # Every other row of a minibatch, counted over all devices, so that each of them sees the same halves.
        half=(first + jnp.arange(sequences)) // count % 2 == 0,
        logp_old=rollout.logp_old,
        values_old=rollout.values_old,
        advantages=advantages,
        returns=returns,
        applies=_applies(rollout, config),
        logp_ref=rollout.logp_ref,
        ref_logps=rollout.ref_logps if config.kl == "full" else None,
    )
    return strided(batch, count)


def _steer_kl(state: TrainState, kl: jax.Array, config: StepConfig) -> TrainState:
    """Move the KL's coefficient by what this step measured."""
    numbers = state.hyper
    if config.kl_controller == "adaptive":
        return state.replace(kl_coef=losses.update_kl_coef(state.kl_coef, kl, numbers.kl_target, numbers.kl_gain))
    if config.kl_controller == "multiplier":
        # KL <= target is the constraint J = -KL >= -target.
        moved, _ = update_multipliers(
            state.kl_multiplier,
            -kl[None],
            jnp.ones((1,), jnp.float32),
            -numbers.kl_target[None],
            config.multipliers,
            numbers.gains,
        )
        return state.replace(kl_multiplier=moved, kl_coef=moved.value[0])
    return state
