"""The reward streams of MultiWOZ: constraints on what a reply achieves, objectives on how it is said.

| stream       | kind       | reward of a turn                                                                     |
|--------------|------------|--------------------------------------------------------------------------------------|
| inform       | constraint | change in the dialogue's Inform that this reply makes against the corpus reply       |
| success      | constraint | the same for Success                                                                 |
| slots        | constraint | recall of the goal's slots that are due in this turn, at the tokens that say them    |
| restraint    | constraint | share of the offers and facts of a reply that the corpus reply gives here, too       |
| likeness     | objective  | sentence BLEU against the corpus reply                                               |
| corpus_bleu  | objective  | what the reply does for the BLEU of the whole rollout                                |
| fluency      | objective  | likelihood under a frozen language model, clipped to the range of corpus replies     |
| faithfulness | objective  | share of placeholders that state and database license                                |
| naturalness  | objective  | probability that a human wrote the reply, from the reward head                       |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from sacrebleu.metrics import BLEU

from morejax.tasks.corpus_bleu import bleu_shares
from morejax.tasks.multiwoz.canonical import REQUESTABLES, VENUE_DOMAINS
from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.normalise import PLACEHOLDER, mentions, normalise_predicted_state, unify
from morejax.tasks.multiwoz.records import Goal, State
from morejax.tasks.multiwoz.scorer import DialogueScore, TurnScore, estimate_domains, judge
from morejax.tasks.streams import SampledBatch, SampledTurn, StreamContext, StreamValues, register_stream

CONSTRAINTS = ("inform", "success", "slots")
OBJECTIVES = ("likeness", "fluency", "faithfulness", "naturalness")

T = TypeVar("T")

_DECISIVE = frozenset({"NAME", *REQUESTABLES})


# Inform and Success


@dataclass(frozen=True)
class Judged:
    """One sampled dialogue under the standard scorer.

    Attributes:
        sampled: score of the sampled replies.
        reference: score of the corpus replies in the same states.
        with_reply, without: per turn, the scores between which its reply decides.
    """

    sampled: DialogueScore
    reference: DialogueScore
    with_reply: tuple[DialogueScore, ...]
    without: tuple[DialogueScore, ...]


def judge_dialogue(turns: Sequence[SampledTurn], database: Database, *, turn_by_turn: bool = False) -> Judged:
    """Scores a sampled dialogue, its corpus replies, and what each sampled reply changes.

    With y the sampled replies and r the corpus replies, reply t decides between S(y) and S(y with y_t replaced by r_t).
    Sampled turn by turn, the later replies knew of y_t, so it is S(y_0 .. y_t, r_t+1 ..) and S(y_0 .. y_t-1, r_t ..).

    Args:
        turns: all turns of one dialogue in order.
        database: answers the queries of states and goal.
        turn_by_turn: were replies sampled after the model's own earlier ones?
    """
    states = [scorer_state(turn) for turn in turns]
    domains, booked = estimate_domains(states), [turn.turn.booked for turn in turns]
    said = [mentions(turn.text) & _DECISIVE for turn in turns]
    reference = [mentions(turn.turn.delex) & _DECISIVE for turn in turns]

    def score(mentioned: Sequence[frozenset[str]]) -> DialogueScore:
        return judge(mentioned, states, domains, turns[0].dialogue.goal, booked, database)

    sampled, of_people = score(said), score(reference)
    if turn_by_turn:
        begun = [of_people]
        for t in range(len(turns)):
            # A reply that mentions what the corpus reply mentions changes nothing.
            begun.append(begun[-1] if said[t] == reference[t] else score([*said[: t + 1], *reference[t + 1 :]]))
        return Judged(sampled, of_people, tuple(begun[1:]), tuple(begun[:-1]))
    without = tuple(
        sampled if said[t] == reference[t] else score([*said[:t], reference[t], *said[t + 1 :]])
        for t in range(len(turns))
    )
    return Judged(sampled, of_people, (sampled,) * len(turns), without)


def scorer_state(turn: SampledTurn) -> State:
    """State of a turn as the scorer sees it: gold states as they are, predicted ones in normal form."""
    return turn.state if turn.state == turn.turn.state else normalise_predicted_state(turn.state)


def graded_inform(score: DialogueScore, goal: Goal) -> float:
    """Share of the goal's domains that match; 1 exactly if Inform is 1."""
    return sum(score.domains_inform.values()) / len(goal)


