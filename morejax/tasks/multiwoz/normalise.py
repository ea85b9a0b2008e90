"""Normal forms of the standard scorer: responses, slots, values, times, states.

Every rule is part of the standard, also where it is surprising (``-s`` is removed inside words, "12:30 pm"
becomes "24:30"): numbers are comparable only if the same rules are applied to all systems.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from sacremoses import MosesDetokenizer, MosesTokenizer

from morejax.tasks.multiwoz.canonical import (
    DONT_CARE,
    FOODS,
    SLOT_SPELLINGS,
    TIME_BEGINNINGS,
    TIMES,
    TYPES,
    UNIFIED_PLACEHOLDER,
    VENUES,
)

PLACEHOLDER = re.compile(r"\[([\w\s]+)\](es|s|-s|-es|)")
"""A placeholder in a lower-case response, with the plural ending that goes with it."""

_CLOCK = re.compile(r"[0-9][0-9]:[0-9][0-9]")
_LEADING_WORDS = (("after", 5), ("afer", 4))


# Responses


@lru_cache(maxsize=1 << 16)
def normalise_response(text: str) -> str:
    """Normal form of a delexicalised response: lower case, unified upper-case placeholders, Moses
    detokenised.

    Args:
        text: response with placeholders in any published spelling, e.g. ``[name]``, ``[hotel_name]``,
            ``[value_name]``.

    Returns:
        The text that BLEU, richness and the search for mentioned placeholders are computed on.
    """
    unified = PLACEHOLDER.sub(lambda found: unify(found.group(1)), text.lower())
    tokenise, detokenise = _moses()
    return detokenise(tokenise(unified.replace("-s", "").replace("-ly", "")))


@lru_cache(maxsize=1 << 18)
def mentions(text: str) -> frozenset[str]:
    """Unified placeholders of a response: those that occur in ``normalise_response(text)``, found without
    building it.

    Args:
        text: response with placeholders in any published spelling.

    Returns:
        Upper-case placeholders such as ``NAME``.
    """
    if "[" not in text:
        return frozenset()
    return frozenset(unify(name) for name, _ in PLACEHOLDER.findall(text.lower())) - {""}


def unify(spelling: str) -> str:
    """Unified placeholder for a spelling without brackets; empty if the standard does not know it."""
    return UNIFIED_PLACEHOLDER.get(spelling.lower(), "")


def unknown_placeholders(text: str) -> list[str]:
    """Spellings in the text that the standard does not know and therefore removes."""
    return [name for name, _ in PLACEHOLDER.findall(text.lower()) if not unify(name)]


@cache
def _moses() -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    # Built on first use: compiling their character classes takes a while.
    return MosesTokenizer(lang="en").tokenize, MosesDetokenizer(lang="en").detokenize


# States


def normalise_state(slot_values: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """Gold state of a user turn from the ``slot_values`` of its frames, joined in their order.

    A slot with "dontcare" among its values is left out; of several values the first counts.

    Args:
        slot_values: as in the raw files, e.g. ``{"hotel-area": ["centre"], "taxi-leaveat": ["19:00",
            "7pm"]}``.

    Returns:
        ``{domain: {slot: value}}`` in normal form.

    Raises:
        ValueError: a name is not ``domain-slot``, a slot has no value, or a time cannot be read.
    """
    state: dict[str, dict[str, str]] = {}
    for name, values in slot_values.items():
        domain, dash, slot = name.partition("-")
        if not dash or not values:
            raise ValueError(f"slot {name!r} has the values {values!r}, expected a name domain-slot and a value")
        if "dontcare" in values:
            continue
        # Like the standard: "a-b-c" is the slot b of a.
        slot = normalise_slot(slot.split("-")[0])
        state.setdefault(domain, {})[slot] = normalise_value(slot, values[0])
    return state


def normalise_predicted_state(state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Normal form of a predicted state; of two spellings of a slot the later one counts.

    Args:
        state: ``{domain: {slot: value}}`` with slots and values in any published spelling.

    Raises:
        ValueError: the state is not of this form or a value cannot be read.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"the state is {state!r}, expected an object {{domain: {{slot: value}}}}")
    return {domain: _normalise_slots(domain, slots) for domain, slots in state.items()}


def _normalise_slots(domain: str, slots: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(slots, Mapping):
        raise ValueError(f"the state of {domain!r} is {slots!r}, expected an object {{slot: value}}")
    normal: dict[str, Any] = {}
    for spelling, value in slots.items():
        slot = normalise_slot(spelling)
        normal[slot] = normalise_value(slot, value)
    return normal


@lru_cache(maxsize=1 << 12)
def normalise_slot(slot: str) -> str:
    """Name of a slot or database column in the scorer: ``"Arrive By"`` -> ``"arrive"``."""
    slot = slot.lower().replace(" ", "")
    return SLOT_SPELLINGS.get(slot, slot)


def normalise_value(slot: str, value: Any) -> Any:
    """Normal form of a slot's value; values of slots without a rule stay as they are.

    Args:
        slot: a name as `normalise_slot` gives it.
        value: text; slots without a rule also take other plain JSON values, which no database entry equals.

    Raises:
        ValueError: the value is not text where text is needed, is a list or object, or is a time that cannot
        be read.
    """
    try:
        return _normalise_value(slot, value)
    except TypeError:
        raise ValueError(f"slot {slot!r} has the value {value!r}, expected text") from None


@lru_cache(maxsize=1 << 16, typed=True)
def _normalise_value(slot: str, value: Any) -> Any:
    rule = _RULES.get(slot)
    if rule is None:
        return value
    if not isinstance(value, str):
        if slot in _LITERAL_SLOTS:
            return value
        raise TypeError
    return rule(value)


def canonical_name(name: str) -> str:
    """Name of a venue or place, lower case, ``&`` spelled out, known misspellings replaced."""
    name = name.strip().lower().replace(" & ", " and ").replace("&", " and ").replace(" '", "'")
    return VENUES.get(name, name)


def canonical_food(food: str) -> str:
    """Food, lower case, known misspellings replaced."""
    food = food.strip().lower()
    return FOODS.get(food, food)


# Times


def canonical_time(text: str) -> str:
    """Time of day as HH:MM where the standard's rules find one; otherwise the text they leave.

    Raises:
        ValueError: an afternoon time with a colon whose hour is not a number.
    """
    time = text.strip().lower()
    if time in TIMES:
        return TIMES[time]
    for beginning, value in TIME_BEGINNINGS:
        if time.startswith(beginning):
            return value
    time = _without(_without_leading_words(time), "am", "a.m.")
    if time.endswith(("pm", "p.m.")):
        time = _without(time, "pm", "p.m.")
        afternoon = _afternoon(time, text)
        if afternoon is not None:
            return afternoon
    return _written_time(time)


def _without_leading_words(time: str) -> str:
    if time.startswith("by"):
        time = time[3:]
    for word, length in _LEADING_WORDS:
        if time.startswith(word):
            time = time[length:].strip()
    return time


def _without(time: str, *endings: str) -> str:
    for ending in endings:
        if time.endswith(ending):
            time = time[: -len(ending)].strip()
    return time


def _afternoon(time: str, text: str) -> str | None:
    hour, *rest = time.split(":")
    if len(rest) == 1:
        try:
            return f"{int(hour) + 12}:{rest[0]}"
        except ValueError:
            raise ValueError(f"time {text!r}: the hour {hour!r} is not a number") from None
    return f"{int(hour) + 12}:00" if not rest and hour.isdigit() else None


def _written_time(time: str) -> str:
    if not time:
        return "00:00"
    if time[-1] in ".,?":
        time = time[:-1]
    if time.isdigit():
        return f"{time[:2]}:{time[2:]}" if len(time) == 4 else f"{time.zfill(2)}:00"
    if ":" in time:
        time = time.replace(" ", "")
    if len(time) == 4 and time[1] == ":":
        hour, minute = time.split(":")[:2]
        return f"{hour.zfill(2)}:{minute}"
    return time


def minutes(time: str) -> int:
    """Minutes after midnight of a text that begins with HH:MM; 0 for every other text.

    Raises:
        ValueError: HH:MM is followed by something else, as in "10:15or11:00".
    """
    if not _CLOCK.match(time):
        return 0
    hour, minute = time.split(":")[:2]
    try:
        return int(hour) * 60 + int(minute)
    except ValueError:
        raise ValueError(f"time {time!r}: the minutes {minute!r} are not a number") from None


def is_constraint(value: Any) -> bool:
    """Whether a value constrains a database query (dontcare in its spellings and null do not)."""
    return value is not None and value not in DONT_CARE


_RULES: dict[str, Callable[[str], str]] = {
    "name": canonical_name,
    "destination": canonical_name,
    "departure": canonical_name,
    "food": canonical_food,
    "arrive": canonical_time,
    "leave": canonical_time,
    "time": canonical_time,
    "type": lambda value: TYPES.get(value, value),
    "parking": lambda value: "yes" if value == "free" else value,
    "internet": lambda value: "yes" if value == "free" else value,
}
# Their rules only compare, so the standard takes values that are not text here as well.
_LITERAL_SLOTS = frozenset({"type", "parking", "internet"})
