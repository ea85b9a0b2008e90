"""Why dialogues lose Inform or Success, and habits of single replies, on a dialogue small enough to judge by hand."""

from __future__ import annotations

import pytest

from morejax.tasks.multiwoz import faults as classes
from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.faults import Fault, faults, habits
from morejax.tasks.multiwoz.records import Dialogue, Turn
from morejax.tasks.streams import SampledTurn

DATABASE = Database(
    {
        "restaurant": [
            {"id": "1", "name": "blue fig", "area": "north"},
            {"id": "2", "name": "red plum", "area": "south"},
        ],
        "hotel": [{"id": "3", "name": "the heron", "stars": "4"}, {"id": "4", "name": "mill rest", "stars": "3"}],
        "attraction": [{"id": "5", "name": "clock museum", "area": "north"}],
        "train": [{"trainID": "TX1", "leaveAt": "09:10", "arriveBy": "10:00", "day": "monday"}],
    }
)
GOAL = {
    "restaurant": {"informable": {"area": "north"}, "requestable": ["PHONE"]},
    "hotel": {"informable": {"stars": "4"}, "requestable": ["REFERENCE"]},
}
NORTH = {"restaurant": {"area": "north"}}
BOTH = {**NORTH, "hotel": {"stars": "4"}}
REFERENCES = ("[name] is nice .", "the phone is [phone] .", "[name] has rooms .", "booked : [reference] .")
STATES = (NORTH, NORTH, BOTH, BOTH)
BOOKED = ((), (), (), ("hotel",))


def sampled(replies, states=STATES):
    turns = tuple(Turn(t, "user", REFERENCES[t], REFERENCES[t], STATES[t], (), (), BOOKED[t]) for t in range(4))
    dialogue = Dialogue("one", "dev", turns, GOAL)
    return [
        SampledTurn(dialogue, turn, reply, (0,), state)
        for turn, reply, state in zip(turns, replies, states, strict=True)
    ]


def replaced(**changes):
    return [changes.get(f"t{t}", REFERENCES[t]) for t in range(4)]


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        (REFERENCES, []),
        (replaced(t2="anything else ?"), [Fault(classes.NEVER_OFFERED, ("hotel",))]),
        (replaced(t0="hello .", t2="hello ."), [Fault(classes.NEVER_OFFERED, ("restaurant", "hotel"))]),
        (replaced(t1="hello ."), [Fault(classes.FACT_MISSING, ("restaurant phone",))]),
        (replaced(t3="booked ."), [Fault(classes.REFERENCE_MISSING, ("hotel reference",))]),
        (
            replaced(t1="hello .", t3="booked ."),
            [
                Fault(classes.FACT_MISSING, ("restaurant phone",)),
                Fault(classes.REFERENCE_MISSING, ("hotel reference",)),
            ],
        ),
        # Inform comes first: what Success lacks besides is not named.
        (replaced(t1="hello .", t2="hello ."), [Fault(classes.NEVER_OFFERED, ("hotel",))]),
    ],
)
def test_what_costs_a_dialogue_a_point_is_named(replies, expected):
    assert faults(sampled(replies), DATABASE) == expected


def test_an_offer_that_does_not_fit_is_not_one_that_was_never_made():
    south = {"restaurant": {"area": "south"}}
    turns = sampled(REFERENCES, (south, south, {**south, "hotel": {"stars": "4"}}, {**south, "hotel": {"stars": "4"}}))
    assert faults(turns, DATABASE) == [Fault(classes.WRONG_OFFER, ("restaurant",))]


@pytest.mark.parametrize(
    ("turn", "reply", "expected"),
    [
        (0, REFERENCES[0], []),
        (0, "how about [name] ? call [phone] .", [classes.NEEDLESS_FACT, classes.QUESTION]),
        (0, "hello .", [classes.OFFER_LEFT_OUT]),
        (1, "[name] it is .", [classes.NEEDLESS_OFFER, classes.FACT_LEFT_OUT]),
        # Neither state nor corpus has booked anything by then.
        (0, "[name] , number [reference] .", [classes.NEEDLESS_FACT, classes.UNLICENSED]),
    ],
)
def test_habits_of_a_reply_beside_peoples(turn, reply, expected):
    assert habits(sampled(replaced(**{f"t{turn}": reply}))[turn], DATABASE) == expected
