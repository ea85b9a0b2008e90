from __future__ import annotations

import pytest

from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.records import Schema
from morejax.tasks.multiwoz.tracker import build_ontology, mentioned_domain, track

DAYS = ("monday", "tuesday", "friday")
AREAS = ("centre", "north")
SCHEMA = Schema(
    {
        "restaurant": {
            "area": AREAS, "pricerange": ("cheap", "moderate", "expensive"), "food": (), "name": (),
            "bookday": DAYS, "bookpeople": ("1", "2"), "booktime": (), "phone": (),
        },
        "hotel": {
            "area": AREAS, "type": ("guesthouse", "hotel"), "stars": ("3", "4"), "parking": ("free", "no", "yes"),
            "internet": ("free", "no", "yes"), "name": (), "bookstay": ("1",), "bookpeople": ("1",), "bookday": DAYS,
        },
        "attraction": {"area": AREAS, "type": ("museum", "swimmingpool"), "name": ()},
        "train": {
            "departure": ("ashby", "corle bay"), "destination": ("ashby", "corle bay"), "day": DAYS,
            "leaveat": (), "arriveby": (), "bookpeople": ("1",),
        },
        "taxi": {"departure": (), "destination": (), "leaveat": (), "arriveby": ()},
    }
)  # fmt: skip
DATABASE = Database(
    {
        "restaurant": [
            {"id": "1", "name": "the blue fig", "food": "italian", "area": "centre", "pricerange": "cheap"},
            {"id": "2", "name": "north star", "food": "modern european", "area": "north", "pricerange": "cheap"},
            {"id": "3", "name": "the place", "food": "indian", "area": "north", "pricerange": "expensive"},
        ],
        "hotel": [{"id": "1", "name": "mill arms hotel", "area": "north", "type": "hotel", "stars": "4"}],
        "attraction": [{"id": "1", "name": "clock museum", "area": "centre", "type": "museum"}],
        "train": [
            {"trainID": "T1", "departure": "ashby", "destination": "corle bay", "leaveAt": "9:05", "arriveBy": "10:00"}
        ],
    }
)
ONTOLOGY = build_ontology(DATABASE, SCHEMA)


def after(*utterances, state=None, domain=None, offered=None):
    tracked = None
    for utterance in utterances:
        tracked = track(state or {}, utterance, ONTOLOGY, domain=domain, offered=offered)
        state, domain = tracked
    return tracked


@pytest.mark.parametrize(
    ("utterance", "expected"),
    [
        ("A cheap Italian restaurant in the town center, please.", "area=centre food=italian pricerange=cheap"),
        ("modern european food", "food=modern european"),
        ("somewhere to eat that is moderately-priced", "pricerange=moderate"),
        ("Do they serve Caribbean food?", "food=caribbean"),
        ("How about The Blue Fig?", "name=the blue fig"),
        ("I want to eat at North Star", "name=north star"),
        ("a place to eat", ""),
        ("book a table for 4 people on Friday at 6:30 p.m.", "bookpeople=4 bookday=friday booktime=18:30"),
        ("a table for two at noon", "bookpeople=2 booktime=12:00"),
        ("dinner for just me at 7pm", "bookpeople=1 booktime=19:00"),
    ],
)
def test_restaurant_values(utterance, expected):
    slots = dict(pair.split("=") for pair in expected.replace(" book", "|book").replace(" food", "|food")
                 .replace(" price", "|price").split("|") if pair)  # fmt: skip
    assert after(utterance).state.get("restaurant", {}) == slots
    assert after(utterance).domain == "restaurant"


@pytest.mark.parametrize(
    ("utterance", "slots"),
    [
        ("a 4 star guest house with parking", dict(stars="4", type="guesthouse", parking="yes")),
        ("a hotel with free wifi", dict(internet="yes")),
        ("a hotel, no parking", dict(parking="no")),
        ("a hotel, i don't need parking", {}),
        ("a room for two people for three nights from monday", dict(bookpeople="2", bookstay="3", bookday="monday")),
        ("is there anything at the Mill Arms?", dict(name="mill arms hotel")),
    ],
)  # fmt: skip
def test_hotel_values(utterance, slots):
    assert after(utterance).state.get("hotel", {}) == slots


@pytest.mark.parametrize(
    ("utterance", "slots"),
    [
        ("a train from ashby to corle bay on friday", dict(departure="ashby", destination="corle bay", day="friday")),
        ("ashby to corle bay by train", dict(departure="ashby", destination="corle bay")),
        ("a train arriving in ashby by 10:15", dict(destination="ashby", arrive="10:15")),
        ("a train leaving corle bay after 9", dict(departure="corle bay")),
        ("a train leaving after 9:05 and i must be there by 5 pm", dict(leave="09:05", arrive="17:00")),
        ("i need 3 train tickets", dict(bookpeople="3")),
    ],
)
def test_train_values(utterance, slots):
    assert after(utterance).state.get("train", {}) == slots


