"""Rollouts for PPO: replies sampled to whole dialogues, their rewards, and what the frozen models say of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from morejax import hosts
from morejax.config import StepConfig
from morejax.models.split import Params
from morejax.rollout import Rollout, Sample, SamplerConfig, compile_sampler
from morejax.state import TrainState
from morejax.training.assess import Assessment, Frozen
from morejax.training.batching import left_pad
from morejax.training.placement import ONE_DEVICE, Placement
from morejax.training.reward_heads import pack
from morejax.training.task import Task, TurnPrompts
from morejax.training.turn_by_turn import BLOCK, sample_turn_by_turn

if TYPE_CHECKING:
    from morejax.tasks.streams import StackedStreams
    from morejax.training.ppo_config import PPOConfig


@dataclass(frozen=True)
class Shapes:
    """Static sizes of a rollout: rows, context, reasoned context, reply."""

    turns: int
    context: int
    reasoned: int
    reply: int


def static_shapes(
    prompts: Sequence[Sequence[TurnPrompts]], turns: int, reply: int, multiple: int = 16, least: int = 0
) -> Shapes:
    """The smallest static sizes, in multiples of 16, that hold every prompt, and `least` tokens."""

    def longest(which: str) -> int:
        size = max(least, *(len(getattr(prompt, which)) for dialogue in prompts for prompt in dialogue))
        return -(-size // multiple) * multiple

    return Shapes(turns, longest("direct"), longest("reasoned"), reply)


def score_replies(
    task: Task,
    prompts: Sequence[TurnPrompts],
    replies: Sequence[tuple[int, ...]],
    lm_logp: np.ndarray,
    natural: np.ndarray,
    reply: int,
) -> StackedStreams:
    """Rewards of S replies to whole dialogues; each process scores its share of the dialogues and gets all rewards.

    Args:
        task: streams.
        prompts, replies: S turns, those of a dialogue together, in order.
        lm_logp, natural: f32[S], what the frozen models say.
        reply: T.

    Raises:
        NonFiniteStream: a reward is NaN or infinite.
        HostError: that, or another failure, in another process.
    """

    def score(rows: slice) -> StackedStreams:
        return task.rewards(task.sampled(prompts[rows], replies[rows], lm_logp[rows], natural[rows]), reply)

    if jax.process_count() == 1:
        return score(slice(None))
    starts = [row for row, prompt in enumerate(prompts) if prompt.turn == 0] + [len(prompts)]
    shares = [hosts.own_share(len(starts) - 1, process) for process in range(jax.process_count())]
    counts = [starts[share.stop] - starts[share.start] for share in shares]
    own = shares[jax.process_index()]
    # A process without a dialogue scores the first one for its arrays' shapes, and hands on none of it.
    first, end = (own.start, own.stop) if own else (0, 1)
    scored = hosts.together(lambda: score(slice(starts[first], starts[end])))
    arrays = {
        name: getattr(scored, name)[: counts[jax.process_index()]]
        for name in ("rewards", "applies", "scores", "weights")
    }
    return replace(scored, **hosts.gather_rows(arrays, counts))


def plan(sizes: Sequence[int], turns: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of dialogue numbers with at most `turns` turns each; every epoch in a new random order.

    A pure function of its arguments: skipping n batches resumes after n iterations.

    Raises:
        ValueError: a dialogue alone has more turns than a batch holds.
    """
    if max(sizes) > turns:
        raise ValueError(
            f"--ppo.turns {turns} does not hold the longest dialogue ({max(sizes)} turns, --ppo.samples counted)"
        )
    epoch, batch, filled = 0, [], 0
    while True:
        for number in np.random.default_rng([seed, epoch]).permutation(len(sizes)):
            if filled + sizes[number] > turns:
                yield batch
                batch, filled = [], 0
            batch.append(int(number))
            filled += sizes[number]
        epoch += 1


def positions(prompts: Sequence[TurnPrompts], rows: int) -> dict[str, np.ndarray]:
    """Where the rows of a rollout stand: `group`, `dialogue` and `turn`, each i32[rows].

    Samples of one turn share a group, numbered by its first row; samples of a dialogue are dialogues of their own.
    Empty rows beyond the prompts are alone in everything.
    """
    group, dialogue, turn = np.arange(rows), np.arange(rows) + rows, np.zeros(rows, int)
    first: dict[tuple[str, int], int] = {}
    began = 0
    for row, prompt in enumerate(prompts):
        began = row if prompt.turn == 0 else began
        group[row] = first.setdefault((prompt.dialogue.id, prompt.turn), row)
        dialogue[row], turn[row] = began, prompt.turn
    return {"group": group.astype(np.int32), "dialogue": dialogue.astype(np.int32), "turn": turn.astype(np.int32)}


