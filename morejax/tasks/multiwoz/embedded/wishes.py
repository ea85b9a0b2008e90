"""What the users of the embedded corpus want: one wish per domain, drawn so that it can be fulfilled."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from morejax.tasks.multiwoz.embedded import entities
from morejax.tasks.multiwoz.embedded.entities import Record, World, clock

VENUES = ("restaurant", "hotel", "attraction")
SCORED = {
    "phone": "PHONE",
    "address": "ADDRESS",
    "postcode": "POST",
    "trainid": "TRAINID",
    "ref": "REFERENCE",
}
"""Slots the standard scorer can require, and their names in ``goals.json``."""
EXTRAS = {
    "restaurant": ("area", "pricerange", "food"),
    "hotel": ("area", "pricerange", "stars"),
    "attraction": ("area", "entrancefee", "openhours"),
    "train": ("price", "duration", "price", "duration"),
}
DOMAIN_SETS = (
    (("restaurant",), 6),
    (("hotel",), 6),
    (("attraction",), 7),
    (("train",), 8),
    (("restaurant", "hotel"), 10),
    (("restaurant", "attraction"), 10),
    (("hotel", "attraction"), 9),
    (("hotel", "train"), 10),
    (("restaurant", "train"), 10),
    (("attraction", "train"), 10),
    (("restaurant", "attraction", "taxi"), 8),
    (("hotel", "restaurant", "taxi"), 7),
    (("hotel", "train", "attraction"), 3),
    (("attraction", "taxi"), 3),
    (("taxi",), 2),
)
SLOT_VALUES: dict[str, tuple[str, ...]] = {
    "food": entities.FOODS + entities.ABSENT_FOODS,
    "pricerange": entities.PRICE_RANGES,
    "area": entities.AREAS,
    "stars": entities.STARS,
}
BOOKING_TIMES = tuple(clock(minutes) for minutes in range(11 * 60, 21 * 60 + 1, 30))
PEAK = ("19:00", "19:30", "20:00")


@dataclass(frozen=True)
class Wish:
    """What the user wants in one domain.

    Attributes:
        domain: service name.
        constraints: slot -> value that hold at the end.
        misgivings: slot -> value said at first and replaced later (no match, or a change of mind).
        unmatched: whether nothing in the database fits while the misgivings hold.
        asks: slots to be told, in the order asked.
        booking: booking slot -> value; empty without a booking.
        rebooking: booking values that replace the first ones when the booking is refused.
    """

    domain: str
    constraints: dict[str, str]
    asks: tuple[str, ...] = ()
    misgivings: dict[str, str] = field(default_factory=dict)
    unmatched: bool = False
    booking: dict[str, str] = field(default_factory=dict)
    rebooking: dict[str, str] = field(default_factory=dict)

    def goal(self) -> dict[str, object]:
        """The wish as a domain's entry of ``goals.json``."""
        names = {"leaveat": "leave", "arriveby": "arrive"}
        asks = (*self.asks, "ref") if self.booking else self.asks
        return {
            "informable": {names.get(slot, slot): value for slot, value in self.constraints.items()},
            "requestable": [SCORED[slot] for slot in asks if slot in SCORED],
        }


def refused(booking: dict[str, str]) -> bool:
    """Whether a booking is refused: Friday and Saturday tables at peak hours, and stays over four nights."""
    peak = booking.get("bookday") in ("friday", "saturday") and booking.get("booktime") in PEAK
    return peak or int(booking.get("bookstay", "1")) > 4


def sample_domains(rng: random.Random) -> tuple[str, ...]:
    """Domains of one dialogue in the order they come up; a taxi comes last."""
    sets, weights = zip(*DOMAIN_SETS, strict=True)
    domains = list(rng.choices(sets, weights)[0])
    taxi = ["taxi"] if "taxi" in domains else []
    others = [domain for domain in domains if domain != "taxi"]
    rng.shuffle(others)
    return tuple(others + taxi)


def sample_wish(domain: str, world: World, rng: random.Random) -> Wish:
    """A wish for a venue or a train that the database can fulfil.

    Args:
        domain: ``restaurant``, ``hotel``, ``attraction`` or ``train``.
        world: databases.
        rng: source of randomness.

    Returns:
        The wish.
    """
    target = rng.choice(world.tables[domain])
    constraints = _train_constraints(target, rng) if domain == "train" else _venue_constraints(domain, target, rng)
    booking = _booking(domain, rng)
    asks = _asks(domain, constraints, bool(booking), rng)
    misgivings, unmatched = _misgivings(domain, constraints, world, rng)
    return Wish(
        domain,
        constraints,
        asks,
        misgivings,
        unmatched,
        booking,
        _rebooking(booking, rng) if refused(booking) else {},
    )


