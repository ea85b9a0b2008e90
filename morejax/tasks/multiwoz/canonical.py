"""Canonical names of the MultiWOZ standard scorer: placeholders, slots, venues, foods, types and times.

The tables are facts of the standard (Nekvinda and Dusek, "Shades of BLEU, Flavours of Success", GEM 2021, and
the tool published with it, Tomiinek/MultiWOZ_Evaluation); misspellings on the left of an arrow are ones found
in system outputs.
"""

from __future__ import annotations

PLACEHOLDER_SPELLINGS: dict[str, tuple[str, ...]] = {
    "ADDRESS": (
        "address", "attraction_address", "hospital_address", "hotel_address", "police_address",
        "restaurant_address", "value_address",
    ),
    "AREA": ("area", "value_area", "attraction_area", "restaurant_area", "hotel_area"),
    "TIME": (
        "time", "value_time", "booktime", "duration", "value_duration", "train_duration", "arriveby",
        "arrive by", "value_arrive", "taxi_arriveby", "train_arriveby", "train_arrive", "leaveat",
        "leave at", "value_leave", "taxi_leaveat", "train_leaveat", "train_leave",
    ),
    "DAY": ("day", "value_day", "bookday", "train_day"),
    "PLACE": (
        "value_place", "destination", "value_destination", "departure", "value_departure", "train_departure",
        "train_destination", "taxi_destination", "taxi_departure",
    ),
    "FOOD": ("food", "value_food", "restaurant_food"),
    "NAME": (
        "name", "attraction_name", "hospital_name", "hotel_name", "police_name", "restaurant_name",
        "value_name",
    ),
    "PHONE": (
        "phone", "attraction_phone", "hospital_phone", "hotel_phone", "police_phone", "restaurant_phone",
        "taxi_phone", "value_phone",
    ),
    "POST": (
        "postcode", "attraction_postcode", "hospital_postcode", "hotel_postcode", "police_postcode",
        "restaurant_postcode", "value_postcode",
    ),
    "PRICE": (
        "price", "value_price", "train_price", "attraction_price", "entrancefee", "entrance fee",
        "attraction_entrancefee", "pricerange", "price range", "value_pricerange", "restaurant_pricerange",
        "hotel_pricerange", "attraction_pricerange",
    ),
    "REFERENCE": (
        "reference", "ref", "attraction_reference", "hotel_reference", "restaurant_reference",
        "train_reference", "value_reference",
    ),
    "COUNT": (
        "value_count", "stars", "value_stars", "hotel_stars", "bookstay", "stay", "value_stay", "bookpeople",
        "people", "value_people", "choice", "value_choice", "attraction_choice", "hotel_choice",
        "restaurant_choice", "train_choice",
    ),
    "TYPE": (
        "type", "value_type", "restaurant_type", "hotel_type", "attraction_type", "taxi_type", "taxi_car",
        "car", "value_car",
    ),
    "TRAINID": ("trainid", "train_id", "value_id", "id", "train", "train_trainid"),
    "INTERNET": ("internet", "hotel_internet"),
    "PARKING": ("parking", "hotel_parking"),
    "ID": ("hospital_id", "attraction_id", "restaurant_id"),
    "DEPARTMENT": ("department", "value_department", "hospital_department"),
    "OPEN": ("openhours",),
}  # fmt: skip
"""Unified upper-case placeholder -> lower-case spellings that stand for it; all others are dropped."""

UNIFIED_PLACEHOLDER: dict[str, str] = {
    spelling: unified for unified, spellings in PLACEHOLDER_SPELLINGS.items() for spelling in spellings
}
"""Lower-case spelling, without brackets -> unified placeholder."""

# Our own spellings are a subset of the standard's: predictions written with them can be scored by any
# standard scorer. "[stars]" is kept apart from "[value_count]", as it is filled from the database and not
# counted.
_OWN_SPELLING: dict[str, str] = {
    **{unified: unified.lower() for unified in PLACEHOLDER_SPELLINGS},
    "COUNT": "value_count",
    "PLACE": "value_place",
    "POST": "postcode",
    "ID": "hospital_id",
    "OPEN": "openhours",
}

PLACEHOLDERS: tuple[str, ...] = (*sorted(f"[{s}]" for s in _OWN_SPELLING.values()), "[stars]")
"""The 20 placeholder tokens of our texts."""

PLACEHOLDER_TOKEN: dict[str, str] = {
    spelling: "[stars]" if spelling.endswith("stars") else f"[{_OWN_SPELLING[unified]}]"
    for spelling, unified in UNIFIED_PLACEHOLDER.items()
}
"""Any spelling of the standard, lower case and without brackets -> the token of our texts."""

SLOT_SPELLINGS: dict[str, str] = {"arriveby": "arrive", "leaveat": "leave"}
"""State slot or database column, lower case and without spaces -> its name in the scorer."""

