"""The streams of the shop on the host: six constraints on what a reply says and does, language objectives on how.

| stream         | kind       | reward of a turn                                                          |
|----------------|------------|---------------------------------------------------------------------------|
| eligibility    | constraint | 0/1, see `reasoning`; also credit_limit, factual_recall, numeric,          |
|                |            | disclosure, action                                                        |
| concision      | objective  | min(1, token budget of what is due / length)                              |
| empathy        | objective  | kind words where the user complains, objects or gets a no                 |
| overlap        | objective  | sentence BLEU-4 against the corpus's reply, on token ids                  |
| conversion     | objective  | chance that the average user of `SOLD_TO` buys after it, right or wrong   |

Conversion is what a seller at any price would learn from: it needs the constraints beside it.

Fluency and naturalness are registered by `morejax.tasks.multiwoz.rewards`; they know no task. The device form of all is
in `on_device`. `StreamContext.extra["shop"]` is the `ShopSplit` that the sampled turns come from, and the streams'
`SampledTurn`s hold its dialogues and turns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from morejax.tasks.device_rewards import overlap_on_host
from morejax.tasks.shop import language
from morejax.tasks.shop.claims import parse
from morejax.tasks.shop.dialogues import ShopSplit
from morejax.tasks.shop.ontology import FUNCTIONS
from morejax.tasks.shop.outcomes import conversion_reward
from morejax.tasks.shop.phrase_tables import build_tables
from morejax.tasks.shop.reasoning import Verdict, judge
from morejax.tasks.shop.state import take
from morejax.tasks.shop.tokenizer import EOS, build_tokenizer, encode_batch, vocabulary
from morejax.tasks.shop.user_model import PATIENT
from morejax.tasks.streams import SampledBatch, StreamContext, StreamValues, register_stream

CONSTRAINTS = FUNCTIONS
OBJECTIVES = ("concision", "empathy", "overlap", "conversion", "fluency", "naturalness")
SOLD_TO = PATIENT
"""Population that conversion is reckoned for; an A/B test of it needs the other one too."""


def pad_replies(replies: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Replies as i32[N, T], right-padded, and their mask; `<eos>` and what follows are masked."""
    end = vocabulary()[EOS]
    cut = [ids[: ids.index(end)] if end in ids else ids for ids in replies]
    tokens = np.zeros((len(cut), max(1, *map(len, cut))), np.int32)
    mask = np.arange(tokens.shape[1])[None, :] < np.array([len(ids) for ids in cut])[:, None]
    tokens[mask] = [token for ids in cut for token in ids]
    return tokens, mask


def judge_texts(texts: list[str], gold: Any) -> Verdict:
    """Scores replies given as text against N right answers: tokenise, parse, judge."""
    tokens, mask = pad_replies(encode_batch(build_tokenizer(), texts))
    return judge(parse(tokens, mask, build_tables()), gold)


def _shop(context: StreamContext) -> ShopSplit:
    split = context.extra.get("shop")
    if not isinstance(split, ShopSplit):
        raise ValueError(f"StreamContext.extra['shop'] is {type(split).__name__}, expected the ShopSplit of the turns")
    return split


def _rows(batch: SampledBatch) -> np.ndarray:
    return np.array([getattr(turn.turn, "row") for turn in batch.turns])  # noqa: B009 (a ShopTurn)


def _shared(batch: SampledBatch, context: StreamContext) -> dict[str, Any]:
    """Tokens, gold and verdict of a batch, worked out once for all streams."""
    if "shop" not in batch.shared:
        gold = take(_shop(context).gold, _rows(batch))
        tokens, mask = pad_replies([tuple(turn.tokens) for turn in batch.turns])
        claims = parse(tokens, mask, build_tables())
        verdict = judge(claims, gold)
        batch.shared["shop"] = {"tokens": tokens, "mask": mask, "gold": gold, "claims": claims, "verdict": verdict}
    return batch.shared["shop"]


def _reasoning_stream(column: int):
    def stream(batch: SampledBatch, context: StreamContext) -> StreamValues:
        verdict: Verdict = _shared(batch, context)["verdict"]
        return StreamValues(verdict.score[:, column], applies=verdict.applies[:, column])

    name = FUNCTIONS[column]
    stream.__name__ = stream.__qualname__ = name
    stream.__doc__ = f"Reasoning function {name} of the shop, 0 or 1."
    return stream


for _column, _name in enumerate(FUNCTIONS):
    register_stream(_name, kind="constraint")(_reasoning_stream(_column))


@register_stream("concision", kind="objective")
def concision(batch: SampledBatch, context: StreamContext) -> StreamValues:
    """min(1, token budget of what is due / length)."""
    shared = _shared(batch, context)
    return StreamValues(language.concision(shared["mask"].sum(1), shared["gold"]))


@register_stream("empathy", kind="objective")
def empathy(batch: SampledBatch, context: StreamContext) -> StreamValues:
    """Kind words where the user complains, objects or gets a no; elsewhere it does not apply."""
    shared, table, rows = _shared(batch, context), _shop(context).table, _rows(batch)
    applies = language.needs_empathy(shared["gold"], table.asked[rows], table.upset[rows])
    return StreamValues(language.empathy(shared["tokens"], shared["mask"], language.kind_table()), applies=applies)


@register_stream("overlap", kind="objective")
def overlap(batch: SampledBatch, context: StreamContext) -> StreamValues:
    """Sentence BLEU-4 of the sampled reply against the corpus's, on token ids with their `<eos>`."""
    end = vocabulary()[EOS]
    references = encode_batch(build_tokenizer(), [turn.turn.delex for turn in batch.turns])
    scores = [
        overlap_on_host(turn.tokens, (*reference, end)) for turn, reference in zip(batch.turns, references, strict=True)
    ]
    return StreamValues(np.array(scores, np.float32))


@register_stream("conversion", kind="objective")
def conversion(batch: SampledBatch, context: StreamContext) -> StreamValues:
    """Chance that the average user of `SOLD_TO` buys after this reply, whether it is right or not."""
    shared, table, rows = _shared(batch, context), _shop(context).table, _rows(batch)
    return StreamValues(
        conversion_reward(
            shared["tokens"],
            shared["mask"],
            shared["claims"],
            shared["gold"],
            table.asked[rows],
            table.upset[rows],
            SOLD_TO,
        )
    )