def test_a_taxi_goes_to_venues_and_to_the_one_spoken_of_before():
    state = {"hotel": {"name": "mill arms hotel"}}
    tracked = after("a taxi from the hotel to the clock museum, leaving at 8am", state=state)
    assert tracked.state["taxi"] == dict(departure="mill arms hotel", destination="clock museum", leave="08:00")
    assert tracked.state["hotel"] == {"name": "mill arms hotel"}
    assert tracked.domain == "taxi"


def test_clauses_belong_to_their_own_domain():
    tracked = after("A cheap restaurant in the centre and a guesthouse in the north. Also a museum.")
    assert tracked.state == {
        "restaurant": {"area": "centre", "pricerange": "cheap"},
        "hotel": {"area": "north", "type": "guesthouse"},
        "attraction": {"type": "museum"},
    }


def test_later_turns_stay_with_the_domain_and_replace_values():
    tracked = after("a cheap restaurant in the centre", "rather the north, please", "for 3 people at 19:00")
    assert tracked.state == {
        "restaurant": {"area": "north", "pricerange": "cheap", "bookpeople": "3", "booktime": "19:00"}
    }


def test_dont_care_removes_a_slot_and_a_changed_constraint_removes_the_name():
    state = {"restaurant": {"area": "centre", "pricerange": "cheap", "name": "the blue fig"}}
    assert after("any area is fine", state=state, domain="restaurant").state == {
        "restaurant": {"pricerange": "cheap", "name": "the blue fig"}
    }
    assert after("an expensive one", state=state, domain="restaurant").state == {
        "restaurant": {"area": "centre", "pricerange": "expensive"}
    }


def test_what_the_system_offered_becomes_the_name_once_it_is_booked_or_asked_about():
    offered = {"restaurant": "the blue fig"}
    known = dict(domain="restaurant", offered=offered)
    assert after("what else is there?", **known).state == {}
    assert after("what is the phone number?", **known).state == {"restaurant": {"name": "the blue fig"}}
    booked = after("for 2 people on monday", **known).state["restaurant"]
    assert booked == {"name": "the blue fig", "bookpeople": "2", "bookday": "monday"}


def test_same_takes_values_over():
    state = {"restaurant": {"area": "north", "bookday": "friday", "bookpeople": "2"}}
    tracked = after("a hotel in the same area for the same group on the same day", state=state)
    assert tracked.state["hotel"] == {"area": "north", "bookday": "friday", "bookpeople": "2"}


def test_a_bare_number_answers_how_many():
    assert after("4", domain="restaurant").state == {"restaurant": {"bookpeople": "4"}}
    state = {"hotel": {"bookpeople": "4"}}
    assert after("just two please", state=state, domain="hotel").state == {
        "hotel": {"bookpeople": "4", "bookstay": "2"}
    }


def test_it_is_pure_and_says_nothing_of_unknown_domains():
    state = {"restaurant": {"area": "north"}}
    assert after("thank you, goodbye", state=state, domain="restaurant").state == state
    after("in the centre", state=state, domain="restaurant")
    assert state == {"restaurant": {"area": "north"}}
    assert after("hello, in the north at 9:00") == ({}, None)
    assert mentioned_domain("i also need a taxi", ONTOLOGY) == "taxi"
    assert mentioned_domain("what is the postcode?", ONTOLOGY) is None


def test_names_in_replies():
    assert ONTOLOGY.find_name("restaurant", "The Blue Fig is cheap, North Star is not.") == "the blue fig"
    assert ONTOLOGY.find_name("restaurant", "there is a nice place") is None
    assert ONTOLOGY.find_name("taxi", "the blue fig") is None


def test_most_gold_slots_of_real_dialogues_are_found(real_root):
    from morejax.tasks.multiwoz.reader import read_corpus

    corpus = read_corpus(real_root, "dev")
    ontology = build_ontology(corpus.database, corpus.schema)
    hits = found = gold = 0
    for dialogue in corpus.dialogues("dev")[:100]:
        before, domain, offered = {}, None, {}
        for turn in dialogue.turns:
            state, domain = track(before, turn.user, ontology, domain=domain, offered=offered)
            mine, theirs = _pairs(state), _pairs(turn.state)
            hits, found, gold = hits + len(mine & theirs), found + len(mine), gold + len(theirs)
            named = {name: ontology.find_name(name, turn.response) for name in ontology.names}
            offered |= {name: venue for name, venue in named.items() if venue}
            before = turn.state
    # From the gold state of the turn before: a check against getting much worse, not a claim.
    assert hits / found > 0.94
    assert hits / gold > 0.94


def _pairs(state):
    return {(domain, slot, value) for domain, slots in state.items() for slot, value in slots.items()}
