"""Normal forms of the standard scorer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morejax.tasks.multiwoz.canonical import (
    PLACEHOLDER_SPELLINGS,
    PLACEHOLDER_TOKEN,
    PLACEHOLDERS,
    UNIFIED_PLACEHOLDER,
)
from morejax.tasks.multiwoz.fuzzy import partial_ratio
from morejax.tasks.multiwoz.metrics import msttr, words
from morejax.tasks.multiwoz.normalise import (
    canonical_food,
    canonical_name,
    canonical_time,
    is_constraint,
    mentions,
    minutes,
    normalise_predicted_state,
    normalise_response,
    normalise_slot,
    normalise_state,
    normalise_value,
    unknown_placeholders,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The [restaurant_name] is in the [value_area] .", "the NAME is in the AREA."),
        ("[hotel_name]s and [name]es and [name]-s", "NAME and NAME and NAME"),
        ("[price range] -ly priced", "PRICE priced"),
        ("[value_choice] hotel -s", "COUNT hotel"),
        ("a [stars]-star", "a COUNTtar"),  # "-s" goes inside words as well
        ("[NAME]station", "NAMEtation"),  # and a plural ending is taken from the next word
        ("[ticket]s left", "left"),
        ("[hotel-name]", "[hotel-name]"),  # not a placeholder: a hyphen
        ("it 's 5 & 6 pounds !", "it 's 5 & 6 pounds!"),
        ("", ""),
    ],
)
def test_responses(text: str, normal: str) -> None:
    assert normalise_response(text) == normal


def test_every_spelling_gives_its_unified_placeholder() -> None:
    for unified, spellings in PLACEHOLDER_SPELLINGS.items():
        for spelling in spellings:
            assert normalise_response(f"x [{spelling.upper()}] y") == f"x {unified} y"
            token = PLACEHOLDER_TOKEN[spelling]
            assert token in PLACEHOLDERS
            assert normalise_response(token) == unified


def test_a_spelling_has_one_meaning() -> None:
    assert len(UNIFIED_PLACEHOLDER) == sum(map(len, PLACEHOLDER_SPELLINGS.values()))
    assert len(set(PLACEHOLDERS)) == len(PLACEHOLDERS) == 20
    assert UNIFIED_PLACEHOLDER["id"] == "TRAINID"
    assert UNIFIED_PLACEHOLDER["hospital_id"] == "ID"


@given(
    st.lists(st.sampled_from([*PLACEHOLDERS, "[foo]", "-s", "s", " ", ".", "ok", "'", "&", "-ly", "["]), max_size=12)
)
def test_mentions_are_those_of_the_normalised_text(parts: list[str]) -> None:
    text = "".join(parts)
    normal = normalise_response(text)
    tracked = {"NAME", "PHONE", "ADDRESS", "POST", "REFERENCE", "TRAINID"}
    assert mentions(text) & tracked == {placeholder for placeholder in tracked if placeholder in normal}


def test_mentions_and_unknown_placeholders() -> None:
    assert mentions("[Hotel_Name] costs [price] , [foo]") == {"NAME", "PRICE"}
    assert mentions("no placeholder") == frozenset()
    assert unknown_placeholders("[foo] [name] [bar]s") == ["foo", "bar"]


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("17:15", "17:15"),
        ("9:15", "09:15"),
        ("915", "915:00"),
        ("0915", "09:15"),
        ("9", "09:00"),
        (" After 9 : 30 ", "09:30"),
        ("afer 8:00", "08:00"),
        ("by 5:00 pm", "17:00"),
        ("by5:00", ":00"),  # "by" takes the next character with it
        ("5pm", "17:00"),
        ("12:30 p.m.", "24:30"),
        ("10:15 a.m.", "10:15"),
        ("10:15.", "10:15"),
        ("one o'clock p.m. or so", "13:00"),
        ("noon", "12:00"),
        ("am", "00:00"),
        ("", "00:00"),
        ("half past four pm", "half past four"),
        ("dontcare", "dontcare"),
    ],
)
def test_times(text: str, time: str) -> None:
    assert canonical_time(text) == time


def test_a_time_that_cannot_be_read_names_it() -> None:
    with pytest.raises(ValueError, match="half past 4:15 pm"):
        canonical_time("half past 4:15 pm")
    with pytest.raises(ValueError, match="15or16"):
        minutes("10:15or16:15")


@pytest.mark.parametrize(
    ("time", "number"), [("01:30", 90), ("24:30", 1470), ("1:30", 0), ("soon", 0), ("10:15:59", 615)]
)
def test_minutes(time: str, number: int) -> None:
    assert minutes(time) == number


def test_names_foods_types() -> None:
    assert canonical_name(" Cafe Uno ") == "caffe uno"
    assert canonical_name("bed&breakfast") == "bed and breakfast"
    assert canonical_name("a & b 's") == "a and b's"
    assert canonical_food("Portugese") == "portuguese"
    assert normalise_value("type", "night club") == "nightclub"
    assert normalise_value("type", "Night Club") == "Night Club"  # the standard does not fold case here
    assert normalise_value("parking", "free") == normalise_value("internet", "free") == "yes"
    assert normalise_value("departure", "the junction") == "junction theatre"
    assert normalise_value("area", "Free") == "Free"


def test_slots() -> None:
    spellings = ["Arrive By", "arriveby", "leave at", "leaveAt", "price range", "name"]
    assert [normalise_slot(s) for s in spellings] == ["arrive", "arrive", "leave", "leave", "pricerange", "name"]


def test_gold_state_from_slot_values() -> None:
    raw = {
        "hotel-area": ["centre"],
        "hotel-stars": ["dontcare"],
        "taxi-leaveat": ["19:00", "7pm"],
        "attraction-type": ["dontcare", "museum"],
        "hotel-bookpeople": ["2"],
    }
    assert normalise_state(raw) == {"hotel": {"area": "centre", "bookpeople": "2"}, "taxi": {"leave": "19:00"}}
    assert list(normalise_state(raw)) == ["hotel", "taxi"]
    with pytest.raises(ValueError, match="expected a name domain-slot"):
        normalise_state({"area": ["centre"]})
    with pytest.raises(ValueError, match="hotel-area"):
        normalise_state({"hotel-area": []})


def test_predicted_state() -> None:
    state = {"train": {"leave at": "9:15", "arriveBy": "5pm"}, "hotel": {}, "bus": {"leaveat": "", "leave": "1"}}
    assert normalise_predicted_state(state) == {
        "train": {"leave": "09:15", "arrive": "17:00"},
        "hotel": {},
        "bus": {"leave": "01:00"},  # the later of two spellings counts
    }
    assert normalise_predicted_state({"hotel": {"stars": 4, "area": None}}) == {"hotel": {"stars": 4, "area": None}}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "expected an object"),
        ({"hotel": "yes"}, "'hotel' is 'yes'"),
        ({"hotel": {"name": None}}, "'name' has the value None, expected text"),
        ({"hotel": {"area": ["north"]}}, "expected text"),
    ],
)
def test_broken_states(state: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalise_predicted_state(state)  # type: ignore[arg-type]


def test_is_constraint() -> None:
    assert [is_constraint(v) for v in ("dontcare", "do n't care", None, "any", "")] == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("first", "second", "ratio"),
    [
        ("same", "same", 100),
        ("", "", 100),
        ("", "x", 0),
        ("garden", "curry garden", 100),
        # One part is compared, "y garden" would be equally long as "yu garden" only with one letter more: 16 of 18.
        ("curry garden", "yu garden", 89),
        # rapidfuzz's own partial ratio is 92 here: it tries all parts, also those that start at no matching block.
        ("city centre north b and b", "a and b", 86),
    ],
)
def test_partial_ratio(first: str, second: str, ratio: int) -> None:
    assert partial_ratio(first, second) == ratio


@given(st.text("ab c", max_size=8), st.text("ab c", max_size=8))
def test_partial_ratio_is_a_percentage(first: str, second: str) -> None:
    assert 0 <= partial_ratio(first, second) <= 100
    assert partial_ratio(first, first + second) == 100 or not first


def test_words_of_richness() -> None:
    assert words("it's NAME, -LRB- at 5.30!") == ["its", "name", "lrb", "at", "530"]
    assert words("") == [""]
    assert words("hello .") == ["hello", ""]


def test_msttr() -> None:
    assert msttr(["a", "b", "a"]) == pytest.approx(2 / 3)
    # Two windows of 3; the last word does not count.
    assert msttr(list("aabcdee"), window=3) == pytest.approx((2 / 3 + 1) / 2)