def build_rollout(
    task: Task,
    prompts: Sequence[TurnPrompts],
    sample: Sample,
    tokens: np.ndarray,
    mask: np.ndarray,
    context_mask: np.ndarray,
    assessed: dict[str, Any],
    step: StepConfig,
    shapes: Shapes,
    over_turns: bool = False,
    placement: Placement = ONE_DEVICE,
) -> tuple[Rollout, int]:
    """Score the sampled replies on the hosts and put everything into one `Rollout`; rows beyond the prompts are empty.

    The sample's tokens and mask are host arrays, whole; everything else of it (but for samples made turn by turn), and
    what is assessed, lies on devices.

    Returns:
        The rollout and the number of reply tokens in it.
    """
    rows = len(prompts)
    drawn, valid = np.asarray(sample.tokens)[:rows], np.asarray(sample.mask)[:rows]
    replies = [tuple(int(t) for t in ids[ok]) for ids, ok in zip(drawn, valid, strict=True)]
    lm_logp, natural = (hosts.to_host(assessed[name])[:rows] for name in ("lm_logp", "natural"))
    streams = score_replies(task, prompts, replies, lm_logp, natural, shapes.reply)
    room = shapes.turns - rows

    def padded(array):
        return np.pad(array, [(0, room)] + [(0, 0)] * (array.ndim - 1))

    resp_mask = np.asarray(sample.mask) & (np.arange(shapes.turns) < rows)[:, None]
    split = len(step.objectives)
    rewards = padded(streams.rewards)
    from_host = {
        "tokens": tokens,
        "context_mask": context_mask,
        "resp_mask": resp_mask,
        "objectives": rewards[..., :split],
        "constraints": rewards[..., split:],
        "applies": padded(streams.applies),
        "scores": padded(streams.scores),
        "score_weights": padded(streams.weights),
    }
    needed = ("group",) if step.baseline != "critic" or step.multipliers == "hinge" else ()
    needed += ("dialogue", "turn") if over_turns else ()
    if needed:
        where = positions(prompts, shapes.turns)
        from_host |= {name: where[name] for name in needed}
    on_devices = {
        "logp_old": sample.logp,
        "values_old": assessed["values"],
        "logp_ref": assessed["logp_ref"],
        "ref_logps": assessed.get("ref_logps"),
    }
    from_host = from_host if placement.mesh is not None else jax.device_put(from_host)
    return Rollout(**placement.rows(from_host | on_devices)), int(resp_mask.sum())


class Sampler:
    """Prompts to rollouts, with everything that is compiled once.

    Args:
        task: streams and tokens.
        state: whose structure of the policy is sampled from.
        frozen: what rollouts are judged by.
        step: structure of the step that will read the rollouts.
        shapes: static sizes.
        ppo: which context the reference reads.
        placement: where parameters and rows lie.
    """

    def __init__(
        self,
        task: Task,
        state: TrainState,
        frozen: Frozen,
        step: StepConfig,
        shapes: Shapes,
        ppo: PPOConfig,
        placement: Placement = ONE_DEVICE,
    ):
        # A policy that writes its reasoning is compared with a reference that reads the same.
        self.reasoned = ppo.ref_context == "reasoned" and not task.aloud
        if not self.reasoned:
            # The reference then reads the policy's own context.
            shapes = replace(shapes, reasoned=shapes.context)
        self.task, self.frozen, self.step, self.shapes = task, frozen, step, shapes
        self.placement = placement
        settings = SamplerConfig(
            max_new_tokens=shapes.reply,
            eos_id=task.eos_id,
            pad_id=task.pad_id,
            values="value" in state.params and "trunk" not in state.params["value"],
        )
        # Read once: whether later turns count decides what a rollout holds, and so what is compiled.
        self._over_turns = bool((hosts.to_host(state.hyper.gamma_turn) > 0).any())
        self._sample = placement.sampler(compile_sampler(state.structure, settings))
        self._assess = Assessment(state.structure, frozen, step, shapes.reply, placement)

    def __call__(self, params: Params, prompts: Sequence[TurnPrompts], key: jax.Array) -> tuple[Rollout, int]:
        """One rollout of the policy on these prompts."""
        shapes, pad = self.shapes, self.task.pad_id
        sample = None
        if self.task.turn_by_turn:
            prompts, sample = sample_turn_by_turn(
                partial(self._sample, params),
                self.task,
                prompts,
                shapes.context,
                shapes.turns,
                key,
                width=self.placement.whole_rows(BLOCK),
            )
        direct = [prompt.direct for prompt in prompts]
        direct += [direct[0]] * (shapes.turns - len(prompts))
        context, context_mask = left_pad(direct, shapes.context, pad)
        if sample is None:
            sample = self._sample(params, context, context_mask, key)
        drawn, valid = hosts.to_host((sample.tokens, sample.mask))
        sample = sample._replace(tokens=drawn, mask=valid)
        tokens = np.concatenate([context, drawn], axis=1)
        mask = np.concatenate([context_mask, valid], axis=1)
        replies = [tuple(ids[ok]) for ids, ok in zip(drawn, valid, strict=True)]
        if self.reasoned:
            sources = [prompt.reasoned for prompt in prompts]
            sources += [sources[0]] * (shapes.turns - len(prompts))
            ref_tokens, ref_mask = pack(sources, replies, shapes.reasoned, shapes.reply, pad, shapes.turns)
        else:
            ref_tokens, ref_mask = tokens, mask
        spoken = self._spoken(prompts, replies) if self.task.aloud else ()
        assessed = self._assess(params, sample.values, tokens, mask, ref_tokens, ref_mask, spoken)
        return build_rollout(
            self.task,
            prompts,
            sample,
            tokens,
            mask,
            context_mask,
            assessed,
            self.step,
            shapes,
            self._over_turns,
            self.placement,
        )

    def _spoken(
        self, prompts: Sequence[TurnPrompts], written: Sequence[tuple[int, ...]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of what judges of language read: prompts and replies without the reasoning between them."""
        said = [self.task.spoken(prompt, ids) for prompt, ids in zip(prompts, written, strict=False)]
        said += [said[0]] * (self.shapes.turns - len(said))
        asked, replies = zip(*said, strict=True)
        shapes = self.shapes
        return pack(asked, replies, shapes.context, shapes.reply, self.task.pad_id, shapes.turns)
