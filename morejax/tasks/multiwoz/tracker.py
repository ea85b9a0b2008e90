"""A belief state from what a person typed: the rule-based tracker behind the chat.

On the policy track the model is given the state, so a person who talks to it needs something that writes one. This
does, with nothing but the words of the schema and the databases: an utterance is cut into clauses, a clause belongs
to a domain (by a word such as "hotel", by a venue's name, by a value that only one domain has, or by what was spoken
of before), and every value found in it goes to a slot of that domain. It is no model of language: it does not see
misspellings, names that are not in the databases, or what only the context tells. Scores are never taken from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from morejax.tasks.multiwoz.canonical import FOODS
from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.normalise import normalise_slot, normalise_value
from morejax.tasks.multiwoz.records import Schema, State

_NUMBERS = {
    "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10", "eleven": "11", "twelve": "12",
}  # fmt: skip
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_SPELLINGS: dict[str, dict[str, str]] = {
    "area": {
        "center": "centre", "downtown": "centre", "northern": "north", "southern": "south", "eastern": "east",
        "western": "west",
    },
    "pricerange": {
        "inexpensive": "cheap", "low cost": "cheap", "budget": "cheap", "affordable": "cheap",
        "moderately": "moderate", "mid range": "moderate", "mid priced": "moderate", "upscale": "expensive",
        "high end": "expensive", "pricey": "expensive", "fancy": "expensive",
    },
    "type": {
        "guest house": "guesthouse", "bed and breakfast": "guesthouse", "swimming pool": "swimmingpool",
        "pool": "swimmingpool", "night club": "nightclub", "concert hall": "concerthall", "theater": "theatre",
        "movie theater": "cinema",
    },
    "food": FOODS,
}  # fmt: skip

_CUES = {
    # Journeys first: "a taxi from the hotel" is about the taxi.
    "taxi": r"taxis?|cabs?|an? car",
    "train": r"trains?|rail|railway",
    "bus": r"bus(es)?",
    "hospital": r"hospitals?",
    "police": r"police",
    "restaurant": r"restaurants?|eat|eatery|eateries|eating|dine|dining|food|meals?|lunch|dinner|tables?|cuisine",
    "hotel": r"hotels?|guest ?houses?|rooms?|lodging|accommodations?|stay|staying|sleep|bed and breakfast",
    "attraction": r"attractions?|sightseeing|outing|(places?|somewhere|something|things?) to (visit|see|go|do)",
}
_JOURNEYS = ("taxi", "train", "bus")
_VENUES = ("restaurant", "hotel", "attraction")
_OTHER_FOODS = (
    "african", "american", "australian", "austrian", "brazilian", "bulgarian", "caribbean", "cuban", "ethiopian",
    "german", "greek", "halal", "hawaiian", "hungarian", "irish", "jamaican", "korean", "kosher", "malaysian",
    "mexican", "moroccan", "persian", "peruvian", "polish", "polynesian", "russian", "scandinavian", "scottish",
    "swiss", "vegan", "vegetarian", "welsh",
)  # fmt: skip
"""Asked for although no restaurant may serve them."""
_OWN = {"food": "restaurant", "stars": "hotel", "internet": "hotel", "parking": "hotel", "bookstay": "hotel"}
_SEARCH = frozenset({"area", "food", "pricerange", "stars", "type", "internet", "parking"})
_SLOT_WORDS = {
    "area": "area", "part": "area", "location": "area", "side": "area", "price": "pricerange", "food": "food",
    "cuisine": "food", "star": "stars", "stars": "stars", "type": "type", "kind": "type",
}  # fmt: skip

_SAME = {"area": r"area|part|side|section", "day": "day", "people": "group|people|party|number", "pricerange": "price"}

_CLAUSE = re.compile(
    r"[.?!;]+(?=\s|$)|,? \b(?:and|plus|as well as)\b (?=(?:a|an|some|also|i|we|then|now|find|book|get)\b)"
    r"|\b(?:also|now|next|next up)\b,?"
)
_TIME = re.compile(
    r"\b(?P<hour>\d{1,2})(?:(?:[:.](?P<minute>\d\d))\s*(?P<half>am|pm)?|\s*(?P<half2>am|pm|o'?clock))\b"
    r"|\b(?P<word>noon|midday|midnight)\b"
)
_N = rf"(?P<n>\d{{1,2}}|{'|'.join(_NUMBERS)})"
_PEOPLE = re.compile(
    rf"\b{_N} (?:more |train )?(?:people|persons?|guests?|adults?|of us|tickets?|seats?|travell?ers?)\b"
    rf"|\b(?:party|group|family|table|room|rooms|seats?|tickets?) (?:of|for) {_N.replace('<n>', '<n2>')}\b"
    rf"|\bfor {_N.replace('<n>', '<n3>')}\b(?! (?:nights?|days?|stars?|am\b|pm\b|o'?clock)|[:.]\d)"
)
_ALONE = re.compile(
    r"\b(?:just|only) (?:for )?(?:me|myself)\b|\bby myself\b|\balone\b|\b(?:a|one) (?:single )?ticket\b"
)
_STAY = re.compile(rf"\b{_N} (?:nights?|days?)\b")
_STARS = re.compile(rf"\b{_N} stars?\b")
_BARE = re.compile(rf"^(?:for |just |only |it's |there are |there will be )*{_N}(?: please)?$")
_FACILITIES = {"parking": r"parking|park my car", "internet": r"internet|wi ?fi"}
_UNWANTED = re.compile(r"\b(?:no|not|don't|doesn't|without|never)\b[a-z' ]{0,25}$")
_INDIFFERENT = re.compile(r"\b(?:need|care|matter|mind|require)\b")
_DONT_CARE = re.compile(
    r"\b(?:any|whatever|don't (?:really )?care|doesn't (?:really )?matter|no (?:particular |specific )?preference)\b"
    rf"[a-z' ]{{0,24}}?\b({'|'.join(_SLOT_WORDS)})s?\b"
)
_ACCEPT = re.compile(
    r"\b(?:book|reserve|reservation|i'll take|take it|go with|that one|that works|sounds? (?:good|great|nice|perfect)"
    r"|perfect|yes|yeah|sure|address|phone|number|postcode|postal code|zip code)\b"
)
_TOWARDS = re.compile(r"\b(?:to|towards|into|in|at|reach\w*|for|destination(?: is| of)?|visit\w*)(?: the)? $")
_AWAY = re.compile(r"\b(?:from|out of|leav\w+|depart\w*(?: from| at)?|pick\w* (?:me|us) up (?:at|from|in))(?: the)? $")
_ARRIVING = re.compile(r"\barriv|\bget(?:s|ting)? (?:me |us |you )?(?:there|in|to)\b|\breach|\bbe there")
_LEAVING = re.compile(r"\bleav|\bdepart|\bpick|\bset(?:s|ting)? off|\bgo(?:es|ing)? at\b")


class _Values:
    """The spellings of a slot's values, found as whole words, the longest first."""

    def __init__(self, spellings: Mapping[str, str]):
        self.value_of = dict(spellings)
        words = "|".join(re.escape(word) for word in sorted(self.value_of, key=lambda word: (-len(word), word)))
        self._pattern = re.compile(rf"\b(?:{words})(?=(?:e?s)?\b)") if words else None

    def find(self, text: str) -> list[tuple[re.Match[str], str]]:
        """Non-overlapping occurrences with their values."""
        found = self._pattern.finditer(text) if self._pattern else ()
        return [(match, self.value_of[match[0]]) for match in found]


