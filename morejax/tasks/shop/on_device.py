"""The streams of the shop inside `morejax.iterate`: the true state travels with the prompts, the rest is computed.

From the packed case and the asked intents of every turn the right answer is derived, the sampled tokens are parsed and
judged, all in the program that samples and trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from morejax.iterate import RewardContext, RewardFn, Rewards
from morejax.models.split import Params
from morejax.tasks.device_rewards import clipped_likelihood, on_last_token, overlap
from morejax.tasks.shop import language
from morejax.tasks.shop.answers import gold_answers
from morejax.tasks.shop.claims import parse
from morejax.tasks.shop.context import TurnPrompts
from morejax.tasks.shop.dialogues import ShopSplit
from morejax.tasks.shop.ontology import FUNCTIONS
from morejax.tasks.shop.outcomes import conversion_reward
from morejax.tasks.shop.phrase_tables import Tables, build_tables
from morejax.tasks.shop.reasoning import judge
from morejax.tasks.shop.rewards import SOLD_TO
from morejax.tasks.shop.state import Case, map_leaves, take
from morejax.tasks.shop.tokenizer import EOS, vocabulary
from morejax.training.reward_heads import judge as judge_language

OBJECTIVES = ("concision", "empathy", "overlap", "conversion", "fluency", "naturalness")
CONSTRAINTS = FUNCTIONS
LEARNED = ("fluency", "naturalness")
"""Objectives that need the frozen language model."""


class ShopFacts(NamedTuple):
    """What is true of S turns: `Prompts.rewards`, leaves [S, ...]."""

    case: Case
    asked: Any
    """bool[S, I]."""
    upset: Any
    """bool[S]."""
    reference: Any
    """i32[S, R]: tokens of the corpus's reply, right-padded."""
    reference_mask: Any
    """bool[S, R]."""


class Judges(NamedTuple):
    """What the reward function reads besides: `Frozen.rewards`."""

    tables: Tables
    kind_words: Any
    """bool[V]."""
    fluency_range: Any = None
    """f32[2]: 5th and 95th percentile of the mean log-probability of corpus replies, nats."""
    language_model: Params | None = None
    head: Params | None = None


def shop_judges(**learned: Any) -> Judges:
    """The checker's tables on the device; `learned` are the other fields of `Judges`."""
    tables = map_leaves(jnp.asarray, build_tables())
    return Judges(tables, jnp.asarray(language.kind_table()), **learned)


def turn_facts(split: ShopSplit, prompts: Sequence[TurnPrompts], length: int) -> ShopFacts:
    """Facts about turns, in their order.

    Args:
      split: where they come from.
      prompts: the turns.
      length: R.

    Raises:
      ValueError: a corpus reply has more than R tokens.
    """
    longest = max(len(prompt.reference) for prompt in prompts)
    if longest > length:
        raise ValueError(f"a corpus reply has {longest} tokens, expected at most length = {length}")
    reference = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        reference[row, : len(prompt.reference)] = prompt.reference
    lengths = np.array([len(prompt.reference) for prompt in prompts])
    mask = np.arange(length)[None, :] < lengths[:, None]
    rows = [prompt.row for prompt in prompts]
    table = split.table
    return ShopFacts(take(table.case, rows), table.asked[rows], table.upset[rows], reference, mask)


def shop_rewards(
    objectives: Sequence[str] = ("concision", "empathy", "overlap"),
    constraints: Sequence[str] = CONSTRAINTS,
    graphdef: nnx.GraphDef | None = None,
    head_graphdef: nnx.GraphDef | None = None,
) -> RewardFn:
    """A reward function for `iterate` with these streams, in this order.

    Args:
      objectives, constraints: names out of `OBJECTIVES` and `CONSTRAINTS`.
      graphdef, head_graphdef: structure of the frozen language model and of the naturalness head; for `LEARNED` only.

    Raises:
      ValueError: an unknown stream, or a learned one without its model.
    """
    for flag, names, known in (("objectives", objectives, OBJECTIVES), ("constraints", constraints, CONSTRAINTS)):
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ValueError(f"{flag} has {', '.join(unknown)}, expected streams of the shop: {', '.join(known)}")
    learned = sorted(set(objectives) & set(LEARNED))
    if learned and (graphdef is None or head_graphdef is None):
        raise ValueError(f"objectives {', '.join(learned)} need graphdef and head_graphdef, at least one is None")

    def reward(tokens: jax.Array, mask: jax.Array, context: RewardContext) -> Rewards:
        streams = _streams(tokens, mask, context, "conversion" in objectives)
        if learned:
            streams |= _learned(graphdef, head_graphdef, tokens, mask, context)
        columns = [streams[name] for name in (*objectives, *constraints)]
        values = on_last_token(jnp.stack([value for value, _ in columns], axis=-1), mask)
        split = len(objectives)
        return Rewards(
            objectives=values[..., :split],
            constraints=values[..., split:],
            applies=jnp.stack([applies for _, applies in columns], axis=-1),
        )

    return reward


Columns = dict[str, tuple[jax.Array, jax.Array]]


def _streams(tokens: jax.Array, mask: jax.Array, context: RewardContext, selling: bool) -> Columns:
    """Reward f32[S] and applicability bool[S] of every stream that needs no model; conversion where it is wanted."""
    facts: ShopFacts = context.prompts.rewards
    judges: Judges = context.frozen
    gold = gold_answers(facts.case, facts.asked, jnp)
    said = mask & (tokens != vocabulary()[EOS])
    claims = parse(tokens, said, judges.tables, jnp)
    verdict = judge(claims, gold, jnp)
    everywhere = jnp.ones(mask.shape[:1], bool)
    columns: Columns = {
        name: (verdict.score[:, column], verdict.applies[:, column]) for column, name in enumerate(FUNCTIONS)
    }
    columns["concision"] = language.concision(said.sum(1), gold, jnp), everywhere
    needed = language.needs_empathy(gold, facts.asked, facts.upset)
    columns["empathy"] = language.empathy(tokens, said, judges.kind_words, jnp) * needed, needed
    columns["overlap"] = overlap(tokens, mask, facts.reference, facts.reference_mask), everywhere
    if selling:
        chance = conversion_reward(tokens, said, claims, gold, facts.asked, facts.upset, SOLD_TO, jnp)
        columns["conversion"] = chance, everywhere
    return columns


def _learned(graphdef, head_graphdef, tokens: jax.Array, mask: jax.Array, context: RewardContext) -> Columns:
    """Fluency and naturalness by one forward pass of the frozen language model."""
    prompts, judges = context.prompts, context.frozen
    logp, natural = judge_language(
        graphdef,
        head_graphdef,
        judges.language_model,
        judges.head,
        jnp.concatenate([prompts.tokens, tokens], axis=1),
        jnp.concatenate([prompts.mask, mask], axis=1),
        prompts.tokens.shape[1],
    )
    low, high = judges.fluency_range
    everywhere = jnp.ones(mask.shape[:1], bool)
    return {"fluency": (clipped_likelihood(logp, low, high), everywhere), "naturalness": (natural, everywhere)}