def graded_success(score: DialogueScore, goal: Goal, booked: Sequence[Sequence[str]]) -> float:
    """Share of the goal's domains that match and of its requestables that are provided; 1 exactly if Success is 1.

    Args:
        score: of the dialogue.
        goal: the user's goal.
        booked: per turn, the domains booked by then.
    """
    provided: dict[str, set[str]] = {domain: set() for domain in goal}
    for turn, bookings in zip(score.turns, booked, strict=False):
        for domain in turn.domains:
            provided[domain] |= turn.mentioned if domain in bookings else turn.mentioned - {"REFERENCE"}
    wanted = {domain: set(goal[domain]["requestable"]) for domain in goal}
    right = sum(score.domains_inform.values()) + sum(len(provided[d] & wanted[d]) for d in goal)
    return right / (len(goal) + sum(map(len, wanted.values())))


@register_stream("inform", kind="constraint")
def inform(batch: SampledBatch, context: StreamContext) -> StreamValues:
    """Inform of the dialogue, written as difference rewards to the turns that offer something.

    With S the (graded) Inform of the dialogue, y the sampled replies and r the corpus replies::

        reward_t = S(y) - S(y with y_t replaced by r_t)

    The second term does not depend on y_t: it is a baseline, so the policy gradient of S stays unbiased, and a turn
    is neither paid nor blamed for what other turns did. Difference rewards: Wolpert and Tumer, "Optimal payoff
    functions for members of collectives", 2002; as a counterfactual baseline in policy gradients: Foerster et al.,
    COMA, arXiv 1705.08926.

    Sampled turn by turn (`context.turn_by_turn`) the later replies depend on y_t, and the second term would: who gives
    early would be paid for what the later turns, knowing of it, leave out. The reward is then::

        reward_t = S(y_0 .. y_t, r_t+1 ..) - S(y_0 .. y_t-1, r_t ..)

    people going on where the model is left. The rewards of a dialogue add up to S(y) - S(r), so with `gamma_turn` 1 the
    gradient is again that of S; at 0, the default, what a reply does for later replies of the model is left out.

    A turn applies if the sampled or the corpus reply makes an offer (NAME or TRAINID in an active goal domain). The
    score is the scorer's 0/1 at weight 1 / (applicable turns of the dialogue), so J is the Inform rate exactly; a
    dialogue in which no turn applies counts through all its turns. `context.graded` learns from `graded_inform`
    instead of 0/1.
    """
    return _dialogue_stream(batch, context, _inform_of, lambda turn, goal: bool(turn.offered))


@register_stream("success", kind="constraint")
def success(batch: SampledBatch, context: StreamContext) -> StreamValues:
    """Success of the dialogue, written as difference rewards to the turns that decide it.

    As `inform`, with `graded_success`; a turn applies if the sampled or the corpus reply makes an offer or provides
    something that the goal requests. J is the Success rate exactly.
    """
    return _dialogue_stream(batch, context, _success_of, _decides_success)


def _inform_of(score: DialogueScore, turns: Sequence[SampledTurn], graded: bool) -> float:
    return graded_inform(score, turns[0].dialogue.goal) if graded else float(score.inform)


def _success_of(score: DialogueScore, turns: Sequence[SampledTurn], graded: bool) -> float:
    if not graded:
        return float(score.success)
    return graded_success(score, turns[0].dialogue.goal, [turn.turn.booked for turn in turns])


def _decides_success(turn: TurnScore, goal: Goal) -> bool:
    wanted = {slot for domain in turn.domains for slot in goal[domain]["requestable"]}
    return bool(turn.offered) or not wanted.isdisjoint(turn.mentioned)


