"""Drills: a case, and questions for single fields of it, for what follows from them, and for decisions.

    <policy> ... <profile> ... limit $2300.00 used $670.00 ...  <user> value used <response> $670.00 <eos>
    <user> limit left <response> $1630.00 <eos>  <user> raise <response> no kyc <eos> ...

A small model that is trained on dialogues alone learns to talk long before it learns to read: few words of a reply
depend on the customer. Here nearly all do, twenty times in a sequence, and any number of drills comes with the cases.
"""

from __future__ import annotations

import numpy as np

from morejax.tasks.shop import policy, tokenizer
from morejax.tasks.shop.context import Example, Fields, Ids, Serialiser, aftersales_fields, credit_fields
from morejax.tasks.shop.dialogues import ShopSplit
from morejax.tasks.shop.ontology import DECISIONS, SLOTS, index
from morejax.tasks.shop.oracle import Question, value_words
from morejax.tasks.shop.state import Case

_CREDIT, _AFTERSALES = DECISIONS[:3], DECISIONS[3:]


def drills(serialiser: Serialiser, split: ShopSplit, *, per_dialogue: int = 1, seed: int = 0) -> list[Example]:
    """Drills on the cases with which the dialogues begin.

    Args:
        serialiser: makes the tokens; a drill is at most `max_context` plus `max_reply` long.
        split: where the cases come from.
        per_dialogue: drills on each case; their questions differ in order.
        seed: of the order.
    """
    questions = split.questions()
    rows = [dialogue.turns[0].row for dialogue in split.dialogues]
    cases = [questions[row].case for row in rows]
    fields = [_read(case) + _worked_out(questions[row]) for row, case in zip(rows, cases, strict=True)]
    words = list(dict.fromkeys(text for case in fields for pair in case for text in pair))
    encoded = dict(zip(words, serialiser.encode(words), strict=True))
    facts = serialiser.facts(split, rows)
    made = []
    for number, (case, before) in enumerate(zip(fields, facts, strict=True)):
        pairs = [(encoded[name], encoded[value]) for name, value in case]
        for copy in range(per_dialogue):
            order = np.random.default_rng([seed, number, copy]).permutation(len(pairs))
            made.append(_drill(serialiser, f"drill-{number}", before, [pairs[i] for i in order]))
    return made


def _read(case: Case) -> Fields:
    """Fields with a name and a value; a value ends before its full stop."""
    terms, customer = credit_fields(case, case.request) if case.domain == 0 else aftersales_fields(case)
    # "fee" is a field (a rate) and follows from fields (an amount): those read off are asked for as values.
    return tuple((f"value {name}", value.removesuffix(" .")) for name, value in terms + customer if name and value)


def _worked_out(question: Question) -> Fields:
    """What arithmetic and policy make of the fields: amounts, dates, and every decision with its reason."""
    case, gold = question.case, question.gold
    slots = [
        (slot.replace("_", " "), value_words(question, slot)) for slot in SLOTS if gold.defined[index(SLOTS, slot)]
    ]
    decisions = _CREDIT if case.domain == 0 else _AFTERSALES
    return (*slots, *((policy.decision_name(name), _decided(case, name)) for name in decisions))


def _decided(case: Case, decision: str) -> str:
    against = (rule.reason for rule in policy.rules_in_force(case.rules, decision) if rule.holds(case))
    reason = next(against, "")
    return f"no {policy.reason_name(reason)}" if reason else "yes"


def _drill(serialiser: Serialiser, name: str, facts: Ids, pairs: list[tuple[Ids, Ids]]) -> Example:
    room = serialiser.config.max_context + serialiser.config.max_reply
    sequence, mask = facts, (False,) * len(facts)
    for asked, value in pairs:
        more, reply = (*serialiser.asked(asked), serialiser.token(tokenizer.RESPONSE)), serialiser.reply_ids(value)
        if len(sequence) + len(more) + len(reply) > room:
            break
        sequence, mask = sequence + more + reply, mask + (False,) * len(more) + (True,) * len(reply)
    return Example(name, 0, sequence, mask)
