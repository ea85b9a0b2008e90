"""What a reply claims: one parser over token ids, the same code for NumPy and for JAX.

    numbers    digit runs become (kind, value): "$" money in cents, "%" basis points, days, months, dates
    slots      a number takes the slot of the nearest cue phrase of its kind in the sentence, see `cue_phrases`
    words      direct phrases state a value ("your parcel was delivered"), decisions, reasons, disclosures
    negation   "not", "no", ... up to four words before a phrase, within its clause, turns it round
    hedges     a decision under "may", "if", ... or in a question is none; "about $50" is not a figure that is right

It is strict: what it cannot read is not said. Shapes are static and nothing loops over the batch. Shape letters: N
replies, T tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from morejax.tasks.shop.ontology import ACTIONS, DISCLOSURES, FORBIDDEN, MONTH_DAYS, REASONS, SLOTS, Kind, index
from morejax.tasks.shop.phrase_tables import FLAGS, IGNORED, NUMBER_KINDS, Tables, build_tables

INVALID = -1
"""Value of a number that is malformed or only approximate: it equals nothing."""
LONGEST_NUMBER = 10
"""Tokens of the longest number that is read, decimal point included."""
NEGATION_REACH = 4
HEDGE_REACH = 5
FRAME_REACH = 3
CONDITION_BEHIND = 3
WEAK_COST = 3
FAR = 1 << 20


class Claims(NamedTuple):
    """What N replies claim."""

    slot: Any
    """i32[N, T]: slot of the claim that is read at a token, -1 for none."""
    value: Any
    """i32[N, T]: its value, `INVALID` where it cannot be right."""
    negated: Any
    """bool[N, T]: the claim is that the slot does not have the value."""
    approves: Any
    """bool[N]; `denies` likewise. Both may hold."""
    denies: Any
    reasons: Any
    """bool[N, REASONS]."""
    disclosed: Any
    """bool[N, DISCLOSURES]."""
    forbidden: Any
    """bool[N, FORBIDDEN]."""
    actions: Any
    """bool[N, ACTIONS]."""
    spelled: Any
    """bool[N]: does the reply spell a word by its letters, which is not the agent's language?"""


class _Sentences(NamedTuple):
    """i32[N, T] positions that bound what belongs together."""

    start: Any
    """Of the sentence of each token."""
    end: Any
    """Of its last token, the full stop."""


class _Numbers(NamedTuple):
    """Numbers, each at its first digit; `kind` is -1 at other tokens. All i32[N, T]."""

    kind: Any
    value: Any
    begin: Any
    """First token of the number: of "$" where it has one."""
    end: Any
    """Position behind it, its unit excluded ("days" of "3 days" may start a phrase)."""
    behind: Any
    """Position behind its unit."""


def parse(tokens: Any, mask: Any, tables: Tables, xp: Any = np) -> Claims:
    """Reads replies.

    Args:
        tokens: i32[N, T].
        mask: bool[N, T], valid on a prefix.
        tables: of the tokenizer, as arrays of the same namespace.
        xp: `numpy` or `jax.numpy`.

    Returns:
        The claims.
    """
    tokens = xp.where(mask, tokens, 0)
    columns = tables.tokens[tokens]
    flags = {name: columns[..., column] for column, name in enumerate(FLAGS)}
    phrase = _phrases(tokens, tables, xp)
    start = xp.arange(tokens.shape[1])[None, :] - tables.length[phrase] + 1
    sentences = _sentences(flags["stop"] > 0, xp)
    negated = _negated(start, flags, xp) & (phrase > 0)
    numbers = _numbers(flags, xp)
    slot, value = _attribute(numbers, phrase, start, sentences, flags, tables, xp)
    # A number and a direct phrase may end at the same token only in malformed text: the number counts.
    direct = xp.where(slot < 0, tables.direct_slot[phrase], -1)
    said = _decisions(phrase, start, negated, sentences, flags, tables, xp)
    return Claims(
        slot=xp.where(direct >= 0, direct, slot),
        value=xp.where(direct >= 0, tables.direct_value[phrase], value),
        negated=xp.where(direct >= 0, negated, _number_negated(numbers, flags, xp)),
        approves=said[0],
        denies=said[1],
        reasons=_said(tables.reason[phrase], ~_not_because(start, flags, xp), len(REASONS), xp),
        disclosed=_said(tables.disclosure[phrase], ~negated, len(DISCLOSURES), xp),
        forbidden=_said(tables.forbidden[phrase], ~negated, len(FORBIDDEN), xp),
        actions=_said(flags["action"] - 1, mask, len(ACTIONS), xp),
        spelled=(flags["piece"] > 0).any(axis=1),
    )