def _dialogue_stream(
    batch: SampledBatch,
    context: StreamContext,
    value: Callable[[DialogueScore, Sequence[SampledTurn], bool], float],
    decides: Callable[[TurnScore, Goal], bool],
) -> StreamValues:
    rewards, applies, scores, weights = [], [], [], []
    for turns, judged in zip(batch.dialogues, judge_batch(batch, context), strict=True):
        goal = turns[0].dialogue.goal
        pairs = zip(judged.sampled.turns, judged.reference.turns, strict=True)
        deciding = [decides(said, goal) or decides(reference, goal) for said, reference in pairs]
        if not any(deciding):
            deciding = [True] * len(turns)
        for reached, missed in zip(judged.with_reply, judged.without, strict=True):
            rewards.append(value(reached, turns, context.graded) - value(missed, turns, context.graded))
        applies += deciding
        scores += [value(judged.sampled, turns, False)] * len(turns)
        weights += [1.0 / sum(deciding)] * len(turns)
    return StreamValues(rewards, applies, scores, weights)  # type: ignore[arg-type]


def judge_batch(batch: SampledBatch, context: StreamContext) -> list[Judged]:
    """`judge_dialogue` of every dialogue, once per batch."""
    if "judged" not in batch.shared:
        database = _need(context.database, "StreamContext.database")
        batch.shared["judged"] = [
            judge_dialogue(turns, database, turn_by_turn=context.turn_by_turn) for turns in batch.dialogues
        ]
    return batch.shared["judged"]


# Slots


@register_stream("slots", kind="constraint")
def slots(batch: SampledBatch, context: StreamContext) -> StreamValues:
    """Recall of the goal's slots that are due in this turn, paid at the tokens that say them.

    Due are the placeholders that the corpus reply mentions or the user requests now, as far as the scorer looks at
    them: what the goal requests in the active domain (a reference number once booked), and the offer (NAME or
    TRAINID). With N of them due, the first token of each pays 1/N. Turns with nothing due do not apply.
    """
    due = [
        due_slots(turn, reference, scored)
        for turns, judged in zip(batch.dialogues, judge_batch(batch, context), strict=True)
        for turn, reference, scored in zip(turns, judged.reference.turns, judged.sampled.turns, strict=True)
    ]
    dense = np.zeros((len(due), int(batch.lengths.max(initial=0))), np.float32)
    rest = np.zeros(len(due), np.float32)
    for s, (turn, wanted) in enumerate(zip(batch.turns, due, strict=True)):
        open_slots = set(wanted & mentions(turn.text))
        for position, token in enumerate(turn.tokens):
            name = context.placeholders.get(token)
            if name in open_slots:
                dense[s, position] = 1.0 / len(wanted)
                open_slots.discard(name)
        # A placeholder spelled in word pieces counts for the scorer but has no token of its own.
        rest[s] = len(open_slots) / max(1, len(wanted))
    return StreamValues(rest, applies=np.array([bool(w) for w in due], bool), token_reward=dense)


def due_slots(turn: SampledTurn, reference: TurnScore, sampled: TurnScore) -> frozenset[str]:
    """Placeholders that the reply to this turn should mention.

    Args:
        turn: the turn, with the slots the user requests.
        reference: what the scorer credits to the corpus reply here.
        sampled: what it credits to the sampled reply; only its active domains are used.
    """
    goal, booked = turn.dialogue.goal, turn.turn.booked
    relevant: set[str] = set()
    for domain in sampled.domains:
        wanted = set(goal[domain]["requestable"])
        relevant |= wanted if domain in booked else wanted - {"REFERENCE"}
        if domain in VENUE_DOMAINS:
            relevant.add("TRAINID" if domain == "train" else "NAME")
    requested = (name.partition("-") for name in turn.turn.requested)
    asked = {unify(slot) for domain, _, slot in requested if domain in sampled.domains}
    return frozenset(relevant & (reference.mentioned | asked))


