"""The invented town of Wrenford: restaurants, hotels, attractions and trains, in MultiWOZ database columns.

The town does not depend on the corpus seed: every embedded corpus has the same databases.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

CITY = "wrenford"
TOWNS = (
    "hollin bay",
    "kestrel bridge",
    "larkhaven",
    "mossgate",
    "pinewick",
    "quarry vale",
    "saltmarsh end",
    "dunholme",
)
AREAS = ("centre", "east", "north", "south", "west")
PRICE_RANGES = ("cheap", "moderate", "expensive")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
FOODS = (
    "italian",
    "indian",
    "thai",
    "mexican",
    "turkish",
    "japanese",
    "greek",
    "vietnamese",
    "spanish",
    "lebanese",
    "french",
    "moroccan",
)
ABSENT_FOODS = ("peruvian", "korean", "ethiopian", "hawaiian", "scottish", "bulgarian")
ATTRACTION_TYPES = (
    "museum",
    "park",
    "theatre",
    "cinema",
    "nightclub",
    "swimmingpool",
    "architecture",
    "concerthall",
)
HOTEL_TYPES = ("hotel", "guesthouse")
STARS = ("2", "3", "4", "5")
TAXI_COLOURS = ("green", "silver", "orange", "purple", "brown", "navy")
TAXI_MAKES = ("renault", "fiat", "kia", "seat", "mazda", "hyundai")
RESTAURANT_FIRST = (
    "cinnamon", "saffron", "velvet", "juniper", "marigold", "smoky", "lantern", "pepper", "thistle", "cobalt",
    "wandering", "tamarind",
)  # fmt: skip
RESTAURANT_SECOND = (
    "kettle", "ladle", "table", "orchard", "spoonery", "bakehouse", "skillet", "pantry", "hearth", "fig",
)  # fmt: skip
HOTEL_FIRST = (
    "heron", "willowbank", "stonefield", "beacon", "foxglove", "ivory", "meadow", "rookery", "harbourside",
    "tallow",
)  # fmt: skip
HOTEL_SECOND = ("retreat", "manor", "quarters", "chambers", "residence")
ATTRACTION_FIRST = (
    "bramble", "granite", "lilac", "foundry", "millstone", "sundial", "falcon", "moonrise", "clockmaker",
    "riverbend",
)  # fmt: skip
ATTRACTION_NOUNS = {
    "museum": ("collection", "toy museum"),
    "park": ("gardens", "common"),
    "theatre": ("playhouse", "stage"),
    "cinema": ("picture house", "screens"),
    "nightclub": ("vault", "dance floor"),
    "swimmingpool": ("baths", "lido"),
    "architecture": ("watchtower", "gatehouse"),
    "concerthall": ("recital rooms", "auditorium"),
}
STREETS = (
    "tannery row", "copperbeech lane", "ropewalk", "lower quay", "weavers yard", "hazel rise",
    "candle street", "old ferry road", "bishopsgrove", "cinder path", "vine terrace", "anchor hill",
)  # fmt: skip

Record = dict[str, str]


@dataclass(frozen=True)
class World:
    """Databases of the town: domain -> records with the columns of the MultiWOZ databases."""

    tables: dict[str, tuple[Record, ...]]

    def matches(self, domain: str, constraints: dict[str, str]) -> list[Record]:
        """Records that satisfy the constraints (schema slot names without domain; ``dontcare`` is none)."""
        found = list(self.tables[domain])
        for slot, value in constraints.items():
            if value != "dontcare":
                found = [record for record in found if _fits(record, slot, value)]
        return found


def _fits(record: Record, slot: str, value: str) -> bool:
    if slot == "leaveat":
        return record["leaveAt"] >= value
    if slot == "arriveby":
        return record["arriveBy"] <= value
    return slot not in record or record[slot] == value


@lru_cache(maxsize=1)
def build_world() -> World:
    """Build the town's databases, always the same."""
    rng = random.Random("wrenford")
    contacts = _Contacts(rng)
    return World(
        {
            "restaurant": tuple(_restaurants(rng, contacts)),
            "hotel": tuple(_hotels(rng, contacts)),
            "attraction": tuple(_attractions(rng, contacts)),
            "train": tuple(_trains(rng)),
        }
    )