def _said(code: Any, where: Any, size: int, xp: Any) -> Any:
    """bool[N, size]: which codes occur?"""
    return ((code[..., None] == xp.arange(size)[None, None, :]) & where[..., None]).any(axis=1)


def _later(array: Any, by: int, fill: Any, xp: Any) -> Any:
    """The entry `by` tokens later at each token; `fill` past the end. Negative: earlier."""
    if by == 0:
        return array
    edge = xp.full((array.shape[0], min(abs(by), array.shape[1]), *array.shape[2:]), fill, array.dtype)
    kept = array[:, by:] if by > 0 else array[:, :by]
    return xp.concatenate([kept, edge] if by > 0 else [edge, kept], axis=1)


def _running_max(array: Any, xp: Any) -> Any:
    """Maximum over this token and all before; on the device in log2(T) steps."""
    if xp is np:
        return np.maximum.accumulate(array, axis=1)
    step = 1
    while step < array.shape[1]:
        array = xp.maximum(array, _later(array, -step, -FAR, xp))
        step *= 2
    return array


def _at(array: Any, position: Any, xp: Any) -> Any:
    """`array[n, position[n, t]]`, the position clipped into the row."""
    return xp.take_along_axis(array, xp.clip(position, 0, array.shape[1] - 1), axis=1)


def _phrases(tokens: Any, tables: Tables, xp: Any) -> Any:
    """i32[N, T]: the longest phrase that ends at each token, 0 for none."""
    classes = tables.word_class[tokens]
    node = xp.ones_like(classes)
    found = xp.zeros_like(classes)
    for back in range(_longest()):
        node = tables.next_node[node, _later(classes, -back, 0, xp)]
        completed = tables.phrase[node]
        found = xp.where(completed > 0, completed, found)
    return found


def _longest() -> int:
    """Tokens of the longest phrase: a static number also where the tables are traced."""
    return int(build_tables().length.max())


def _sentences(stop: Any, xp: Any) -> _Sentences:
    size = stop.shape[1]
    position = xp.arange(size)[None, :] + xp.zeros_like(stop, dtype=np.int32)
    before = _later(_running_max(xp.where(stop, position, -1), xp), -1, -1, xp)
    ahead = -_running_max(xp.where(stop, -position, -(size - 1))[:, ::-1], xp)[:, ::-1]
    return _Sentences(before + 1, ahead)


def _negated(start: Any, flags: dict[str, Any], xp: Any) -> Any:
    """bool[N, T]: an odd number of negations stands before the phrase that ends here, within reach and clause."""
    negative, odd = flags["negation"] > 0, xp.zeros_like(start) > 0
    open_clause = ~odd
    for back in range(1, NEGATION_REACH + 1):
        position = start - back
        open_clause = open_clause & (position >= 0) & (_at(flags["negation_stop"], position, xp) == 0)
        odd = odd ^ (open_clause & _at(negative, position, xp))
    return odd


def _not_because(start: Any, flags: dict[str, Any], xp: Any) -> Any:
    """bool[N, T]: "not because", "not due" stands before the phrase, within reach."""
    found = xp.zeros_like(start) > 0
    for back in range(1, NEGATION_REACH + 1):
        position = start - back
        cause = (position >= 1) & (_at(flags["cause"], position, xp) > 0)
        found = found | (cause & (_at(flags["negation"], position - 1, xp) > 0))
    return found


# Numbers


def _numbers(flags: dict[str, Any], xp: Any) -> _Numbers:
    digit, point = flags["digit"], flags["point"] > 0
    position = xp.arange(digit.shape[1])[None, :] + xp.zeros_like(digit)
    inside = _later((digit > 0) | point, -1, False, xp)
    first = (digit > 0) & ~inside
    whole, decimals, end, long = _digits(first, digit, point, position, xp)
    dollar = _at(flags["dollar"], position - 1, xp) * (position > 0) > 0
    unit = {
        name: _at(flags[name], end, xp) * (end < digit.shape[1])
        for name in ("dollars", "percent", "days", "months", "month")
    }
    month_before = _at(flags["month"], position - 1, xp) * (position > 0)
    money = dollar | (unit["dollars"] > 0)
    percent = ~money & (unit["percent"] > 0)
    date = ~money & ~percent & (unit["month"] > 0) | (~money & ~percent & (month_before > 0) & (unit["days"] == 0))
    kind = xp.where(money, int(Kind.MONEY), xp.where(percent, int(Kind.PERCENT), int(Kind.PLAIN)))
    kind = xp.where(date, int(Kind.DATE), kind)
    kind = xp.where((kind == int(Kind.PLAIN)) & (unit["days"] > 0), int(Kind.DAYS), kind)
    kind = xp.where((kind == int(Kind.PLAIN)) & (unit["months"] > 0), int(Kind.MONTHS), kind)
    hundredths = xp.where(decimals == 0, whole * 100, xp.where(decimals == 1, whole * 10, whole))
    month = xp.where(unit["month"] > 0, unit["month"], month_before) - 1
    value = xp.where(money | percent, hundredths, xp.where(date, _day(whole, month, xp), whole))
    broken = long | (decimals > 2) | (~(money | percent) & (decimals > 0)) | (whole > 9_999_999)
    has_unit = (unit["dollars"] + unit["percent"] + unit["month"] > 0).astype(end.dtype)
    vague = _at(flags["approximation"], position - 1 - dollar, xp) * (position - 1 - dollar >= 0) > 0
    vague = vague & (kind != int(Kind.PLAIN)) & (kind != int(Kind.MONTHS))
    return _Numbers(
        kind=xp.where(first, kind, -1),
        value=xp.where(broken | vague, INVALID, value),
        begin=position - dollar,
        end=end,
        behind=end + has_unit,
    )