@register_stream("restraint", kind="constraint")
def restraint(batch: SampledBatch, context: StreamContext) -> StreamValues:
    """Precision of what a reply gives away: the share of its offers and facts that the corpus reply gives here too.

    |said & corpus| / |said| over NAME and the requestables, each counted once; a reply without any is left out of J.
    Inform and Success count what is given at any time and forgive what nobody asked for. This is the other side of
    that trade: policies that learnt from those two offer in a fifth to three tenths of the turns in which people do not
    (experiments/multiwoz/RESULTS.md).
    """
    said = [mentions(turn.text) & _DECISIVE for turn in batch.turns]
    human = [mentions(turn.turn.delex) & _DECISIVE for turn in batch.turns]
    share = [len(one & other) / max(len(one), 1) for one, other in zip(said, human, strict=True)]
    return StreamValues(np.array(share, np.float32), applies=np.array([bool(one) for one in said]))


# Objectives

_SENTENCE_BLEU = BLEU(effective_order=True)


@register_stream("likeness", kind="objective")
def likeness(batch: SampledBatch, context: StreamContext) -> StreamValues:
    """Sentence BLEU-4 of the sampled reply against the corpus reply, in [0, 1].

    sacrebleu's sentence BLEU (exponential smoothing, effective order; Post 2018, arXiv 1804.08771) on lower-case text
    with unified placeholders. Moses detokenisation, which only moves spaces, is left to the scorer.
    """
    pairs = ((unified(turn.text), unified(turn.turn.delex)) for turn in batch.turns)
    scores = [_SENTENCE_BLEU.sentence_score(said, [reference]).score for said, reference in pairs]
    return StreamValues(np.array(scores, np.float32) / 100.0)


@register_stream("corpus_bleu", kind="objective")
def corpus_bleu(batch: SampledBatch, context: StreamContext) -> StreamValues:
    """What each reply does for BLEU-4 of all replies of the batch together; J is that BLEU, in [0, 1].

    Text as in `likeness`; see `morejax.tasks.corpus_bleu.bleu_shares`. Of several processes each takes the replies
    that it scores. A reply's value depends on the others of its batch and may be negative.
    """
    pairs = ((unified(turn.text), unified(turn.turn.delex)) for turn in batch.turns)
    scores = [_SENTENCE_BLEU.sentence_score(said, [reference]) for said, reference in pairs]
    counts = ([one.counts for one in scores], [one.totals for one in scores])
    lengths = ([one.sys_len for one in scores], [one.ref_len for one in scores])
    return StreamValues(bleu_shares(*map(np.array, (*counts, *lengths))).astype(np.float32))


@lru_cache(maxsize=1 << 16)
def unified(text: str) -> str:
    """Lower-case text with every placeholder in its unified upper-case form, each one word."""
    return PLACEHOLDER.sub(lambda found: unify(found.group(1)), text.lower())


@register_stream("fluency", kind="objective")
def fluency(batch: SampledBatch, context: StreamContext) -> StreamValues:
    """Mean token log-probability under a frozen language model, clipped to the range of corpus replies.

    ``(clip(logp, lo, hi) - lo) / (hi - lo)`` with (lo, hi) = `context.fluency_range`, the 5th and 95th percentile on
    corpus replies. Unclipped, short bland text would be the most fluent.
    """
    low, high = _need(context.fluency_range, "StreamContext.fluency_range")
    if not low < high:
        raise ValueError(f"StreamContext.fluency_range is ({low}, {high}), expected lo < hi")
    logp = np.asarray(_need(batch.lm_logp, "SampledBatch.lm_logp"), np.float32)
    # NaN has to stay NaN, so that the check of the streams finds it; clip keeps it.
    return StreamValues((np.clip(logp, low, high) - low) / (high - low))


@dataclass(frozen=True)
class Licence:
    """When a placeholder may be said: one condition is enough.

    Attributes:
        found: domains, one of which must be in the state with at least one database result for it.
        tracked: domains, one of which must be in the state, whatever the database finds ("nothing in the [area]").
    """

    found: tuple[str, ...] = ()
    tracked: tuple[str, ...] = ()


