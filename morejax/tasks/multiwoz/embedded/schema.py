"""``schema.json`` of the embedded corpus: services, slots and intents under their MultiWOZ 2.2 names."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from morejax.tasks.multiwoz.embedded import entities

PEOPLE = tuple(str(number) for number in range(1, 9))
YES_NO = ("free", "no", "yes")
PLACES = tuple(sorted((entities.CITY, *entities.TOWNS)))
OPEN: tuple[str, ...] = ()

# Service -> (purpose, slots that can be constrained and their closed value lists, slots to be asked for).
SERVICES: dict[str, tuple[str, dict[str, tuple[str, ...]], tuple[str, ...]]] = {
    "restaurant": (
        "tables in the town's restaurants",
        {
            "food": OPEN,
            "pricerange": entities.PRICE_RANGES,
            "area": entities.AREAS,
            "name": OPEN,
            "bookday": entities.DAYS,
            "bookpeople": PEOPLE,
            "booktime": OPEN,
        },
        ("address", "phone", "postcode", "ref"),
    ),
    "hotel": (
        "rooms in the town's hotels and guesthouses",
        {
            "type": entities.HOTEL_TYPES,
            "pricerange": entities.PRICE_RANGES,
            "area": entities.AREAS,
            "stars": entities.STARS,
            "parking": YES_NO,
            "internet": YES_NO,
            "name": OPEN,
            "bookday": entities.DAYS,
            "bookpeople": PEOPLE,
            "bookstay": PEOPLE,
        },
        ("address", "phone", "postcode", "ref"),
    ),
    "attraction": (
        "what there is to see in town",
        {"type": entities.ATTRACTION_TYPES, "area": entities.AREAS, "name": OPEN},
        ("address", "phone", "postcode", "entrancefee", "openhours"),
    ),
    "train": (
        "trains between the town and its neighbours",
        {
            "departure": PLACES,
            "destination": PLACES,
            "day": entities.DAYS,
            "leaveat": OPEN,
            "arriveby": OPEN,
            "bookpeople": PEOPLE,
        },
        ("trainid", "ref", "price", "duration"),
    ),
    "taxi": (
        "rides within the town",
        {"departure": OPEN, "destination": OPEN, "leaveat": OPEN, "arriveby": OPEN},
        ("type", "phone"),
    ),
}
INTENTS = {
    "restaurant": ("find_restaurant", "book_restaurant"),
    "hotel": ("find_hotel", "book_hotel"),
    "attraction": ("find_attraction",),
    "train": ("find_train", "book_train"),
    "taxi": ("find_taxi",),
}


def is_categorical(service: str, slot: str) -> bool:
    """Whether a slot takes its values from a closed list."""
    return bool(SERVICES[service][1].get(slot))


@lru_cache(maxsize=1)
def build_schema() -> list[dict[str, Any]]:
    """The schema as it is written to ``schema.json``."""
    return [_service(name) for name in SERVICES]


def _service(name: str) -> dict[str, Any]:
    description, constrained, asked = SERVICES[name]
    return {
        "service_name": name,
        "description": description,
        "slots": [_slot(name, slot, values) for slot, values in constrained.items()]
        + [_slot(name, slot, None) for slot in asked],
        "intents": [_intent(name, intent) for intent in INTENTS[name]],
    }


def _slot(service: str, slot: str, values: tuple[str, ...] | None) -> dict[str, Any]:
    described: dict[str, Any] = {"name": f"{service}-{slot}", "description": f"{slot} of the {service}"}
    if values is not None:
        described["possible_values"] = list(values)
    return {**described, "is_categorical": bool(values)}


def _intent(service: str, intent: str) -> dict[str, Any]:
    return {
        "name": intent,
        "description": intent.replace("_", " a "),
        "is_transactional": intent.startswith("book"),
        "required_slots": [],
        "optional_slots": {f"{service}-{slot}": "dontcare" for slot in SERVICES[service][1]},
    }