def _digits(first: Any, digit: Any, point: Any, position: Any, xp: Any):
    """Digits of the number that starts at each token: as one integer, decimals, position behind, too long to read."""
    whole, decimals = xp.zeros_like(digit), xp.zeros_like(digit)
    alive, after_point, end = first, first & False, position
    for ahead in range(LONGEST_NUMBER):
        here, here_point = _later(digit, ahead, 0, xp), _later(point, ahead, False, xp)
        takes = alive & (here > 0)
        whole = xp.where(takes & (whole < 10_000_000), whole * 10 + here - 1, whole)
        decimals = decimals + (takes & after_point)
        joins = alive & here_point & ~after_point
        after_point = after_point | joins
        alive = takes | joins
        end = end + alive
    return whole, decimals, end, alive


def _day(day: Any, month: Any, xp: Any) -> Any:
    """Day of the year; `INVALID` for a day that the month does not have."""
    lengths = xp.asarray(np.array(MONTH_DAYS, np.int32))
    starts = xp.asarray(np.cumsum([0, *MONTH_DAYS[:-1]]).astype(np.int32))
    right = (day >= 1) & (day <= lengths[month])
    return xp.where(right, starts[month] + day - 1, INVALID)


def _attribute(numbers: _Numbers, phrase, start, sentences: _Sentences, flags, tables: Tables, xp: Any):
    """Slot i32[N, T] (-1 for none) and value of every number: the nearest cue of its kind names the slot."""
    kind = xp.maximum(numbers.kind, 0)
    candidates = [
        *_cues_before(numbers, kind, phrase, sentences, tables, xp),
        _cue_adjacent(numbers, kind, phrase, tables, xp),
        _cue_behind(numbers, kind, phrase, start, sentences, tables, xp),
    ]
    slot, cost = _default_slot(kind, xp), xp.full_like(kind, FAR)
    for found, price in candidates:
        better = (found >= 0) & (price < cost)
        slot, cost = xp.where(better, found, slot), xp.where(better, price, cost)
    slot = xp.where((numbers.kind >= 0) & (slot != IGNORED), slot, -1)
    return slot, numbers.value


def _default_slot(kind: Any, xp: Any) -> Any:
    """Percentages are rates and months are tenors wherever they stand; other numbers need a cue."""
    rate, tenor = index(SLOTS, "rate"), index(SLOTS, "tenor")
    return xp.where(kind == int(Kind.PERCENT), rate, xp.where(kind == int(Kind.MONTHS), tenor, -1))


def _cues_before(numbers: _Numbers, kind, phrase, sentences: _Sentences, tables: Tables, xp: Any):
    """The last cue before a number in its sentence, and its cost: the distance. First strong cues, then weak ones.

    A cue right behind a number is as near as one before it, unless that one ends in "of".
    """
    position = xp.arange(phrase.shape[1])[None, :] + xp.zeros_like(phrase)
    usable = tables.forward[phrase] >= 0
    weak = tables.weak[phrase][..., None]
    # One channel for each kind of number, strong cues first.
    channels = xp.where(xp.concatenate([usable & ~weak, usable & weak], axis=-1), position[..., None], -1)
    last_cues = _running_max(channels, xp)
    rows, before = xp.arange(phrase.shape[0])[:, None], xp.maximum(numbers.begin - 1, 0)
    for is_weak in (False, True):
        last = last_cues[rows, before, kind + NUMBER_KINDS * is_weak]
        here = (numbers.begin > 0) & (last >= sentences.start) & (last >= 0)
        cue = _at(phrase, last, xp)
        cost = 2 * (numbers.begin - 1 - last + WEAK_COST * is_weak) + 2 * ~tables.binds[cue]
        yield xp.where(here, tables.forward[cue, kind], -1), cost


