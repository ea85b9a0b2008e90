"""The checker's phrases as arrays: a trie read backwards, and what each phrase says."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from morejax.tasks.shop import cue_phrases as cues
from morejax.tasks.shop import statement_phrases as phrases
from morejax.tasks.shop.ontology import ACTIONS, DISCLOSURES, FORBIDDEN, MONTHS, REASONS, SLOT_KINDS, SLOTS, Kind, index
from morejax.tasks.shop.tokenizer import ACTION_TOKENS, DIGITS, EOS, POINT, vocabulary, words_of

NUMBER_KINDS = 6
"""Kinds of value that are numbers: all but `Kind.WORD`."""
IGNORED = len(SLOTS)
"""Slot of a number that a phrase declares to be about nothing."""


class Tables(NamedTuple):
    """Everything the parser looks up. C word classes, Q trie nodes, P phrases, V vocabulary.

    Class, node and phrase 0 stand for none of them.
    """

    word_class: Any
    """i32[V]: class of a token that occurs in a phrase, 0 for others."""
    next_node: Any
    """i32[Q, C]: trie of reversed phrases; node 1 is the root, 0 the dead end."""
    phrase: Any
    """i32[Q]: phrase that a node completes."""
    length: Any
    """i32[P], tokens."""
    forward: Any
    """i32[P, 6]: slot of a later number of each kind, -1 for none."""
    adjacent: Any
    """i32[P, 6]: slot of a number right behind."""
    backward: Any
    """i32[P, 6]: slot of a number right before."""
    weak: Any
    """bool[P]."""
    binds: Any
    """bool[P]: ends in "of", so that a number right behind is surely meant."""
    direct_slot: Any
    """i32[P]: slot whose value the phrase states, -1 for none; its value is `direct_value`, i32[P]."""
    direct_value: Any
    decision: Any
    """i32[P]: 1 approves, 2 denies, 0 neither."""
    reason: Any
    """i32[P], -1 for none; `disclosure` and `forbidden` likewise."""
    disclosure: Any
    forbidden: Any
    tokens: Any
    """i32[V, F]: flags of tokens, columns named by `FLAGS`."""


FLAGS = (
    "digit", "dollar", "dollars", "percent", "point", "month", "days", "months", "stop", "question", "negation",
    "negation_stop", "cause", "hedge", "soft_hedge", "frame",
    "condition", "limit", "approximation", "piece", "action", "end",
)  # fmt: skip
"""Columns of `Tables.tokens`: digit, month, action and piece hold value + 1 or 1, the others 0 or 1."""


@dataclass
class _Phrase:
    """What one phrase says while the tables are put together."""

    forward: list[int] = field(default_factory=lambda: [-1] * NUMBER_KINDS)
    adjacent: list[int] = field(default_factory=lambda: [-1] * NUMBER_KINDS)
    backward: list[int] = field(default_factory=lambda: [-1] * NUMBER_KINDS)
    weak: bool = False
    is_cue: bool = False
    direct: tuple[int, int] = (-1, 0)
    not_direct: bool = False
    decision: int = 0
    no_decision: bool = False
    reason: int = -1
    disclosure: int = -1
    forbidden: int = -1


@cache
def build_tables() -> Tables:
    """The tables of the shop's tokenizer, as NumPy arrays."""
    ids = vocabulary()
    known = _collect(ids)
    _inherit(known, {ids[word] for word in phrases.NEGATIONS})
    entries = [_Phrase(), *known.values()]
    word_class, trie, completed = _trie(list(known), len(ids))
    return Tables(
        word_class=word_class,
        next_node=trie,
        phrase=completed,
        length=np.array([1, *map(len, known)], np.int32),
        forward=np.array([e.forward for e in entries], np.int32),
        adjacent=np.array([e.adjacent for e in entries], np.int32),
        backward=np.array([e.backward for e in entries], np.int32),
        weak=np.array([e.weak for e in entries]),
        binds=np.array([False, *(key[-1] == ids["of"] for key in known)]),
        direct_slot=np.array([-1 if e.not_direct else e.direct[0] for e in entries], np.int32),
        direct_value=np.array([e.direct[1] for e in entries], np.int32),
        decision=np.array([e.decision for e in entries], np.int32),
        reason=np.array([e.reason for e in entries], np.int32),
        disclosure=np.array([e.disclosure for e in entries], np.int32),
        forbidden=np.array([e.forbidden for e in entries], np.int32),
        tokens=_token_flags(ids),
    )


Known = dict[tuple[int, ...], _Phrase]


def _collect(ids: dict[str, int]) -> Known:
    known: Known = {}

    def entry(text: str) -> _Phrase:
        key = tuple(ids[word] for word in words_of(text))
        return known.setdefault(key, _Phrase())

    _collect_cues(entry)
    for (slot, value), texts in phrases.DIRECT.items():
        for text in texts:
            entry(text).direct = (index(SLOTS, slot), value)
    for text in phrases.NOT_DIRECT:
        entry(text).not_direct = True
    # The last entry wins where a phrase is listed twice: what hides a decision comes after the decisions.
    for decision, texts in ((1, phrases.APPROVE), (2, phrases.DENY), (0, phrases.NOT_DECISIONS)):
        for text in texts:
            entry(text).decision = decision
            entry(text).no_decision = decision == 0
    for name, names, table in (
        ("reason", REASONS, phrases.REASONS),
        ("disclosure", DISCLOSURES, phrases.DISCLOSURES),
        ("forbidden", FORBIDDEN, phrases.FORBIDDEN),
    ):
        for key, texts in table.items():
            for text in texts:
                setattr(entry(text), name, index(names, key))
    return known