@dataclass(frozen=True)
class Ontology:
    """What can be said: slots of every domain and the spellings of their values.

    Attributes:
        slots: domain -> state slots, in the scorer's names.
        values: (domain, slot) -> spellings of closed slots.
        names: venue domain -> names.
        stations: where trains go.
    """

    slots: Mapping[str, frozenset[str]]
    values: Mapping[tuple[str, str], _Values] = field(repr=False)
    names: Mapping[str, _Values] = field(repr=False)
    stations: _Values = field(repr=False)

    def find_name(self, domain: str, text: str) -> str | None:
        """The venue of the domain that a text names first; None if it names none."""
        found = self.names[domain].find(tidy(text)) if domain in self.names else []
        return found[0][1] if found else None


class Tracked(NamedTuple):
    """State after an utterance, and the domain that it is about (None while that is unknown)."""

    state: State
    domain: str | None


def build_ontology(database: Database, schema: Schema) -> Ontology:
    """Collect slots and values from the schema's closed lists and the databases' columns."""
    slots = {domain: frozenset(map(normalise_slot, listed)) for domain, listed in schema.services.items()}
    closed: dict[tuple[str, str], _Values] = {}
    for domain, listed in schema.services.items():
        for slot in (s for s in ("area", "department", "food", "pricerange", "type") if s in slots[domain]):
            known = {*listed.get(slot, ()), *_column(database, domain, slot)} - {"free"}
            if slot == "food":
                known |= set(_OTHER_FOODS) - set(FOODS)
            if domain == "hotel" and slot == "type":
                known.discard("hotel")  # the word for the domain says nothing of the type
            spelled = {tidy(value): value for value in known}
            spelled |= {word: value for word, value in _SPELLINGS.get(slot, {}).items() if value in known}
            closed[domain, slot] = _Values(spelled)
    names = {domain: _Values(_name_spellings(_column(database, domain, "name"))) for domain in _VENUES}
    stations = {
        tidy(place): place
        for slot in ("departure", "destination")
        for place in (*schema.services.get("train", {}).get(slot, ()), *_column(database, "train", slot))
    }
    return Ontology(slots, closed, names, _Values(stations))


