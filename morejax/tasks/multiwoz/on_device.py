"""The MultiWOZ streams that can run on the device, as a reward function for `morejax.iterate`.

What a turn licenses and owes is known before anything is sampled: `turn_facts` asks database and scorer once, on the
host. Inform and Success look at a whole dialogue through the scorer and stay on the split path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from morejax.iterate import RewardContext, RewardFn, Rewards
from morejax.models.split import Params
from morejax.tasks.device_rewards import clipped_likelihood, licensed_share, on_last_token, overlap, slot_recall
from morejax.tasks.multiwoz.canonical import PLACEHOLDER_SPELLINGS
from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.rewards import due_slots, judge_dialogue
from morejax.tasks.multiwoz.rewards import licensed_share as licensed_share_of_text
from morejax.tasks.streams import SampledTurn
from morejax.training.reward_heads import judge

if TYPE_CHECKING:
    from morejax.tasks.multiwoz.task import TurnPrompts

OBJECTIVES = ("likeness", "fluency", "faithfulness", "naturalness")
CONSTRAINTS = ("slots",)


class TurnFacts(NamedTuple):
    """What is known about S turns before they are answered: `Prompts.rewards`."""

    reference: Any
    """i32[S, R]: tokens of the corpus reply, right-padded."""
    reference_mask: Any
    """bool[S, R]."""
    licensed: Any
    """bool[S, P]: placeholders that state and database license."""
    due: Any
    """bool[S, P]: placeholders of slots that are due."""


class Judges(NamedTuple):
    """What the reward function reads besides: `Frozen.rewards`."""

    table: Any
    """i32[V], see `device_rewards.placeholder_table`."""
    fluency_range: Any
    """f32[2]: 5th and 95th percentile of the mean log-probability of corpus replies, nats."""
    language_model: Params
    head: Params


def turn_facts(
    dialogues: Sequence[Sequence[TurnPrompts]], database: Database, names: Sequence[str], length: int
) -> TurnFacts:
    """Facts about all turns of whole dialogues, in order.

    Args:
      dialogues: the prompts of each dialogue's turns.
      database: answers what states ask.
      names: the P placeholders, unified.
      length: R; a longer corpus reply is an error.

    Raises:
      ValueError: a corpus reply has more than R tokens.
    """
    rows = [row for prompts in dialogues for row in _facts_of(prompts, database, names)]
    longest = max(len(ids) for ids, _, _ in rows)
    if longest > length:
        raise ValueError(f"a corpus reply has {longest} tokens, expected at most length = {length}")
    reference = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for row, (ids, _, _) in enumerate(rows):
        reference[row, : len(ids)], mask[row, : len(ids)] = ids, True
    return TurnFacts(reference, mask, np.array([row[1] for row in rows]), np.array([row[2] for row in rows]))


def _facts_of(prompts: Sequence[TurnPrompts], database: Database, names: Sequence[str]):
    """Reference, licensed and due of every turn of one dialogue."""
    turns = []
    for prompt in prompts:
        turn = prompt.dialogue.turns[prompt.turn]
        turns.append(SampledTurn(prompt.dialogue, turn, turn.delex, prompt.reference, prompt.state))
    # Active domains follow from the states, whatever is said: the corpus replies stand in for the sampled ones.
    judged = judge_dialogue(turns, database).reference
    for turn, scored in zip(turns, judged.turns, strict=True):
        due = due_slots(turn, scored, scored)
        # A reply of one placeholder has the share 1 or 0.
        alone = (replace(turn, text=f"[{PLACEHOLDER_SPELLINGS[name][0]}]") for name in names)
        licensed = [licensed_share_of_text(reply, database) for reply in alone]
        yield turn.tokens, np.array(licensed) > 0.5, np.array([name in due for name in names])


def multiwoz_rewards(
    graphdef: nnx.GraphDef,
    head_graphdef: nnx.GraphDef,
    objectives: Sequence[str] = OBJECTIVES,
    constraints: Sequence[str] = CONSTRAINTS,
) -> RewardFn:
    """A reward function for `iterate` with these streams, in this order.

    Args:
      graphdef: structure of the frozen language model.
      head_graphdef: structure of the naturalness head.
      objectives, constraints: names out of `OBJECTIVES` and `CONSTRAINTS`.

    Raises:
      ValueError: a stream that has no device form.
    """
    for flag, names, known in (("objectives", objectives, OBJECTIVES), ("constraints", constraints, CONSTRAINTS)):
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ValueError(
                f"{flag} has {', '.join(unknown)}, expected streams with a device form: {', '.join(known)}"
            )

    def reward(tokens: jax.Array, mask: jax.Array, context: RewardContext) -> Rewards:
        facts: TurnFacts = context.prompts.rewards
        judges: Judges = context.frozen
        streams = _streams(graphdef, head_graphdef, tokens, mask, context, facts, judges)
        columns = [streams[name] for name in (*objectives, *constraints)]
        rewards = jnp.stack([reward for reward, _ in columns], axis=-1)
        split = len(objectives)
        return Rewards(
            objectives=rewards[..., :split],
            constraints=rewards[..., split:],
            applies=jnp.stack([applies for _, applies in columns], axis=-1),
        )

    return reward


def _streams(graphdef, head_graphdef, tokens, mask, context: RewardContext, facts: TurnFacts, judges: Judges):
    """Reward f32[S, T] and applicability bool[S] of every stream; XLA leaves out what nobody asks for."""
    prompts = context.prompts
    logp, natural = judge(
        graphdef,
        head_graphdef,
        judges.language_model,
        judges.head,
        jnp.concatenate([prompts.tokens, tokens], axis=1),
        jnp.concatenate([prompts.mask, mask], axis=1),
        prompts.tokens.shape[1],
    )
    low, high = judges.fluency_range
    of_replies = {
        "likeness": overlap(tokens, mask, facts.reference, facts.reference_mask),
        "fluency": clipped_likelihood(logp, low, high),
        "faithfulness": licensed_share(tokens, mask, judges.table, facts.licensed),
        "naturalness": natural,
    }
    everywhere = jnp.ones(mask.shape[:1], bool)
    streams = {name: (on_last_token(value, mask), everywhere) for name, value in of_replies.items()}
    owes = facts.due.any(-1)
    return streams | {"slots": (slot_recall(tokens, mask, judges.table, facts.due), owes)}