def _cue_adjacent(numbers: _Numbers, kind, phrase, tables: Tables, xp: Any):
    """A cue right before a number; a longer phrase that ends there has hidden a shorter one."""
    before = xp.where(numbers.begin > 0, _at(phrase, numbers.begin - 1, xp), 0)
    return tables.adjacent[before, kind], xp.zeros_like(kind) + 1


def _cue_behind(numbers: _Numbers, kind, phrase, start, sentences: _Sentences, tables: Tables, xp: Any):
    """A cue that begins right behind a number: of those the one that ends last."""
    slot, cost = xp.full_like(kind, -1), xp.full_like(kind, FAR)
    for ahead in range(_longest() + 1):
        last = numbers.end + ahead
        inside = (last <= sentences.end) & (last < phrase.shape[1])
        begins = _at(start, last, xp)
        ends_here = xp.where(inside, _at(phrase, last, xp), 0)
        # Units belong to the number ("days late", "days to return"): a cue may start behind them or with them.
        unit = (kind == int(Kind.DAYS)) | (kind == int(Kind.MONTHS))
        near = (begins == numbers.end) | (begins == numbers.behind) | (unit & (begins == numbers.end + 1))
        found = xp.where(near, tables.backward[ends_here, kind], -1)
        # The number is part of a longer phrase ("14 days to withdraw").
        found = xp.where((ends_here > 0) & (begins <= numbers.begin), IGNORED, found)
        slot = xp.where(found >= 0, found, slot)
        cost = xp.where(found >= 0, 1 + 2 * WEAK_COST * tables.weak[ends_here], cost)
    return slot, cost


def _number_negated(numbers: _Numbers, flags: dict[str, Any], xp: Any) -> Any:
    """bool[N, T]: "not $50": a negation right before a number."""
    position = numbers.begin - 1
    return (numbers.kind >= 0) & (position >= 0) & (_at(flags["negation"], position, xp) > 0)


# Decisions


def _decisions(phrase, start, negated, sentences: _Sentences, flags, tables: Tables, xp: Any) -> tuple[Any, Any]:
    """bool[N] twice: is something approved, is something denied? Questions, conditions and hedges decide nothing."""
    code = tables.decision[phrase]
    asserted = (code > 0) & ~_questioned(sentences, flags, xp) & ~_conditional(start, sentences, flags, xp)
    asserted = (
        asserted & ~_hedged(start, negated, flags, xp) & ((tables.length[phrase] > 1) | _framed(start, flags, xp))
    )
    denies = (code == 2) ^ negated
    return (asserted & ~denies).any(axis=1), (asserted & denies).any(axis=1)


def _questioned(sentences: _Sentences, flags: dict[str, Any], xp: Any) -> Any:
    return _at(flags["question"], sentences.end, xp) > 0


def _framed(start, flags: dict[str, Any], xp: Any) -> Any:
    """A word of a sentence's frame ("you", "is", ...) stands up to three words before."""
    found = start < 0
    for back in range(1, FRAME_REACH + 1):
        found = found | ((start >= back) & (_at(flags["frame"], start - back, xp) > 0))
    return found


def _conditional(start, sentences: _Sentences, flags: dict[str, Any], xp: Any) -> Any:
    """A condition before the phrase in its sentence, or right behind it."""
    condition = flags["condition"] > 0
    position = xp.arange(condition.shape[1])[None, :] + xp.zeros_like(start)
    last = _running_max(xp.where(condition, position, -1), xp)
    found = xp.where(start > 0, _at(last, start - 1, xp), -1) >= sentences.start
    for ahead in range(1, CONDITION_BEHIND + 1):
        found = found | (_later(flags["limit"] > 0, ahead, False, xp) & (position + ahead <= sentences.end))
    return found


def _hedged(start, negated, flags: dict[str, Any], xp: Any) -> Any:
    """A hedge up to five words before the phrase, within its clause; "could not be approved" is no hedge but a no."""
    hedge, soft, found = flags["hedge"] > 0, flags["soft_hedge"] > 0, negated & False
    open_clause = ~found
    for back in range(1, HEDGE_REACH + 1):
        position = start - back
        open_clause = open_clause & (position >= 0) & (_at(flags["negation_stop"], position, xp) == 0)
        could_not = _at(flags["negation"], position + 1, xp) > 0
        found = found | (open_clause & (_at(hedge, position, xp) | (_at(soft, position, xp) & ~could_not)))
    return found
