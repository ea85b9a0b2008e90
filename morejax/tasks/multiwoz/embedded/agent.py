"""The agents of the embedded corpus: each method replies in one of many ways.

What an agent leaves out when it is in a hurry is decided in `episodes`; here is only how things are said.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from morejax.tasks.multiwoz.embedded import system_wording as words
from morejax.tasks.multiwoz.embedded import user_wording
from morejax.tasks.multiwoz.embedded.entities import TAXI_COLOURS, TAXI_MAKES, Record
from morejax.tasks.multiwoz.embedded.phrase import (
    Phrase,
    Speech,
    end_sentence,
    enumerate_phrases,
    fill,
    join,
    plain,
)
from morejax.tasks.multiwoz.embedded.surface import COLUMNS, column, constraint_list, noun_phrase, surface

DESCRIPTIONS = {
    "restaurant": ("food", "pricerange", "area"),
    "hotel": ("type", "pricerange", "area", "stars"),
    "attraction": ("type", "area"),
}
REFERENCE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"


class Agent:
    """Speech acts of an agent, drawn from the wording tables.

    Args:
        rng: source of randomness of the dialogue.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def request(self, domain: str, slot: str, matches: int) -> Speech:
        """Ask for a constraint, sometimes after saying how many records fit so far."""
        count = self._count(domain, matches) if matches > 1 and self._rng.random() < 0.4 else Speech(())
        return count + self._request(f"{domain.title()}-Request", slot)

    def request_booking(self, domain: str, slot: str) -> Speech:
        """Ask for a missing booking term."""
        return self._lead(self._request("Train-Request" if domain == "train" else "Booking-Request", slot))

    def offer(self, domain: str, record: Record, matches: int) -> Speech:
        """Name a venue that fits."""
        act = f"{domain.title()}-" + ("Recommend" if self._rng.random() < 0.4 else "Inform")
        if matches == 1 and self._rng.random() < 0.6:
            templates = words.OFFER_ONLY
        else:
            templates = words.OFFER_COUNTED if matches > 1 and self._rng.random() < 0.5 else words.OFFER
        values: dict[str, str | Phrase] = {
            "name": surface("name", record["name"], self._rng),
            "what": self._describe(act, domain, record),
            "choice": self._number(matches),
        }
        return self._lead(Speech(self._fill(templates, values, act)))

    def offer_nameless(self, domain: str, matches: int) -> Speech:
        """Say that something fits, and forget to say what."""
        values: dict[str, str | Phrase] = {
            "choice": self._number(matches),
            "noun": plain(self._rng.choice(words.NOUNS[domain])),
            "nouns": plain(self._rng.choice(words.PLURALS[domain])),
        }
        return Speech(self._fill(words.OFFER_NAMELESS, values, f"{domain.title()}-Inform"))

    def offer_train(self, record: Record, matches: int, *, nameless: bool) -> Speech:
        """Propose a train."""
        templates = words.OFFER_TRAIN_NAMELESS if nameless else words.OFFER_TRAIN
        slots = ("trainid", "leaveat", "arriveby", "day", "departure", "destination")
        values = {slot: surface(slot, column(record, slot), self._rng) for slot in slots}
        return self._lead(Speech(self._fill(templates, values | {"choice": str(matches)}, "Train-Inform")))

    def no_offer(self, domain: str, values: Mapping[str, str], topic: str) -> Speech:
        """Say that nothing fits and suggest another value."""
        act = f"{domain.title()}-NoOffer"
        what = noun_phrase(act, values, words.NOUNS[domain], self._rng)
        bare = tuple(replace(piece, text=piece.text.replace("a(n) ", "")) for piece in what.phrase)
        suggestion = {"topic": plain(user_wording.TOPICS[topic])}
        return Speech(self._fill(words.NO_OFFER, {"what": bare}, act), what.acts) + Speech(
            self._fill(words.SUGGEST_RELAXING, suggestion, ""), ((f"{domain.title()}-Request", topic, "?"),)
        )

    def follow_up(self, domain: str, *, booking: bool) -> Speech:
        """Offer to book or to tell more."""
        act = "Train-OfferBook" if domain == "train" else "Booking-Inform"
        if booking:
            return Speech(self._fill(words.OFFER_BOOKING, {}, ""), ((act, "none", "none"),))
        return Speech(self._fill(words.OFFER_DETAILS, {}, ""), (("general-reqmore", "none", "none"),))

    def answer(self, domain: str, record: Record, slots: Sequence[str], *, named: bool) -> Speech:
        """Tell attributes of a record, with or without its name."""
        if named:
            name = {"name": surface("name", record["name"], self._rng)}
            lead = self._fill(words.ANSWER_SUBJECT, name, f"{domain.title()}-Inform")
        else:
            lead = plain(self._rng.choice(words.ANSWER_LEAD))
        return Speech(join([lead, self.answer_also(domain, record, slots).phrase], ""))

    def answer_also(self, domain: str, record: Record, slots: Sequence[str]) -> Speech:
        """Tell attributes of a record after something else was said."""
        act = f"{domain.title()}-Inform"
        values = {slot: surface(slot, column(record, slot), self._rng) for slot in slots}
        clauses = [self._fill(words.ANSWER[slot], {slot: value}, act) for slot, value in values.items()]
        return Speech(end_sentence(enumerate_phrases(clauses)))

    def booked(self, domain: str, record: Record, terms: Mapping[str, str], *, nameless: bool) -> Speech:
        """Confirm a booking, without the reference number."""
        templates = words.BOOKED_TRAIN if domain == "train" else words.BOOKED
        if nameless:
            templates = tuple(text for text in templates if "{name}" not in text and "{trainid}" not in text)
        act = "Train-OfferBooked" if domain == "train" else "Booking-Book"
        values: dict[str, str | Phrase] = {"terms": constraint_list(act, self._some(terms), "", self._rng).phrase}
        for slot in ("name", "trainid"):
            if COLUMNS.get(slot, slot) in record:
                values[slot] = surface(slot, column(record, slot), self._rng)
        phrase = self._fill(templates, values, act)
        unspecific = not any(piece.slot for piece in phrase)
        return self._lead(Speech(phrase, ((act, "none", "none"),) if unspecific else ()))

    def reference(self, domain: str) -> Speech:
        """Give a reference number."""
        act = "Train-OfferBooked" if domain == "train" else "Booking-Book"
        code = "".join(self._rng.choices(REFERENCE_LETTERS, k=8))
        return Speech(self._fill(words.REFERENCE, {"ref": code}, act))

    def not_booked(self, record: Record, terms: Mapping[str, str], *, nameless: bool) -> Speech:
        """Refuse a booking and ask for other terms."""
        templates = tuple(text for text in words.NO_BOOK if not (nameless and "{name}" in text))
        act = "Booking-NoBook"
        values: dict[str, str | Phrase] = {
            "terms": constraint_list(act, terms, "", self._rng).phrase,
            "name": surface("name", record["name"], self._rng),
        }
        return Speech(self._fill(templates, values, act)) + Speech(self._fill(words.OTHER_SLOT, {}, ""))

    def taxi(self, *, phone: bool) -> Speech:
        """Confirm a taxi by its car, with or without the contact number."""
        car = f"{self._rng.choice(TAXI_COLOURS)} {self._rng.choice(TAXI_MAKES).title()}"
        described = fill("a(n) {type}", {"type": car}, "Taxi-Inform", self._rng)
        booked = Speech(self._fill(words.BOOKED_TAXI, {"car": described}, "Taxi-Inform"))
        return booked + (self.taxi_phone() if phone else Speech(()))

    def taxi_phone(self) -> Speech:
        """Give the contact number of a taxi."""
        number = {"phone": f"07700900{self._rng.randrange(1000):03d}"}
        return Speech(self._fill(words.TAXI_PHONE, number, "Taxi-Inform"))

    def anything_else(self) -> Speech:
        """Ask for further wishes."""
        return Speech(self._fill(words.ANYTHING_ELSE, {}, ""), (("general-reqmore", "none", "none"),))

    def goodbye(self) -> Speech:
        """Close the dialogue."""
        act = self._rng.choice(("general-bye", "general-welcome"))
        return Speech(self._fill(words.GOODBYE, {}, ""), ((act, "none", "none"),))

    def _fill(self, templates: Sequence[str], values: Mapping[str, str | Phrase], act: str) -> Phrase:
        return fill(self._rng.choice(templates), values, act, self._rng)

    def _lead(self, speech: Speech) -> Speech:
        return Speech(plain(self._rng.choice(words.OPTIONAL_LEAD)) + speech.phrase, speech.acts)

    def _request(self, act: str, slot: str) -> Speech:
        return Speech(self._fill(words.REQUEST[slot], {}, ""), ((act, slot, "?"),))

    def _count(self, domain: str, matches: int) -> Speech:
        return Speech(self._fill(words.COUNT, {"choice": self._number(matches)}, f"{domain.title()}-Inform"))

    def _number(self, matches: int) -> str:
        return "several" if matches > 9 and self._rng.random() < 0.5 else surface("choice", str(matches), self._rng)

    def _describe(self, act: str, domain: str, record: Record) -> Phrase:
        slots = DESCRIPTIONS[domain]
        kept = [slot for slot in slots if slot == "type" or self._rng.random() < 0.55] or [slots[-1]]
        return noun_phrase(act, {slot: record[slot] for slot in kept}, words.NOUNS[domain], self._rng).phrase

    def _some(self, terms: Mapping[str, str]) -> dict[str, str]:
        kept = [slot for slot in terms if self._rng.random() < 0.6] or [next(iter(terms))]
        return {slot: terms[slot] for slot in kept}
