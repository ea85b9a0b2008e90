"""The taxi episode: two places, a time, a car and a number to call."""

from __future__ import annotations

import random
from collections.abc import Sequence

from morejax.tasks.multiwoz.embedded.conversation import Conversation
from morejax.tasks.multiwoz.embedded.phrase import Speech
from morejax.tasks.multiwoz.embedded.wishes import BOOKING_TIMES, Wish

PLACES = (
    "wrenford station",
    "the north pier",
    "weavers market",
    "the old observatory",
    "ferry landing",
    "town hall",
)


def taxi_wish(venues: Sequence[str], rng: random.Random) -> Wish:
    """A ride between the named venues of the dialogue, or between one of them and a place in town.

    Args:
        venues: names that came up, in order.
        rng: source of randomness.

    Returns:
        The wish.
    """
    places = list(venues[-2:]) + rng.sample(PLACES, 2)
    ends = places[:2]
    rng.shuffle(ends)
    constraints = {"departure": ends[0], "destination": ends[1]}
    constraints[rng.choice(("leaveat", "arriveby"))] = rng.choice(BOOKING_TIMES)
    return Wish("taxi", constraints, rng.choice((("phone",), ("phone",), ("type", "phone"))))


def ride(talk: Conversation, wish: Wish, *, brisk: bool) -> None:
    """Play the episode; a hurried agent asked for car and number gives only the car."""
    slots = list(wish.constraints)
    told = slots if brisk or talk.chance(0.4) else sorted(talk.rng.sample(slots, talk.rng.choice((1, 2))))
    first, rest = _split(wish.constraints, told)
    opening = not talk.exchanges

    def open_() -> Speech:
        speech = talk.user.open("taxi", first, first=opening)
        return speech if rest else speech + talk.user.ask_also("taxi", wish.asks)

    talk.says(open_, "taxi", first, asks=() if rest else wish.asks)
    if rest:
        missing = next(iter(rest))
        talk.replies(lambda: talk.agent.request("taxi", "leaveat" if missing == "arriveby" else missing, 0))
        talk.says(
            lambda: talk.user.tell("taxi", rest) + talk.user.ask_also("taxi", wish.asks),
            "taxi",
            rest,
            asks=wish.asks,
        )
    phone = not (talk.hurried and len(wish.asks) > 1)
    talk.replies(lambda: talk.agent.taxi(phone=phone))
    if not phone and talk.chance(0.2):
        talk.says(lambda: talk.user.ask_again("taxi", ("phone",)), "taxi", asks=("phone",))
        talk.replies(talk.agent.taxi_phone)


def _split(constraints: dict[str, str], told: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    first = {slot: value for slot, value in constraints.items() if slot in told}
    return first, {slot: value for slot, value in constraints.items() if slot not in told}