def _column(database: Database, domain: str, column: str) -> set[str]:
    values = (record.get(column) for record in database.records(domain))
    return {value for value in values if isinstance(value, str) and value not in ("", "?")}


def _name_spellings(names: Iterable[str]) -> dict[str, str]:
    spelled: dict[str, str] = {}
    for name in sorted(names):
        whole = tidy(name)
        if whole.startswith("the ") and " " in whole.removeprefix("the "):
            whole = whole.removeprefix("the ")  # "the place" keeps its article: "place" is any place
        core = re.sub(r" (?:hotel|restaurant|guest ?house)$", "", whole)
        if core != whole and " " in core:  # "university arms"; one word alone may be any word
            spelled.setdefault(core, name)
        spelled[whole] = name
    return spelled


def tidy(text: str) -> str:
    """Lower case, one apostrophe, `and` for `&`, no hyphens, `am` and `pm` without points, single spaces."""
    text = text.lower().replace("\u2019", "'").replace("&", " and ").replace("-", " ")
    text = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", text)
    return " ".join(text.split())


def mentioned_domain(utterance: str, ontology: Ontology) -> str | None:
    """The domain that an utterance speaks of last; None if no word tells."""
    found = [_clause_domain(clause, ontology) for clause in _clauses(tidy(utterance))]
    return next((domain for domain in reversed(found) if domain), None)


def track(
    state: Mapping[str, Mapping[str, str]],
    utterance: str,
    ontology: Ontology,
    *,
    domain: str | None = None,
    offered: Mapping[str, str] | None = None,
) -> Tracked:
    """The state after a user's utterance; the one before is not changed.

    A new value replaces the old one; "any area" removes it; a changed search constraint removes a name found under
    the old one. Booking or accepting takes the venue that the system offered last as the name.

    Args:
        state: before the utterance, in the scorer's normal form.
        utterance: what the person typed.
        ontology: of the corpus.
        domain: what the conversation was about before.
        offered: domain -> name of the venue that the system named last.

    Returns:
        The new state and the domain with most news, or the one spoken of last when there are none.
    """
    after: State = {name: dict(slots) for name, slots in state.items()}
    news: dict[str, int] = {}
    whole = tidy(utterance)
    for clause in _clauses(whole):
        domain = _clause_domain(clause, ontology) or domain
        if domain is None or domain not in ontology.slots:
            continue
        before = dict(after.get(domain, {}))
        values = [*_same(clause, domain, after), *_values(clause, domain, before, after, ontology)]
        found = {slot: normalise_value(slot, value) for slot, value in values if slot in ontology.slots[domain]}
        slots = merge(before, found, [_SLOT_WORDS[word] for word in _DONT_CARE.findall(clause)])
        _accept(slots, before, (offered or {}).get(domain), clause)
        news[domain] = news.get(domain, 0) + sum(before.get(slot) != value for slot, value in slots.items())
        after[domain] = slots
    latest = list(news)[::-1]
    most = max(latest, key=lambda name: news[name], default=None)
    about = most if most is not None and news[most] else domain
    return Tracked({name: slots for name, slots in after.items() if slots}, about)