class _Contacts:
    """Hands out addresses, postcodes and phone numbers, each once (01632 960 is reserved for fiction)."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._addresses = [f"{number} {street}" for street in STREETS for number in range(2, 98, 3)]
        self._phones = [f"01632960{number:03d}" for number in range(1000)]
        self._postcodes = [f"wf{out}{inward}{pair}" for out in range(1, 6) for inward in range(1, 10)
                           for pair in ("ab", "dk", "ht", "lq", "rn", "xe")]  # fmt: skip
        for pool in (self._addresses, self._phones, self._postcodes):
            rng.shuffle(pool)

    def next(self) -> Record:
        return {
            "address": self._addresses.pop(),
            "phone": self._phones.pop(),
            "postcode": self._postcodes.pop(),
        }


def _names(rng: random.Random, first: tuple[str, ...], second: tuple[str, ...], count: int, form: str) -> list[str]:
    names = [form.format(one, two) for one in first for two in second]
    return rng.sample(names, count)


def _restaurants(rng: random.Random, contacts: _Contacts) -> list[Record]:
    names = _names(rng, RESTAURANT_FIRST, RESTAURANT_SECOND, 96, "the {} {}")
    return [
        {
            "id": str(1001 + index),
            "name": name,
            "food": FOODS[index % len(FOODS)],
            "area": AREAS[rng.randrange(len(AREAS))],
            "pricerange": PRICE_RANGES[(index // len(FOODS)) % len(PRICE_RANGES)],
            "type": "restaurant",
            "introduction": "",
            **contacts.next(),
        }
        for index, name in enumerate(names)
    ]


def _hotels(rng: random.Random, contacts: _Contacts) -> list[Record]:
    names = _names(rng, HOTEL_FIRST, HOTEL_SECOND, 40, "{} {}")
    return [
        {
            "id": str(2001 + index),
            "name": name,
            "type": HOTEL_TYPES[index % 2],
            "area": AREAS[(index // 2) % len(AREAS)],
            "pricerange": rng.choice(PRICE_RANGES),
            "stars": rng.choice(STARS),
            "internet": rng.choice(("yes", "yes", "yes", "no")),
            "parking": rng.choice(("yes", "yes", "no")),
            "takesbookings": "yes",
            **contacts.next(),
        }
        for index, name in enumerate(names)
    ]


def _attractions(rng: random.Random, contacts: _Contacts) -> list[Record]:
    records = []
    for kind in ATTRACTION_TYPES:
        for name in _names(rng, ATTRACTION_FIRST, ATTRACTION_NOUNS[kind], 8, "{} {}"):
            records.append(
                {
                    "id": str(3001 + len(records)),
                    "name": name,
                    "type": kind,
                    "area": AREAS[len(records) % len(AREAS)],
                    "entrance fee": rng.choice(("free", "free", "3 pounds", "4.50 pounds", "6 pounds", "9 pounds")),
                    "openhours": rng.choice(("9 to 17", "10 to 18", "11 to 22")),
                    "pricerange": "?",
                    **contacts.next(),
                }
            )
    return records


def _trains(rng: random.Random) -> list[Record]:
    identifiers = rng.sample(range(1000, 10000), 2 * len(TOWNS) * len(DAYS) * 12)
    records = []
    for town in TOWNS:
        minutes, price = rng.randrange(17, 110), rng.randrange(480, 3200, 20)
        for start, end in ((CITY, town), (town, CITY)):
            first = 5 * 60 + rng.randrange(0, 60, 3)
            for day in DAYS:
                for number in range(12):
                    leave = first + 90 * number
                    records.append(
                        {
                            "trainID": f"WF{identifiers[len(records)]}",
                            "departure": start,
                            "destination": end,
                            "day": day,
                            "leaveAt": clock(leave),
                            "arriveBy": clock(leave + minutes),
                            "duration": f"{minutes} minutes",
                            "price": f"{price / 100:.2f} pounds",
                        }
                    )
    return records


def clock(minutes: int) -> str:
    """Minutes after midnight as ``HH:MM``."""
    return f"{minutes // 60:02d}:{minutes % 60:02d}"
