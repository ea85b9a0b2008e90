from __future__ import annotations

import re
from typing import ClassVar

import pytest

from morejax.tasks.multiwoz import board
from morejax.tasks.multiwoz.lexicalise import booking_code, format_postcode, lexicalise

COLUMNS = (
    "name",
    "area",
    "type",
    "pricerange",
    "stars",
    "phone",
    "address",
    "postcode",
    "internet",
    "parking",
)
HOTELS = tuple(
    dict(zip(COLUMNS, row, strict=True))
    for row in (
        (
            "amber house",
            "north",
            "guesthouse",
            "cheap",
            "4",
            "0111",
            "1 mill lane, old town",
            "ab12cd",
            "yes",
            "no",
        ),
        ("birch inn", "north", "hotel", "dear", "3", "?", "2 elm road", "ab34ef", "no", "yes"),
        ("cedar lodge", "south", "guesthouse", "cheap", "4", "0333", "3 oak street", "ab56gh", "yes", "yes"),
    )
)
JOURNEY = {
    "departure": "alton",
    "destination": "bury",
    "day": "friday",
    "duration": "50 minutes",
    "price": "10.10 pounds",
}
TRAINS = (
    {"trainID": "TR1", "leaveAt": "09:00", "arriveBy": "09:50", **JOURNEY},
    {"trainID": "TR2", "leaveAt": "07:00", "arriveBy": "07:50", **JOURNEY},
)


class Tables:
    """Exact matching on the slots that a row has."""

    tables: ClassVar = {
        "hotel": HOTELS,
        "train": TRAINS,
        "attraction": ({"name": "the mill", "type": "museum", "entrance fee": "5 pounds", "openhours": "9 to 5"},),
        "hospital": ({"department": "eyes", "phone": "0777"}, {"department": "ears", "phone": "0888"}),
    }

    def query(self, domain, constraints):
        if domain == "hospital":
            return ()
        rows = self.tables.get(domain, ())
        return tuple(row for row in rows if all(row.get(slot, value) == value for slot, value in constraints.items()))

    def records(self, domain):
        return self.tables.get(domain, ())


def fill(text, domain="hotel", seed=0, booked=None, **constraints):
    state = {domain: constraints}
    return lexicalise(text, domain=domain, state=state, database=Tables(), booked=booked, seed=seed)


def test_details_follow_the_venue_named_before_them():
    text = "[name] : [phone] , [post] . [name] : [price] , [area] . [name] : [phone]"
    assert fill(text) == "amber house : 0111 , AB1 2CD . birch inn : dear , north . cedar lodge : 0333"


def test_names_beyond_the_result_repeat_the_last_and_the_constraint_narrows():
    assert fill("[name] , [name]", area="south") == "cedar lodge , cedar lodge"


def test_booking_slots_do_not_narrow_the_result():
    text = "booked for [count] people and [count] nights from [day] at [name]"
    assert fill(text, bookpeople="2", bookstay="5", bookday="monday") == (
        "booked for 2 people and 5 nights from monday at amber house"
    )


def test_counts_are_told_apart():
    assert fill("there are [count] places", area="north") == "there are 2 places"
    assert fill("a [count] star place") == "a 4 star place"
    assert fill("there are [count] places", area="west") == "there are no places"


def test_a_count_is_of_what_is_filled_in_beside_it():
    text = "there are [count] [type] and [count] [type] . [count] are in the [area] ."
    assert fill(text) == "there are 2 guesthouses and 1 hotel . 2 are in the north ."


def test_address_parts_are_one_address():
    assert fill("[name] , at [address] , [address] .") == "amber house , at 1 mill lane, old town ."


def test_what_is_not_on_record_stays_readable():
    assert fill("[name] , [name] : [phone]") == "amber house , birch inn : (no phone on record)"
    assert fill("[name] , [post] , [mystery]", area="west") == (
        "(no match on record) , (no postcode on record) , (no mystery on record)"
    )


