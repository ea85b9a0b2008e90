"""Reading drills: every answer is a value of the case, to be read off in the same sequence."""

from __future__ import annotations

import pytest

from morejax.tasks.shop import generate
from morejax.tasks.shop.context import ContextConfig, Serialiser
from morejax.tasks.shop.drills import drills


@pytest.fixture(scope="module")
def made():
    return generate(0, 30, "train")


def asked(serialiser, example):
    """The questions and answers of a drill, as text."""
    _, *parts = serialiser.tokenizer.decode(example.sequence).split("<user>")
    return [tuple(side.strip() for side in part.removesuffix("<eos>").split("<response>")) for part in parts]


def test_every_answer_stands_behind_its_name_in_the_facts(made):
    serialiser = Serialiser(ContextConfig(max_context=900))
    found = drills(serialiser, made)
    assert len(found) == len(made.dialogues)
    for example in found:
        facts = serialiser.tokenizer.decode(example.sequence).split("<user>")[0]
        pairs = asked(serialiser, example)
        assert len({name for name, _ in pairs}) >= 10
        for name, value in pairs:
            assert f"{name} {value.removesuffix(' <eos>')}" in facts, (name, value)


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
