"""Drills: every answer is a value of the case, to be read off in the same sequence, or follows from it."""

from __future__ import annotations

import pytest

from morejax.tasks.shop import generate, policy
from morejax.tasks.shop.context import ContextConfig, Serialiser
from morejax.tasks.shop.drills import drills
from morejax.tasks.shop.ontology import SLOTS
from morejax.tasks.shop.oracle import value_words


@pytest.fixture(scope="module")
def made():
    return generate(0, 30, "train")


def asked(serialiser, example):
    """The questions and answers of a drill, as text."""
    _, *parts = serialiser.tokenizer.decode(example.sequence).split("<user>")
    return [tuple(side.strip() for side in part.replace("<eos>", "").split("<response>")) for part in parts]


def test_every_field_is_asked_for_and_stands_behind_its_name(made):
    serialiser = Serialiser(ContextConfig(max_context=900))
    found = drills(serialiser, made)
    assert len(found) == len(made.dialogues)
    for example in found:
        facts = serialiser.tokenizer.decode(example.sequence).split("<user>")[0]
        pairs = asked(serialiser, example)
        read = [(name, value) for name, value in pairs if name.startswith("value ")]
        assert len({name for name, _ in read}) >= 14
        assert {"value today", "value tier"} <= {name for name, _ in read}
        for name, value in read:
            assert f"{name.removeprefix('value ')} {value}" in facts


def test_what_follows_is_asked_for_too(made):
    """Amounts, dates and decisions equal those of the right answers."""
    serialiser = Serialiser(ContextConfig(max_context=900))
    questions = made.questions()
    for dialogue, example in zip(made.dialogues, drills(serialiser, made), strict=True):
        question, pairs = questions[dialogue.turns[0].row], dict(asked(serialiser, example))
        gold = {slot: value_words(question, slot) for slot in ("limit_left", "fee", "shipping_fee", "price")}
        for slot, wanted in gold.items():
            if question.gold.defined[SLOTS.index(slot)]:
                assert pairs[slot.replace("_", " ")] == wanted.lower()
        for decision in ("borrow", "promo") if dialogue.domain == "credit" else ("return", "cancel"):
            rules = policy.rules_in_force(question.case.rules, decision)
            denied = [rule.reason for rule in rules if rule.holds(question.case)]
            assert pairs[decision] == (f"no {policy.reason_name(denied[0])}" if denied else "yes")


def test_the_targets_are_the_answers(made):
    serialiser = Serialiser()
    end, response = serialiser.token("<eos>"), serialiser.token("<response>")
    for example in drills(serialiser, made):
        inside = False
        for token, target in zip(example.sequence, example.target_mask, strict=True):
            assert target == inside
            inside = token == response or (inside and token != end)


def test_copies_differ_in_order_and_a_short_room_cuts_questions(made):
    serialiser = Serialiser(ContextConfig(max_context=240, max_reply=40))
    first, second, *_ = drills(serialiser, made, per_dialogue=2)
    assert first.sequence != second.sequence
    assert drills(serialiser, made, seed=1)[0] != drills(serialiser, made)[0]
    assert drills(serialiser, made)[0] == drills(serialiser, made)[0]
    assert all(len(example.sequence) <= 280 for example in drills(serialiser, made))