def test_a_name_that_the_user_gave_is_used_when_nothing_matches():
    assert fill("[name] it is", name="dune hall") == "dune hall it is"


def test_facilities_read_as_words():
    assert fill("[name] has [internet] and [parking]") == "amber house has internet and no parking"


def test_published_spellings_are_filled_too():
    assert fill("[hotel_name] : [value_phone]") == "amber house : 0111"


def test_a_train_has_its_times_places_and_price():
    text = "[trainid] leaves [place] at [time] on [day] and arrives in [place] at [time] . takes [time] , [price]"
    assert fill(text, "train", leave="08:00", departure="alton") == (
        "TR2 leaves alton at 07:00 on friday and arrives in bury at 07:50 . takes 50 minutes , 10.10 pounds"
    )
    assert fill("to [place] from [place]", "train") == "to bury from alton"
    assert fill("it takes [time] minutes for [price] pounds", "train") == "it takes 50 minutes for 10.10 pounds"


def test_trains_come_earliest_first_unless_an_arrival_is_wanted():
    assert fill("[trainid] or [trainid]", "train") == "TR2 or TR1"
    assert fill("[trainid] or [trainid]", "train", arrive="10:00") == "TR1 or TR2"


def test_a_taxi_is_made_up_from_the_seed():
    text = "a [type] from [place] to [place] at [time] , call [phone]"
    state = {"departure": "amber house", "destination": "the mill", "leave": "12:15"}
    filled = fill(text, "taxi", **state)
    assert re.fullmatch(r"a \w+ \w+ from amber house to the mill at 12:15 , call 07\d{9}", filled)
    assert filled == fill(text, "taxi", **state)
    assert len({fill(text, "taxi", seed=seed, **state) for seed in range(8)}) == 8


def test_attractions_have_fees_and_hours():
    assert fill("[price] , open [open] or [time]", "attraction") == "5 pounds , open 9 to 5 or 9 to 5"


def test_hospitals_are_looked_up_by_department():
    assert fill("[department] : [phone]", "hospital", department="ears") == "ears : 0888"


def test_references_are_stable_distinct_and_kept():
    code = fill("[reference]", area="north")
    assert re.fullmatch(r"[A-Z2-9]{8}", code)
    assert code == fill("[reference]", area="north")
    assert code != fill("[reference]", area="south")
    assert code != fill("[reference]", area="north", seed=1)
    assert fill("[reference]", booked={"hotel": "GIVEN123"}) == "GIVEN123"
    assert booking_code("hotel", "a") != booking_code("train", "a")


def test_text_without_placeholders_is_untouched():
    assert fill("have a [good day] !") == "have a [good day] !"


def test_postcodes_are_written_as_people_do():
    codes = ("cb12dp", "cb1 2dp", "c.b 2, 1 d.b", "x1")
    assert [format_postcode(code) for code in codes] == ["CB1 2DP", "CB1 2DP", "CB2 1DB", "X1"]
    assert fill("[post] [postcode] [hotel_postcode]", name="amber house") == "AB1 2CD AB1 2CD AB1 2CD"


def test_board_rows_are_sorted_and_near():
    policy = board.nearest_rows("policy")
    assert policy[0].system == "DiactTOD"
    assert policy[0].combined == pytest.approx(110.3)
    assert [round(row.combined, 1) for row in policy] == sorted(
        (round(row.combined, 1) for row in policy), reverse=True
    )
    near = board.nearest_rows("e2e", combined=100.0, count=3)
    assert {row.system for row in near} == {"GALAXY", "MTTOD", "BORT"}
    assert {row.track for row in board.nearest_rows("e2e")} == {"e2e"}


def test_board_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="'both'"):
        board.nearest_rows("both")
    with pytest.raises(ValueError, match="count=3"):
        board.nearest_rows("policy", count=3)
