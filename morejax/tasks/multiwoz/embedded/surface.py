"""From slot values to words: surface forms, noun phrases and lists of constraints, annotated for one act."""

from __future__ import annotations

import random
from collections.abc import Mapping

from morejax.tasks.multiwoz.embedded import user_wording as words
from morejax.tasks.multiwoz.embedded.entities import Record
from morejax.tasks.multiwoz.embedded.phrase import Phrase, Speech, enumerate_phrases, fill, join, plain

PROPER = ("name", "departure", "destination", "day", "bookday", "food", "address")
COUNTED = ("bookpeople", "bookstay", "stars", "choice")
FLAGS = ("parking", "internet")
COLUMNS = {"trainid": "trainID", "leaveat": "leaveAt", "arriveby": "arriveBy", "entrancefee": "entrance fee"}
"""Database columns whose name is not the slot's."""


def column(record: Record, slot: str) -> str:
    """Value of a schema slot in a database record."""
    return record[COLUMNS.get(slot, slot)]


def surface(slot: str, value: str, rng: random.Random) -> str:
    """One way to write a value; the annotation keeps it apart from the value in the state."""
    if slot in PROPER:
        return value.title()
    if slot in ("postcode", "ref"):
        return value.upper()
    if slot in COUNTED and value in words.NUMBER_WORDS and rng.random() < 0.4:
        return words.NUMBER_WORDS[value]
    return rng.choice(words.SURFACES.get((slot, value), (value,)))


def fragment(slot: str, value: str, act: str, noun: str, rng: random.Random) -> Phrase:
    """One constraint in a few words, e.g. "somewhere in the north"."""
    taxi = act.startswith("Taxi")
    templates = (words.TAXI_FRAGMENTS if taxi else words.FRAGMENTS)[slot]
    alone = slot == "bookpeople" and value == "1"
    template = templates[0] if alone else rng.choice(templates)
    values: dict[str, str | Phrase] = {
        slot: surface(slot, value, rng),
        "noun": plain(noun),
        "persons": plain("person" if value == "1" else rng.choice(("people", "people", "guests"))),
        "nights": plain("night" if value == "1" else "nights"),
    }
    return fill(template, values, act, rng)


def flag_acts(act: str, values: Mapping[str, str]) -> tuple[tuple[str, str, str], ...]:
    """Acts of the constraints that have no annotated value: yes/no slots and dontcare."""
    return tuple((act, slot, value) for slot, value in values.items() if slot in FLAGS or value == "dontcare")


def constraint_list(act: str, values: Mapping[str, str], noun: str, rng: random.Random) -> Speech:
    """Constraints as a list: "something cheap and in the north"; travel and booking terms without "and"."""
    parts = [fragment(slot, value, act, noun, rng) for slot, value in values.items()]
    together = act.startswith(("Train", "Taxi")) or any(slot.startswith("book") for slot in values)
    return Speech(join(parts) if together else enumerate_phrases(parts), flag_acts(act, values))


def noun_phrase(act: str, values: Mapping[str, str], nouns: tuple[str, ...], rng: random.Random) -> Speech:
    """What is looked for or offered: "a cheap Thai restaurant in the north"."""
    if "name" in values:
        name = {"name": surface("name", values["name"], rng), "noun": plain(rng.choice(nouns))}
        return Speech(fill(rng.choice(words.NAMED), name, act, rng))
    if act.startswith(("Train", "Taxi")):
        parts = [fragment(slot, value, act, "", rng) for slot, value in values.items()]
        return Speech(join([plain(f"a(n) {rng.choice(nouns)}"), *parts]))
    before, after = _sides(values, rng)
    noun = "{type}" if "type" in values else rng.choice(nouns)
    template = " ".join(["a(n)", *before, noun, *after[:1]])
    if after[1:]:
        template += " " + " and ".join(after[1:])
    surfaces = {slot: surface(slot, value, rng) for slot, value in values.items()}
    return Speech(fill(template, surfaces, act, rng), flag_acts(act, values))


def _sides(values: Mapping[str, str], rng: random.Random) -> tuple[list[str], list[str]]:
    behind = {slot for slot in words.AFTER if slot in values and (slot not in words.BEFORE or rng.random() < 0.3)}
    before = [rng.choice(forms) for slot, forms in words.BEFORE.items() if slot in values and slot not in behind]
    after = [rng.choice(forms) for slot, forms in words.AFTER.items() if slot in behind]
    return before, after