def _collect_cues(entry) -> None:
    for name, table in (("forward", cues.FORWARD), ("adjacent", cues.ADJACENT), ("backward", cues.BACKWARD)):
        for slot, texts in table.items():
            # "a fee of $5": without the longer form the bare "of" would hide the cue.
            of = [f"{text} of" for text in texts if name == "forward" and not text.endswith(" of")]
            for text in (*texts, *of):
                made = entry(text)
                getattr(made, name)[SLOT_KINDS[slot]] = index(SLOTS, slot)
                made.is_cue = True
    for slot, texts in cues.WEAK.items():
        for text in texts:
            made = entry(text)
            made.forward[SLOT_KINDS[slot]] = made.backward[SLOT_KINDS[slot]] = index(SLOTS, slot)
            made.weak = made.is_cue = True
    for name, texts in (("adjacent", cues.IGNORED_BEFORE), ("backward", cues.IGNORED_BEHIND)):
        for text in texts:
            made = entry(text)
            setattr(made, name, [slot if slot >= 0 else IGNORED for slot in getattr(made, name)])
            made.is_cue = True


def _inherit(known: Known, negations: set[int]) -> None:
    """A phrase hides the shorter one at its end: what it does not say itself it takes over from that one.

    Cues are taken over unless the phrase is a cue itself; statements unless a negation comes with the longer phrase.
    """
    for key in sorted(known, key=len):
        start = next((start for start in range(1, len(key)) if key[start:] in known), None)
        if start is None:
            continue
        made, shorter = known[key], known[key[start:]]
        if not made.is_cue:
            made.forward, made.adjacent, made.weak = shorter.forward, shorter.adjacent, shorter.weak
            made.backward = shorter.backward
        if negations.isdisjoint(key[:start]):
            _inherit_statements(made, shorter)


def _inherit_statements(made: _Phrase, shorter: _Phrase) -> None:
    for name in ("reason", "disclosure", "forbidden"):
        if getattr(made, name) < 0:
            setattr(made, name, getattr(shorter, name))
    if made.decision == 0 and not made.no_decision:
        made.decision, made.no_decision = shorter.decision, shorter.no_decision


def _trie(keys: list[tuple[int, ...]], vocab: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes of tokens, transitions of the reversed phrases, and the phrase that each node completes."""
    classes = {token: number for number, token in enumerate(sorted({t for key in keys for t in key}), start=1)}
    word_class = np.zeros(vocab, np.int32)
    word_class[list(classes)] = list(classes.values())
    nodes: list[dict[int, int]] = [{}, {}]
    completed = [0, 0]
    for number, key in enumerate(keys, start=1):
        node = 1
        for token in reversed(key):
            if classes[token] not in nodes[node]:
                nodes[node][classes[token]] = len(nodes)
                nodes.append({})
                completed.append(0)
            node = nodes[node][classes[token]]
        completed[node] = number
    trie = np.zeros((len(nodes), len(classes) + 1), np.int32)
    for node, following in enumerate(nodes):
        trie[node, list(following)] = list(following.values())
    return word_class, trie, np.array(completed, np.int32)


def _token_flags(ids: dict[str, int]) -> np.ndarray:
    flags = np.zeros((len(ids), len(FLAGS)), np.int32)

    def mark(flag: str, *words: str) -> None:
        for word in words:
            flags[ids[word], FLAGS.index(flag)] = 1

    for value, digit in enumerate(DIGITS):
        flags[ids[digit], FLAGS.index("digit")] = value + 1
    for number, month in enumerate(MONTHS):
        flags[ids[month], FLAGS.index("month")] = number + 1
    for number, token in enumerate(ACTION_TOKENS):
        flags[ids[token], FLAGS.index("action")] = number + 1
    assert len(ACTION_TOKENS) == len(ACTIONS)
    mark("dollar", "$")
    mark("dollars", "dollars")
    mark("percent", "%", "percent")
    mark("point", POINT)
    mark("days", "day", "days")
    mark("months", "month", "months")
    mark("stop", ".", "!", "?", ";", *ACTION_TOKENS, EOS)
    mark("question", "?")
    mark("negation", *phrases.NEGATIONS)
    mark("negation_stop", *phrases.NEGATION_STOPS, ".", "!", "?", ";")
    mark("cause", *phrases.CAUSES)
    mark("hedge", *phrases.HEDGES)
    mark("frame", *phrases.FRAMES)
    mark("soft_hedge", *phrases.SOFT_HEDGES)
    mark("condition", *phrases.CONDITIONS)
    mark("limit", *phrases.CONDITIONS, *phrases.LIMITS)
    mark("approximation", *phrases.APPROXIMATIONS)
    mark("piece", *(token for token in ids if token.startswith("##")), "<unk>")
    mark("end", EOS)
    return flags


assert Kind.WORD == NUMBER_KINDS