_VENUES = ("restaurant", "hotel", "attraction")
_INSTITUTIONS = ("hospital", "police")

LICENCES: dict[str, Licence] = {
    # What has to be read from a result.
    "NAME": Licence(found=_VENUES, tracked=_INSTITUTIONS),
    "ADDRESS": Licence(found=_VENUES, tracked=_INSTITUTIONS),
    "POST": Licence(found=_VENUES, tracked=_INSTITUTIONS),
    "PHONE": Licence(found=_VENUES, tracked=(*_INSTITUTIONS, "taxi")),
    "ID": Licence(found=_VENUES, tracked=_INSTITUTIONS),
    "OPEN": Licence(found=_VENUES),
    "INTERNET": Licence(found=("hotel",)),
    "PARKING": Licence(found=("hotel",)),
    "TRAINID": Licence(found=("train",)),
    # What can also be asked for, repeated or denied.
    "AREA": Licence(tracked=_VENUES),
    "FOOD": Licence(tracked=("restaurant",)),
    "TYPE": Licence(tracked=(*_VENUES, "taxi")),
    "PRICE": Licence(tracked=(*_VENUES, "train")),
    "COUNT": Licence(tracked=(*_VENUES, "train")),
    "DAY": Licence(tracked=("restaurant", "hotel", "train")),
    "TIME": Licence(tracked=("restaurant", "attraction", "train", "taxi")),
    "PLACE": Licence(tracked=("train", "taxi")),
    "DEPARTMENT": Licence(tracked=("hospital",)),
}
"""Licence of every placeholder but REFERENCE, for which `BOOKING_SLOTS` must be known."""

BOOKING_SLOTS: dict[str, frozenset[str]] = {
    "restaurant": frozenset({"bookday", "bookpeople", "booktime"}),
    "hotel": frozenset({"bookday", "bookpeople", "bookstay"}),
    "train": frozenset({"bookpeople"}),
}
"""A reference number needs all of these in the state of one domain, or a domain that the corpus has booked by then."""


@register_stream("faithfulness", kind="objective")
def faithfulness(batch: SampledBatch, context: StreamContext) -> StreamValues:
    """Share of the reply's placeholders that state and database license; 1 for a reply without any.

    `LICENCES` is the table. Police and hospital, whose constraints are hardly ever tracked, count as being in the state
    when the user's goal has them.
    """
    database = _need(context.database, "StreamContext.database")
    return StreamValues(np.array([licensed_share(turn, database) for turn in batch.turns], np.float32))


def licensed_share(turn: SampledTurn, database: Database) -> float:
    """Licensed placeholders per placeholder of a reply, each occurrence counted; one unknown to the standard is not."""
    said = [unify(name) for name, _ in PLACEHOLDER.findall(turn.text.lower())]
    if not said:
        return 1.0
    state = scorer_state(turn)
    tracked = {domain for domain, slots in state.items() if slots}
    tracked |= {domain for domain in _INSTITUTIONS if domain in turn.dialogue.goal}
    found = {domain for domain in tracked if database.count(domain, state.get(domain, {}))}
    known = {d for d, slots in BOOKING_SLOTS.items() if d in found and slots <= set(state[d])}
    booked = bool(known) or bool(turn.turn.booked)
    return sum(booked if name == "REFERENCE" else _licensed(name, tracked, found) for name in said) / len(said)


def _licensed(name: str, tracked: set[str], found: set[str]) -> bool:
    licence = LICENCES.get(name, Licence())
    return not found.isdisjoint(licence.found) or not tracked.isdisjoint(licence.tracked)


@register_stream("naturalness", kind="objective")
def naturalness(batch: SampledBatch, context: StreamContext) -> StreamValues:
    """Probability that a human wrote the reply, as the reward head sees it."""
    return StreamValues(np.asarray(_need(batch.natural, "SampledBatch.natural"), np.float32))


def _need(value: T | None, name: str) -> T:
    if value is None:
        raise ValueError(f"{name} is missing, a configured stream needs it")
    return value