def _venue_constraints(domain: str, target: Record, rng: random.Random) -> dict[str, str]:
    if rng.random() < 0.1:
        return {"name": target["name"]}
    if domain == "attraction":
        slots = rng.choice((["type", "area"], ["type", "area"], ["type"], ["area"]))
    elif domain == "restaurant":
        slots = rng.choice(
            (["food", "area"], ["food", "pricerange"], ["area", "pricerange"], ["food", "area", "pricerange"])
        )
    else:
        comforts = [slot for slot in ("parking", "internet") if target[slot] == "yes"]
        slots = rng.sample(["type", "area", "pricerange", "stars", *comforts], rng.choice((2, 2, 3)))
    return {slot: target[slot] for slot in slots}


def _train_constraints(target: Record, rng: random.Random) -> dict[str, str]:
    constraints = {slot: target[slot] for slot in ("departure", "destination", "day")}
    if rng.random() < 0.5:
        constraints["leaveat"] = clock(max(0, _minutes(target["leaveAt"]) // 15 * 15 - rng.choice((0, 15, 30))))
    else:
        latest = -(-_minutes(target["arriveBy"]) // 15) * 15 + rng.choice((0, 15))
        constraints["arriveby"] = clock(min(latest, 23 * 60 + 45))
    return constraints


def _minutes(time: str) -> int:
    return int(time[:2]) * 60 + int(time[3:])


def _booking(domain: str, rng: random.Random) -> dict[str, str]:
    if domain == "attraction" or rng.random() < 0.4:
        return {}
    people = {"bookpeople": str(rng.randint(1, 8))}
    if domain == "train":
        return people
    if domain == "hotel":
        return people | {
            "bookday": rng.choice(entities.DAYS),
            "bookstay": str(rng.choice((1, 2, 2, 3, 3, 4, 5, 6))),
        }
    times = PEAK * 2 + BOOKING_TIMES
    return people | {
        "bookday": rng.choice((*entities.DAYS, "friday", "saturday")),
        "booktime": rng.choice(times),
    }


def _rebooking(booking: dict[str, str], rng: random.Random) -> dict[str, str]:
    if "bookstay" in booking:
        return {"bookstay": str(rng.randint(1, 4))}
    if rng.random() < 0.5:
        return {"bookday": rng.choice([day for day in entities.DAYS if day not in ("friday", "saturday")])}
    return {"booktime": rng.choice([time for time in BOOKING_TIMES if time not in PEAK])}


def _asks(domain: str, constraints: dict[str, str], books: bool, rng: random.Random) -> tuple[str, ...]:
    extra = [slot for slot in EXTRAS[domain] if slot not in constraints]
    extras = rng.sample(extra, 1) if extra and rng.random() < 0.25 else []
    if domain == "train":
        asks = ["trainid"] if not books or rng.random() < 0.25 else []
        asks += list(dict.fromkeys(rng.sample(EXTRAS["train"], rng.choice((1, 2))))) if asks else extras
    else:
        asks = rng.sample(["phone", "address", "postcode"], rng.choice((0, 0, 1, 2) if books else (1, 1, 2, 2, 3)))
        asks += extras if len(asks) < 3 else []
    rng.shuffle(asks)
    return tuple(asks)


def _misgivings(
    domain: str, constraints: dict[str, str], world: World, rng: random.Random
) -> tuple[dict[str, str], bool]:
    chance = rng.random()
    if "name" in constraints or chance > 0.3:
        return {}, False
    unmatched = chance < 0.16 and domain != "train"
    candidates = [
        {slot: value}
        for slot, value in _alternatives(constraints)
        if bool(world.matches(domain, {**constraints, slot: value})) != unmatched
    ]
    return (rng.choice(candidates), unmatched) if candidates else ({}, False)


def _alternatives(constraints: dict[str, str]) -> list[tuple[str, str]]:
    values = {**SLOT_VALUES, "type": entities.ATTRACTION_TYPES, "day": entities.DAYS}
    if constraints.get("type") in entities.HOTEL_TYPES:
        values["type"] = entities.HOTEL_TYPES
    return [
        (slot, value) for slot, current in constraints.items() for value in values.get(slot, ()) if value != current
    ]
