"""Random prompts, models and rollouts of a benchmark's size, and the rewards of its iterations."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from morejax.bench.sizes import Size
from morejax.config import StepConfig, StepNumbers
from morejax.iterate import Frozen, Prompts, RewardContext, Rewards
from morejax.models import ActorCritic, split
from morejax.rollout import Rollout
from morejax.state import TrainState, init_state
from morejax.tasks.device_rewards import licensed_share, on_last_token, overlap

OBJECTIVES = ("overlap", "likely", "licensed", "varied")
CONSTRAINTS = ("says", "short")


def step_config(
    variant: str, *, minibatches: int, kl: str, norm_at: str = "virtual", accumulation_steps: int = 1
) -> StepConfig:
    """Configs that differ in nothing but what is measured.

    Args:
      variant: `plain`: PPO on one stream; `more`: K = 4 objectives with adaptive weights, M = 2 constraints with PID
        multipliers; `exact`: the same with the objectives' gradient norms over all parameters, which is all that the
        weights need; `exact_streams`: with the constraints' too.
      minibatches: updates of the one epoch.
      kl: as in `StepConfig`.
      norm_at: of `more`.
      accumulation_steps: slices of a minibatch.

    Raises:
      ValueError: unknown variant.
    """
    shared: dict[str, Any] = {
        "minibatches": minibatches,
        "epochs": 1,
        "kl": kl,
        "accumulation_steps": accumulation_steps,
    }
    if variant == "plain":
        return StepConfig(objectives=("reward",), constraints=(), weights="fixed", multipliers="fixed", **shared)
    norms = {
        "more": {"norm_at": norm_at},
        "exact": {"norm_at": "all", "norm_for": "objectives"},
        "exact_streams": {"norm_at": "all"},
    }
    if variant not in norms:
        raise ValueError(f"variant must be plain, {', '.join(norms)}, not {variant!r}")
    shared |= norms[variant]
    return StepConfig(
        objectives=OBJECTIVES, constraints=CONSTRAINTS, weights="gradnorm_cf", multipliers="pid", **shared
    )


def make_state(size: Size, config: StepConfig, critic: str, *, dtype: str = "float32", scan: bool = False):
    """A fresh train state on the device."""

    def build() -> TrainState:
        model = ActorCritic(
            size.decoder(dtype, scan), critic=size.critic(critic), streams=len(config.streams), rngs=nnx.Rngs(0)
        )
        thresholds = {name: 0.5 for name in config.constraints}
        # No early stop and no warm-up: every update does the same work.
        return init_state(model, config, StepNumbers(thresholds=thresholds, warmup_steps=0, stop_kl=1e9))

    # Placed, as the step's own output is: the second call then compiles nothing.
    return jax.device_put(jax.jit(build)(), jax.devices()[0])


def make_frozen(size: Size, *, dtype: str = "float32", scan: bool = False) -> Frozen:
    """A reference of the policy's size, and the table of placeholders: every eighth token is one of sixteen."""
    graphdef, params = jax.jit(lambda: split(ActorCritic(size.decoder(dtype, scan), rngs=nnx.Rngs(1))))()
    tokens = np.arange(size.vocab)
    table = np.where(tokens % 8 == 0, tokens // 8 % 16, -1).astype(np.int32)
    return jax.device_put(Frozen(params, graphdef, rewards=table), jax.devices()[0])


def make_prompts(size: Size) -> Prompts:
    """Contexts without padding, and what rewards compare replies with."""
    rng = np.random.default_rng(0)
    rows = size.sequences
    facts = {
        "reference": rng.integers(2, size.vocab, (rows, size.response)).astype(np.int32),
        "licensed": rng.random((rows, 16)) < 0.7,
        "wanted": rng.integers(0, 16, rows).astype(np.int32),
    }
    context: Any = rng.integers(2, size.vocab, (rows, size.context)).astype(np.int32)
    mask: Any = np.ones((rows, size.context), bool)
    return jax.device_put(Prompts(context, mask, rewards=facts), jax.devices()[0])


def rewards(tokens: jax.Array, mask: jax.Array, context: RewardContext) -> Rewards:
    """Four objectives and two constraints by rules: n-gram overlap, likelihood under the reference, licensed
    placeholders, distinct tokens; one placeholder said, a token budget kept."""
    facts, table = context.prompts.rewards, context.frozen
    length = jnp.maximum(mask.sum(-1), 1)
    column = jnp.where(mask, table[tokens], -1)
    said = (column == facts["wanted"][:, None]).any(-1)
    below = jnp.tril(jnp.ones((tokens.shape[1], tokens.shape[1]), bool), -1)[None]
    repeated = ((tokens[:, :, None] == tokens[:, None, :]) & below).any(-1) & mask
    likely = jnp.zeros(length.shape) if context.logp_ref is None else jnp.where(mask, context.logp_ref, 0.0).sum(-1)
    last = partial(on_last_token, mask=mask)
    objectives = (
        overlap(tokens, mask, facts["reference"], jnp.ones_like(mask)),
        likely / length,
        licensed_share(tokens, mask, table, facts["licensed"]),
        1.0 - repeated.sum(-1) / length,
    )
    constraints = (said.astype(jnp.float32), (length <= tokens.shape[1] // 2).astype(jnp.float32))
    streams = len(objectives) + len(constraints)
    return Rewards(
        objectives=last(jnp.stack(objectives, axis=-1)),
        constraints=last(jnp.stack(constraints, axis=-1)),
        applies=jnp.ones((tokens.shape[0], streams), bool),
    )


def make_rollout(size: Size, config: StepConfig) -> Rollout:
    """A rollout of full-length random replies."""
    rng = np.random.default_rng(0)
    positions, count = (size.sequences, size.response), len(config.streams)
    tokens = rng.integers(2, size.vocab, (size.sequences, size.length)).astype(np.int32)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    uniform = -np.log(size.vocab).astype(np.float32)
    ref_logps = None
    if config.kl == "full":
        ref_logps = jax.nn.log_softmax(0.1 * normal(*positions, size.vocab))
    arrays: dict[str, Any] = dict(
        tokens=tokens,
        context_mask=np.ones((size.sequences, size.context), bool),
        resp_mask=np.ones(positions, bool),
        logp_old=uniform + 0.01 * normal(*positions),
        values_old=0.1 * normal(*positions, count),
        objectives=normal(*positions, len(config.objectives)),
        constraints=normal(*positions, len(config.constraints)),
        applies=np.ones((size.sequences, len(config.reward_streams)), bool),
        logp_ref=uniform + 0.01 * normal(*positions),
        ref_logps=ref_logps,
    )
    return jax.device_put(Rollout(**arrays), jax.devices()[0])