def merge(before: Mapping[str, str], found: Mapping[str, str], dropped: Iterable[str] = ()) -> dict[str, str]:
    """A domain's slots with new values; a changed search constraint removes the name found under the old one."""
    slots = {slot: value for slot, value in before.items() if slot not in set(dropped)} | dict(found)
    changed = any(slot in before and before[slot] != value for slot, value in found.items() if slot in _SEARCH)
    if changed and "name" not in found:
        slots.pop("name", None)
    return slots


def _clauses(text: str) -> list[str]:
    return [clause.strip(" ,") for clause in _CLAUSE.split(text) if clause and clause.strip(" ,")]


def _clause_domain(clause: str, ontology: Ontology) -> str | None:
    cued = {
        name: found.start()
        for name, words in _CUES.items()
        if name in ontology.slots and (found := re.search(rf"\b(?:{words})\b", clause))
    }
    for name in (*_JOURNEYS, "hospital", "police"):
        if name in cued:
            return name
    named = next((name for name in _VENUES if name in ontology.slots and ontology.names[name].find(clause)), None)
    if cued and not (named and named not in cued and len(cued) > 1):
        return named if named in cued else min(cued, key=lambda name: cued[name])
    if named:
        return named
    if "attraction" in ontology.slots and ontology.values["attraction", "type"].find(clause):
        return "attraction"
    owned = next((owner for slot, owner in _OWN.items() if _says(slot, owner, clause, ontology)), None)
    return owned if owned in ontology.slots else None


def _says(slot: str, owner: str, clause: str, ontology: Ontology) -> bool:
    if slot in _FACILITIES:
        return bool(re.search(rf"\b(?:{_FACILITIES[slot]})\b", clause))
    if (owner, slot) in ontology.values:
        return bool(ontology.values[owner, slot].find(clause))
    return bool({"stars": _STARS, "bookstay": re.compile(rf"\b{_N} nights?\b")}[slot].search(clause))


def _values(clause: str, domain: str, slots: Mapping[str, str], state: State, ontology: Ontology) -> Iterator:
    """Slot-value pairs of a clause; what a name or place covers is not read again."""
    if domain in _JOURNEYS:
        text, places = _places(clause, domain, slots, state, ontology)
        yield from places
    else:
        text, names = clause, []
        if domain in ontology.names:
            names = ontology.names[domain].find(clause)
            text = _blank(clause, (match for match, _ in names))
        yield from (("name", name) for _, name in names[:1])
    for slot in ("area", "department", "food", "pricerange", "type"):
        if (domain, slot) in ontology.values and domain not in _JOURNEYS:
            yield from ((slot, value) for _, value in ontology.values[domain, slot].find(text)[-1:])
    yield from _facilities(text)
    for day in _WEEKDAYS:
        if re.search(rf"\b{day}\b", text):
            yield ("day" if "day" in ontology.slots[domain] else "bookday"), day
    for match in _TIME.finditer(text):
        yield _time_slot(text[: match.start()], domain), _clock(match)
    yield from _counts(_blank(text, _TIME.finditer(text)), slots, ontology.slots[domain])


def _same(clause: str, domain: str, state: State) -> Iterator[tuple[str, str]]:
    """What "in the same area", "on the same day" or "for the same group" takes over from another domain."""
    for what, words in _SAME.items():
        if re.search(rf"\bsame (?:{words})", clause):
            slots = {"day": ("day", "bookday"), "people": ("bookpeople",)}.get(what, (what,))
            others = [state[name] for name in state if name != domain]
            value = next((other[slot] for other in reversed(others) for slot in slots if slot in other), None)
            yield from ((slot, value) for slot in slots if value)


