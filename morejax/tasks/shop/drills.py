"""Reading drills: a case, and questions for single fields of it that are answered with their values, word for word.

    <policy> ... <profile> ... limit $2300.00 used $670.00 ...  <user> used <response> $670.00 <eos>  <user> region ...

A small model that is trained on dialogues alone learns to talk long before it learns to read: few words of a reply
depend on the customer. Here nearly all do, twenty times in a sequence, and any number of drills comes with the cases.
"""

from __future__ import annotations

import numpy as np

from morejax.tasks.shop import tokenizer
from morejax.tasks.shop.context import Example, Fields, Ids, Serialiser, aftersales_fields, credit_fields
from morejax.tasks.shop.dialogues import ShopSplit


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
    found = [credit_fields(case, case.request) if case.domain == 0 else aftersales_fields(case) for case in cases]
    fields = [_asked(terms + customer) for terms, customer in found]
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


def _asked(fields: Fields) -> Fields:
    """Fields with a name and a value; a value ends before its full stop."""
    return tuple((name, value.removesuffix(" .")) for name, value in fields if name and value)


def _drill(serialiser: Serialiser, name: str, facts: Ids, pairs: list[tuple[Ids, Ids]]) -> Example:
    room = serialiser.config.max_context + serialiser.config.max_reply
    sequence, mask = facts, (False,) * len(facts)
    for asked, value in pairs:
        more, reply = (*serialiser.asked(asked), serialiser.token(tokenizer.RESPONSE)), serialiser.reply_ids(value)
        if len(sequence) + len(more) + len(reply) > room:
            break
        sequence, mask = sequence + more + reply, mask + (False,) * len(more) + (True,) * len(reply)
    return Example(name, 0, sequence, mask)
