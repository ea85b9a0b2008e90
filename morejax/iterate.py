"""A whole iteration as one pure function: sample, reference, rewards, rollout, train step; one XLA program.

    (state, prompts, frozen) -> (state, metrics)

Nothing leaves the device in between, so rewards must be jittable: a reward that needs the host (a database, a scorer)
goes the split way of `morejax.training.ppo`, which calls the same parts one by one and gets the same numbers.

Shape letters: S sequences, C context, T response positions, K objectives, M constraints, H streams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from morejax.compile import SharedBase
from morejax.config import StepConfig
from morejax.models.response import response_hidden, response_values
from morejax.models.split import Params, merge, whole
from morejax.rollout import Rollout, Sample, SamplerConfig, sample, token_logp
from morejax.sharding import rollout_sharding, state_shardings
from morejax.state import TrainState
from morejax.step import train_step


class Prompts(struct.PyTreeNode):
    """What one iteration answers; every leaf has the sequences in front."""

    tokens: jax.Array
    """i32[S, C]: left-padded contexts of the policy."""
    mask: jax.Array
    """bool[S, C]: their real tokens."""
    ref_tokens: jax.Array | None = None
    """i32[S, C']: left-padded contexts of the reference, where it reads others (a scaffold that reasons); None: the
    same."""
    ref_mask: jax.Array | None = None
    """bool[S, C']: their real tokens."""
    rewards: Any = None
    """Pytree of whatever the rewards need to know about each sequence, leaves [S, ...]."""
    group: jax.Array | None = None
    """i32[S], as in `Rollout`; `dialogue` and `turn` likewise."""
    dialogue: jax.Array | None = None
    turn: jax.Array | None = None


class Frozen(struct.PyTreeNode):
    """What an iteration reads and never changes."""

    params: Params | None
    """Parameters of the reference; None needs `kl = none`."""
    graphdef: nnx.GraphDef | None = struct.field(pytree_node=False)
    """Its structure."""
    rewards: Any = None
    """Pytree of arrays for the reward function: parameters of reward models, tables of the vocabulary."""


class RewardContext(NamedTuple):
    """What a reward may look at besides the reply."""

    prompts: Prompts
    frozen: Any
    """`Frozen.rewards`."""
    logp_ref: jax.Array | None
    """f32[S, T]: log-probability of each token under the reference, nats."""


class Rewards(NamedTuple):
    """Verdict on S replies, in the layout of a `Rollout`."""

    objectives: jax.Array
    """f32[S, T, K]."""
    constraints: jax.Array
    """f32[S, T, M]."""
    applies: jax.Array
    """bool[S, K+M]."""
    scores: jax.Array | None = None
    """f32[S, K+M]; None: sums of the rewards."""
    score_weights: jax.Array | None = None
    """f32[S, K+M]; None: all alike."""


RewardFn = Callable[[jax.Array, jax.Array, RewardContext], Rewards]
"""(tokens i32[S, T], mask bool[S, T], context) -> Rewards; pure and jittable."""


def iterate(
    state: TrainState,
    prompts: Prompts,
    frozen: Frozen,
    reward_fn: RewardFn,
    step_config: StepConfig,
    sampler_config: SamplerConfig,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One iteration of constrained multi-objective PPO: sample with a KV cache, judge, take one `train_step`.

    Args:
      state: its key is split: one half samples, the other is kept.
      prompts: S sequences.
      frozen: the reference, and what rewards read.
      reward_fn: judges the sampled replies; static.
      step_config, sampler_config: static. Values of a critic that shares the policy's trunk come out of the sampler,
        whatever `sampler_config.values` says.

    Returns:
      The new state, and the metrics of the step with `response_tokens`, the number of sampled tokens.

    Raises:
      ValueError: a temperature other than 1, a missing reference, or shapes that do not fit.
    """
    drawn, key = draw_replies(state, prompts, sampler_config)
    rollout = build_rollout(state, prompts, frozen, drawn, reward_fn, step_config)
    state, metrics = train_step(state.replace(key=key), rollout, step_config)
    return state, metrics | {"response_tokens": drawn.mask.sum().astype(jnp.float32)}


def iterate_many(
    state: TrainState,
    prompts: Prompts,
    frozen: Frozen,
    reward_fn: RewardFn,
    step_config: StepConfig,
    sampler_config: SamplerConfig,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """N iterations in one program: `lax.scan` of `iterate` over prompts stacked on a leading axis.

    Args:
      prompts: leaves [N, S, ...].
      state, frozen, reward_fn, step_config, sampler_config: as in `iterate`.

    Returns:
      The state after N iterations, and their metrics, each f32[N].
    """

    def body(state: TrainState, one: Prompts):
        return iterate(state, one, frozen, reward_fn, step_config, sampler_config)

    return jax.lax.scan(body, state, prompts)


def compile_iteration(
    reward_fn: RewardFn,
    step_config: StepConfig,
    sampler_config: SamplerConfig,
    *,
    many: bool = False,
    mesh: Mesh | None = None,
    state: TrainState | None = None,
    donate: bool = True,
    compiler_options: dict[str, Any] | None = None,
):
    """`iterate` (or `iterate_many`) jitted with everything static bound, compiled once for each shape of prompts.

    Args:
      reward_fn, step_config, sampler_config: as in `iterate`.
      many: take prompts with a leading axis N and run N iterations a call.
      mesh: a `(data, fsdp, tensor)` mesh: sequences are cut along data and fsdp, the state by the rules of
        `morejax.sharding`. None keeps everything on one device.
      state: needed with a mesh, to derive its shardings, and for adapters on frozen weights (LoRA), which are then
        neither donated nor returned: `Frozen.params` may be the same arrays. An abstract state will do.
      donate: give the old state's memory to the new one; the old state is then gone.
      compiler_options: of XLA, for this program.

    Returns:
      A function (state, prompts, frozen) -> (state, metrics).

    Raises:
      ValueError: a mesh without a state.
    """
    function = partial(
        _bound, iterate_many if many else iterate, reward_fn, step_config, _checked_sampler(sampler_config)
    )
    donated = (0,) if donate else ()
    if state is not None and state.frozen is not None:
        return SharedBase(function, (_rows(many), None), mesh, state, donate, compiler_options)
    if mesh is None:
        return jax.jit(function, donate_argnums=donated, compiler_options=compiler_options)
    if state is None:
        raise ValueError("compile_iteration on a mesh needs the state (or jax.eval_shape of it) to lay it out")
    shardings = state_shardings(mesh, state)
    return jax.jit(
        function,
        in_shardings=(shardings, _rows(many)(mesh), None),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=donated,
        compiler_options=compiler_options,
    )


def _rows(many: bool) -> Callable[[Mesh], NamedSharding]:
    """Where prompts lie: sequences are cut, iterations are not."""

    def place(mesh: Mesh) -> NamedSharding:
        rows = rollout_sharding(mesh)
        return NamedSharding(mesh, PartitionSpec(None, *rows.spec)) if many else rows

    return place


def _bound(function, reward_fn, step_config, sampler_config, state, prompts, frozen):
    return function(state, prompts, frozen, reward_fn, step_config, sampler_config)


def _checked_sampler(config: SamplerConfig) -> SamplerConfig:
    """A sampler that draws from the policy itself, one reply to each prompt."""
    for name, wanted in (
        ("temperature", 1.0),
        ("top_k", 0),
        ("top_p", 1.0),
        ("min_p", 0.0),
        ("repetition_penalty", 1.0),
    ):
        if getattr(config, name) != wanted:
            raise ValueError(
                f"sampler.{name} is {getattr(config, name)}, expected {wanted:g}: the step takes the sampler's "
                "log-probabilities for the policy's own, and its replies for draws from it"
            )
    if config.samples != 1:
        raise ValueError(
            f"sampler.samples is {config.samples}, expected 1: for groups repeat the prompts and number them in "
            "Prompts.group"
        )
    return config


def draw_replies(state: TrainState, prompts: Prompts, config: SamplerConfig) -> tuple[Sample, jax.Array]:
    """Replies of the policy, with the values of a critic on its trunk, and the key that is left.

    Raises:
      ValueError: a sampler that draws from something else than the policy, or several replies to a prompt.
    """
    key, sample_key = jax.random.split(state.key)
    config = replace(_checked_sampler(config), values=shares_trunk(state.params))
    params = whole(state.graphdef, state.params)
    return sample(state.structure, params, prompts.tokens, prompts.mask, sample_key, config), key


def shares_trunk(params: Params) -> bool:
    """Is there a critic that reads the policy's hidden states?"""
    return "value" in params and "trunk" not in params["value"]


def build_rollout(
    state: TrainState,
    prompts: Prompts,
    frozen: Frozen,
    drawn: Sample,
    reward_fn: RewardFn,
    config: StepConfig,
) -> Rollout:
    """Everything that is known about sampled replies: reference, values, rewards.

    Args:
      state: the policy that sampled; its critic gives the values that the sampler did not.
      prompts, frozen, reward_fn: as in `iterate`.
      drawn: the replies.
      config: of the step that the rollout is for.

    Returns:
      The rollout, on the device.

    Raises:
      ValueError: `kl` needs a reference and there is none.
    """
    logp_ref, ref_logps = reference_logps(prompts, frozen, drawn, config)
    rewards = reward_fn(drawn.tokens, drawn.mask, RewardContext(prompts, frozen.rewards, logp_ref))
    return Rollout(
        tokens=jnp.concatenate([prompts.tokens, drawn.tokens], axis=1),
        context_mask=prompts.mask,
        resp_mask=drawn.mask,
        logp_old=drawn.logp,
        values_old=drawn.values if drawn.values is not None else critic_values(state, prompts, drawn),
        objectives=rewards.objectives,
        constraints=rewards.constraints,
        applies=rewards.applies,
        logp_ref=logp_ref,
        ref_logps=ref_logps,
        scores=rewards.scores,
        score_weights=rewards.score_weights,
        group=prompts.group,
        dialogue=prompts.dialogue,
        turn=prompts.turn,
    )


def reference_logps(
    prompts: Prompts, frozen: Frozen, drawn: Sample, config: StepConfig
) -> tuple[jax.Array | None, jax.Array | None]:
    """The reference's log-probabilities of the sampled tokens f32[S, T] and, for `kl = full`, of all f32[S, T, V].

    Raises:
      ValueError: `kl` needs a reference and there is none.
    """
    if frozen.params is None:
        if config.kl != "none":
            raise ValueError(f"step.kl = {config.kl} needs the parameters of a reference, Frozen.params is None")
        return None, None
    tokens, mask = prompts.tokens, prompts.mask
    if prompts.ref_tokens is not None:
        if prompts.ref_mask is None:
            raise ValueError("Prompts.ref_tokens needs Prompts.ref_mask, which is None")
        tokens, mask = prompts.ref_tokens, prompts.ref_mask
    context = tokens.shape[1]
    model = merge(frozen.graphdef, frozen.params)  # type: ignore[arg-type]
    read = jnp.concatenate([tokens, drawn.tokens], axis=1), jnp.concatenate([mask, drawn.mask], axis=1)
    hidden, _ = response_hidden(model, *read, context)
    logps = jax.nn.log_softmax(model.logits(hidden).astype(jnp.float32), axis=-1)
    return token_logp(logps, drawn.tokens), logps if config.kl == "full" else None


def critic_values(state: TrainState, prompts: Prompts, drawn: Sample) -> jax.Array | None:
    """Values f32[S, T, H] before every response token by a forward pass of the critic; None without critic."""
    if "value" not in state.params:
        return None
    model = merge(state.graphdef, state.params)
    tokens = jnp.concatenate([prompts.tokens, drawn.tokens], axis=1)
    mask = jnp.concatenate([prompts.mask, drawn.mask], axis=1)
    # A critic on a trunk of its own does not read the policy's hidden states: XLA leaves that forward pass out.
    context = prompts.tokens.shape[1]
    return response_values(model, tokens, mask, response_hidden(model, tokens, mask, context)[1], context)