def _blank(text: str, matches: Iterable[re.Match[str]]) -> str:
    for match in matches:
        text = text[: match.start()] + "_" * (match.end() - match.start()) + text[match.end() :]
    return text


def _places(clause: str, domain: str, slots: Mapping[str, str], state: State, ontology: Ontology):
    """Where a journey starts and ends; a taxi also goes to venues and to "the hotel" spoken of before."""
    found = [] if domain == "taxi" else ontology.stations.find(clause)
    if domain == "taxi":
        for name, names in ontology.names.items():
            found += names.find(clause)
            for match in re.finditer(rf"\bthe {name}\b", clause):
                known = state.get(name, {}).get("name")
                found += [(match, known)] if known else []
        found = _longest(found + [pair for pair in ontology.stations.find(clause)])
    places: dict[str, str] = {}
    for match, place in found:
        places[_place_slot(clause, match, {**slots, **places})] = place
    return _blank(clause, (match for match, _ in found)), places.items()


def _longest(found: list[tuple[re.Match[str], str]]) -> list[tuple[re.Match[str], str]]:
    kept: list[tuple[re.Match[str], str]] = []
    for match, value in sorted(found, key=lambda pair: pair[0].start() - pair[0].end()):
        if all(match.end() <= other.start() or match.start() >= other.end() for other, _ in kept):
            kept.append((match, value))
    return sorted(kept, key=lambda pair: pair[0].start())


def _place_slot(clause: str, match: re.Match[str], slots: Mapping[str, str]) -> str:
    before = clause[: match.start()]
    if _AWAY.search(before) or re.match(r" to\b", clause[match.end() :]):
        return "departure"
    if _TOWARDS.search(before):
        return "destination"
    return "departure" if "destination" in slots else "destination"


def _time_slot(before: str, domain: str) -> str:
    if domain not in _JOURNEYS:
        return "booktime"
    last = {
        slot: max((match.start() for match in cue.finditer(before)), default=-1)
        for slot, cue in (("arrive", _ARRIVING), ("leave", _LEAVING))
    }
    if max(last.values()) < 0:
        return "arrive" if re.search(r"\b(?:by|before) (?:around |about )?$", before) else "leave"
    return max(last, key=lambda slot: last[slot])


def _clock(match: re.Match[str]) -> str:
    """HH:MM on the 24-hour clock."""
    if match["word"]:
        return "00:00" if match["word"] == "midnight" else "12:00"
    hour, half = int(match["hour"]), match["half"] or match["half2"]
    if half in ("am", "pm"):
        hour = hour % 12 + (12 if half == "pm" else 0)
    return f"{hour:02d}:{match['minute'] or '00'}"


def _counts(text: str, slots: Mapping[str, str], allowed: frozenset[str]) -> Iterator[tuple[str, str]]:
    if bare := _BARE.match(text):
        asked = [slot for slot in ("bookpeople", "bookstay") if slot in allowed]
        yield from ((slot, _number(bare["n"])) for slot in asked if slot not in slots or slot == asked[-1])
        return
    if stay := _STAY.search(text):
        yield "bookstay", _number(stay["n"])
    if stars := _STARS.search(text):
        yield "stars", _number(stars["n"])
    if people := _PEOPLE.search(text):
        yield "bookpeople", _number(people["n"] or people["n2"] or people["n3"])
    elif _ALONE.search(text):
        yield "bookpeople", "1"


def _number(word: str) -> str:
    return _NUMBERS.get(word, word)


def _facilities(text: str) -> Iterator[tuple[str, str]]:
    for slot, words in _FACILITIES.items():
        if match := re.search(rf"\b(?:{words})\b", text):
            unwanted = _UNWANTED.search(text[: match.start()])
            if not unwanted:
                yield slot, "yes"
            elif not _INDIFFERENT.search(unwanted[0] + text[match.end() :]):
                yield slot, "no"


def _accept(slots: dict[str, str], before: Mapping[str, str], offered: str | None, clause: str) -> None:
    booking = any(slot.startswith("book") and before.get(slot) != value for slot, value in slots.items())
    if offered and "name" not in slots and (booking or _ACCEPT.search(clause)):
        slots["name"] = offered