DONT_CARE: tuple[str, ...] = (
    "dontcare", "not mentioned", "don't care", "dont care", "do n't care", "do not care",
)  # fmt: skip
"""Values that constrain nothing."""

TYPES: dict[str, str] = {
    "swimming pool": "swimmingpool",
    "mutliple sports": "multiple sports",
    "night club": "nightclub",
    "guest house": "guesthouse",
}

VENUES: dict[str, str] = {
    # restaurants
    "hotel du vin bistro": "hotel du vin and bistro",
    "the river bar and grill": "the river bar steakhouse and grill",
    "nando's": "nandos",
    "city center b and b": "city center north b and b",
    "acorn house": "acorn guest house",
    "caffee uno": "caffe uno",
    "cafe uno": "caffe uno",
    "rosa's": "rosas bed and breakfast",
    "restaurant called two two": "restaurant two two",
    "restaurant 2 two": "restaurant two two",
    "restaurant two 2": "restaurant two two",
    "restaurant 2 2": "restaurant two two",
    "restaurant 1 7": "restaurant one seven",
    "restaurant 17": "restaurant one seven",
    # hotels
    "lime house": "limehouse",
    "cityrooms": "cityroomz",
    "whale of time": "whale of a time",
    "huntingdon hotel": "huntingdon marriott hotel",
    "holiday inn exlpress, cambridge": "express by holiday inn cambridge",
    "university hotel": "university arms hotel",
    "arbury guesthouse and lodge": "arbury lodge guesthouse",
    "bridge house": "bridge guest house",
    "arbury guesthouse": "arbury lodge guesthouse",
    "nandos in the city centre": "nandos city centre",
    # attractions
    "broughton gallery": "broughton house gallery",
    "scudamores punt co": "scudamores punting co",
    "cambridge botanic gardens": "cambridge university botanic gardens",
    "the junction": "junction theatre",
    "trinity street college": "trinity college",
    "christ college": "christ's college",
    "christs": "christ's college",
    "history of science museum": "whipple museum of the history of science",
    "parkside pools": "parkside swimming pool",
    "the botanical gardens at cambridge university": "cambridge university botanic gardens",
    "cafe jello museum": "cafe jello gallery",
}
"""Name of a venue, or of a place that a train or taxi goes to, lower case -> a form close to the
database's."""

FOODS: dict[str, str] = {
    "eriterean": "mediterranean",
    "brazilian": "portuguese",
    "sea food": "seafood",
    "portugese": "portuguese",
    "modern american": "north american",
    "americas": "north american",
    "intalian": "italian",
    "italain": "italian",
    "asian or oriental": "asian",
    "english": "british",
    "australasian": "australian",
    "gastropod": "gastropub",
    "brutish": "british",
    "bristish": "british",
    "europeon": "european",
}

TIMES: dict[str, str] = {
    "morning": "08:00",
    "lunch": "12:00",
    "noon": "12:00",
    "mid-day": "12:00",
    "around lunch time": "12:00",
    "afternoon": "13:00",
    "seven o'clock tomorrow evening": "07:00",
    "three forty five p.m": "15:45",
    "one thirty p.m.": "13:30",
    "six fourty five": "06:45",
    "eight thirty": "08:30",
}
"""Spoken time, lower case -> HH:MM."""

TIME_BEGINNINGS: tuple[tuple[str, str], ...] = (("one o'clock p.m", "13:00"), ("ten o'clock a.m", "10:00"))
"""(beginning of a spoken time, HH:MM) pairs."""

VENUE_DOMAINS: tuple[str, ...] = ("restaurant", "attraction", "hotel", "train")
"""Domains in which something has to be offered; each has a database."""

MATCHED_DOMAINS: frozenset[str] = frozenset({"taxi", "police", "hospital"})
"""Domains in which nothing has to be offered."""

REQUESTABLES: tuple[str, ...] = ("PHONE", "ADDRESS", "POST", "REFERENCE", "TRAINID")
"""Placeholders that a goal can request."""

IGNORED_COLUMNS: dict[str, frozenset[str]] = {
    "attraction": frozenset({"location", "openhours"}),
    "hotel": frozenset({"location", "price", "takesbookings"}),
    "restaurant": frozenset({"location", "introduction", "signature"}),
    "train": frozenset(),
}
"""Database columns that no constraint is compared with."""

FUZZY_COLUMNS: dict[str, frozenset[str]] = {
    "attraction": frozenset({"name"}),
    "hotel": frozenset({"name"}),
    "restaurant": frozenset({"name", "food"}),
    "train": frozenset({"departure", "destination"}),
}
"""Database columns that are compared by partial ratio; all others must be equal."""

RICHNESS_DROPPED: tuple[str, ...] = (
    "``", "''", "'", ".", ",", "?", "!", ")", "(", "%", "/", "-", "_", "-LRB-", "-RRB-", "SYM", ":", ";",
)  # fmt: skip
"""Strings removed, in this order, before words are counted (those of the lexical_diversity package)."""
