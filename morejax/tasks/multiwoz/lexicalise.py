"""Fills the placeholders of a delexicalised reply with values from the state and the database.

Used where a person reads the reply (chat). The scorer and the learning never see filled text. A placeholder
whose value is unknown becomes a readable phrase in brackets, ``(no phone on record)``, never a guess.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

PLACEHOLDER = re.compile(r"\[([a-z]+(?:_[a-z]+)*)\]", re.IGNORECASE)
_REPEATED_ADDRESS = re.compile(r"\[address\](?:\s*,?\s*\[address\])+", re.IGNORECASE)
_UNKNOWN = frozenset({"", "?", "none", "not mentioned", "dontcare"})
_CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
_CAR_COLOURS = ("black", "white", "red", "yellow", "blue", "grey")
_CAR_MAKES = ("toyota", "skoda", "bmw", "honda", "ford", "audi", "lexus", "volvo", "volkswagen", "tesla")

# Placeholder -> the names its value may have in a record, lower case without spaces.
_RECORD_FIELDS: dict[str, tuple[str, ...]] = {
    "name": ("name",),
    "trainid": ("trainid",),
    "phone": ("phone",),
    "address": ("address",),
    "post": ("postcode", "post"),
    "area": ("area",),
    "food": ("food",),
    "type": ("type",),
    "department": ("department",),
    "open": ("openhours", "open"),
    "stars": ("stars",),
    "id": ("id",),
    "leave": ("leaveat", "leave"),
    "arrive": ("arriveby", "arrive"),
    "duration": ("duration",),
    "day": ("day",),
    "departure": ("departure",),
    "destination": ("destination",),
    "internet": ("internet",),
    "parking": ("parking",),
}
_PRICE_FIELDS = {"attraction": ("entrancefee", "pricerange"), "train": ("price",), "bus": ("price",)}
_WORDS = {
    "post": "postcode",
    "trainid": "train",
    "name": "match",
    "open": "opening hours",
    "leave": "departure time",
    "arrive": "arrival time",
}


class Queryable(Protocol):
    """What is needed of the database: :class:`morejax.tasks.multiwoz.database.Database` has it."""

    def query(self, domain: str, constraints: Mapping[str, str], /) -> Sequence[Mapping[str, Any]]:
        """Records of a domain that satisfy the constraints; none for a domain without a queryable table."""
        ...

    def records(self, domain: str, /) -> Sequence[Mapping[str, Any]]:
        """All records of a domain."""
        ...


def lexicalise(
    text: str,
    *,
    domain: str,
    state: Mapping[str, Mapping[str, str]],
    database: Queryable,
    booked: Mapping[str, str] | None = None,
    seed: int = 0,
) -> str:
    """Replace every placeholder of a reply by a value.

    The n-th ``[name]`` (``[trainid]``) is the n-th record of the domain's database result; what follows it,
    ``[phone]`` or ``[address]``, belongs to that record. Before the first one, values come from the user's
    constraints, then from the first record. Times, places and counts are told apart by the words around them.

    Args:
        text: delexicalised reply, e.g. ``"[name] is at [address] ."``.
        domain: active domain of the turn.
        state: belief state, domain -> slot -> value, in the scorer's normal form.
        database: answers ``query(domain, constraints)``.
        booked: domain -> booking code already given; a new code is made up for other domains.
        seed: varies the made-up values (booking codes, taxi cars and numbers); the same seed gives the same
            text.

    Returns:
        The reply with values; placeholders without a value become phrases such as ``(no phone on record)``.
    """
    constraints = dict(state.get(domain, {}))
    records = _ordered(domain, constraints, query_domain(database, domain, constraints))
    filler = _Filler(domain, constraints, records, dict(booked or {}), seed)
    return PLACEHOLDER.sub(filler.fill, _REPEATED_ADDRESS.sub("[address]", text))


def query_domain(database: Queryable, domain: str, constraints: Mapping[str, str]) -> Sequence[Mapping[str, Any]]:
    """Database result of a domain's constraints: booking slots do not narrow it, taxis have no records.

    Tables that the standard does not query (police, hospital) are looked up by department.
    """
    if domain in ("taxi", ""):
        return ()
    wanted = {slot: value for slot, value in constraints.items() if not slot.startswith("book")}
    if found := database.query(domain, wanted):
        return found
    department = _known(wanted.get("department", ""))
    records = database.records(domain) if domain in ("police", "hospital") else ()
    return [record for record in records if not department or _field(record, ("department",)) == department]


class _Filler:
    """Goes through the placeholders of one reply from left to right."""

    def __init__(
        self,
        domain: str,
        constraints: Mapping[str, str],
        records: Sequence[Mapping[str, Any]],
        booked: Mapping[str, str],
        seed: int,
    ):
        self.domain, self.constraints, self.records, self.booked, self.seed = (
            domain,
            constraints,
            records,
            booked,
            seed,
        )
        self.named = 0  # how many records the reply has named so far
        self.seen: dict[str, int] = {}  # placeholder -> occurrences since the last named record
        self.special: dict[str, Callable[[str, str], str]] = {
            "name": self._next_record,
            "trainid": self._next_record,
            "reference": self._reference,
            "count": self._count,
            "time": self._time,
            "place": self._place,
            "day": self._day,
            "price": self._price,
            "phone": self._phone,
            "post": self._post,
            "postcode": self._post,
            "type": self._type,
            "internet": self._facility,
            "parking": self._facility,
        }

    def fill(self, match: re.Match[str]) -> str:
        """Value of one placeholder in its place."""
        self.kind = match[1].lower().rpartition("_")[2]
        before, after = match.string[: match.start()].lower(), match.string[match.end() :].lower()
        value = self.special.get(self.kind, self._listed)(before, after)
        self.seen[self.kind] = self.seen.get(self.kind, 0) + 1
        return value

    # -- records
    # ---------------------------------------------------------------------------------------------------

    @property
    def record(self) -> Mapping[str, Any]:
        """The record named last; before any, the first one of the result."""
        return self.records[min(max(self.named - 1, 0), len(self.records) - 1)] if self.records else {}

    def _next_record(self, before: str, after: str) -> str:
        self.named += 1
        self.seen.clear()
        wanted = self.constraints.get(self.kind, "") if not self.records else ""
        return _field(self.record, _RECORD_FIELDS[self.kind]) or _known(wanted) or self._unknown(self.kind)

    def _listed(self, before: str, after: str) -> str:
        return self._value(self.kind, self.seen.get(self.kind, 0)) or self._unknown(self.kind)

    def _value(self, kind: str, nth: int) -> str:
        """The named record's value; before a name, the n-th different value among constraint and records."""
        fields = self._fields(kind)
        if self.named:
            return _field(self.record, fields)
        wanted = _known(self.constraints.get("pricerange" if kind == "price" else kind, ""))
        values = dict.fromkeys(filter(None, [wanted, *(_field(record, fields) for record in self.records)]))
        return list(values)[min(nth, len(values) - 1)] if values else ""

    def _fields(self, kind: str) -> tuple[str, ...]:
        if kind == "price":
            return _PRICE_FIELDS.get(self.domain, ("pricerange", "price"))
        return _RECORD_FIELDS.get(kind, (kind,))

    def _unknown(self, kind: str) -> str:
        return f"(no {_WORDS.get(kind, kind.replace('_', ' '))} on record)"

    # -- one method per placeholder that needs more than a look-up
    # -----------------------------------------------------

    def _reference(self, before: str, after: str) -> str:
        subject = _field(self.record, ("name", "trainid", "id"))
        return self.booked.get(self.domain) or booking_code(self.domain, subject, seed=self.seed)

    def _count(self, before: str, after: str) -> str:
        near, following = before[-28:], after.lstrip(" -")
        if following.startswith("star"):
            return self._value("stars", 0) or self._unknown("stars")
        if re.match(r"(nights?|days?)\b", following):
            return _known(self.constraints.get("bookstay", "")) or self._unknown("length of stay")
        people = r"(people|persons?|guests?|tickets?|seats?|in your party)\b"
        if re.match(people, following) or re.search(r"(party of|table for|booked for|seats? for|room for) $", near):
            return _known(self.constraints.get("bookpeople", "")) or self._unknown("number of people")
        return str(self._matching(after) or "no")

    def _matching(self, after: str) -> int:
        """Records that are counted: "[count] [type] in the [area]" counts those with that type and area."""
        clause = re.split(r"[.,?!;]|\[(?:count|name|trainid)\]", after)[0]
        kinds = re.findall(r"\[(price|food|type|area)\]", clause)
        matching = list(self.records)
        for kind in dict.fromkeys(kinds):
            if _known(self.constraints.get("pricerange" if kind == "price" else kind, "")):
                continue  # the database has seen to it
            first = self.seen.get(kind, 0)
            values = {self._value(kind, nth) for nth in range(first, first + kinds.count(kind))}
            matching = [record for record in matching if _field(record, self._fields(kind)) in values]
        return len(matching)

    def _time(self, before: str, after: str) -> str:
        if self.domain in ("train", "bus", "taxi"):
            kind = _time_kind(before, after, self.seen.get("time", 0))
            value = _field(self.record, _RECORD_FIELDS[kind]) or _known(self.constraints.get(kind, ""))
            return (
                re.sub(r"\s*minutes?$", "", value)
                if after.lstrip().startswith("minute")
                else value or self._unknown(kind)
            )
        if self.domain == "attraction":
            return _field(self.record, _RECORD_FIELDS["open"]) or self._unknown("open")
        return _known(self.constraints.get("booktime", "")) or self._unknown("time")

    def _place(self, before: str, after: str) -> str:
        slot = _place_slot(before, self.seen.get("place", 0))
        return _known(self.constraints.get(slot, "")) or _field(self.record, (slot,)) or self._unknown(slot)

    def _day(self, before: str, after: str) -> str:
        wanted = _known(self.constraints.get("bookday", "")) or _known(self.constraints.get("day", ""))
        return wanted or _field(self.record, ("day",)) or self._unknown("day")

    def _price(self, before: str, after: str) -> str:
        value = self._listed(before, after)
        return re.sub(r"\s*(pounds?|gbp)$", "", value) if re.match(r"\s*(pounds?|gbp)\b", after) else value

    def _phone(self, before: str, after: str) -> str:
        if self.domain == "taxi":
            return "07" + "".join(str(number % 10) for number in self._chance("phone")[:9])
        return self._listed(before, after)

    def _post(self, before: str, after: str) -> str:
        value = self._listed(before, after)
        return value if value.startswith("(") else format_postcode(value)

    def _type(self, before: str, after: str) -> str:
        if self.domain == "taxi":
            colour, make = self._chance("car")[:2]
            return f"{_CAR_COLOURS[colour % len(_CAR_COLOURS)]} {_CAR_MAKES[make % len(_CAR_MAKES)]}"
        value = self._listed(before, after)
        return _plural(value) if _is_counted(before, after) and self._matching(f"[type]{after}") != 1 else value

    def _facility(self, before: str, after: str) -> str:
        value = self._listed(before, after)
        return {"yes": self.kind, "free": f"free {self.kind}", "no": f"no {self.kind}"}.get(value, value)

    def _chance(self, what: str) -> bytes:
        return _digest(what, self.seed, *sorted(f"{slot}={value}" for slot, value in self.constraints.items()))


def booking_code(domain: str, subject: str, *, seed: int = 0) -> str:
    """Made-up booking code of eight letters and digits; the same arguments give the same code."""
    return "".join(
        _CODE_LETTERS[number % len(_CODE_LETTERS)] for number in _digest("reference", seed, domain, subject)[:8]
    )


def format_postcode(value: str) -> str:
    """Write a postcode as people do: ``cb12dp`` -> ``CB1 2DP``."""
    compact = re.sub(r"[\s.,]", "", value).upper()
    return f"{compact[:-3]} {compact[-3:]}" if len(compact) > 4 else compact


def _digest(*parts: object) -> bytes:
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()


def _known(value: object) -> str:
    """The value as text, empty when it says nothing."""
    text = "" if value is None else str(value).strip(" ,")
    return "" if text.lower() in _UNKNOWN else text


def _field(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """First known value of a record under any of the names, whatever their case and spaces."""
    values = {re.sub(r"[\s_]", "", key).lower(): value for key, value in record.items()}
    return next((text for name in names if (text := _known(values.get(name)))), "")


def _ordered(
    domain: str, constraints: Mapping[str, str], records: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    """Trains with the one nearest to the wish first: latest arrival in time, else earliest departure."""
    if domain not in ("train", "bus"):
        return records
    by_arrival = _known(constraints.get("arrive", "")) and not _known(constraints.get("leave", ""))
    fields = _RECORD_FIELDS["arrive" if by_arrival else "leave"]
    return sorted(records, key=lambda record: _field(record, fields), reverse=bool(by_arrival))


def _time_kind(before: str, after: str, seen: int) -> str:
    """Whether a journey's time is its departure, arrival or duration, by the last telling word before it."""
    near = before[-40:]
    if re.search(r"(travel|journey|trip) time|duration|takes?|lasts?", near[-24:]) or re.match(
        r"\s*(minutes?|trip)", after
    ):
        return "duration"
    cues = {"arrive": r"arriv|get(s|ting)? (you )?(there|in)|reach", "leave": r"leav|depart|pick|set off"}
    last = {kind: max((m.start() for m in re.finditer(cue, near)), default=-1) for kind, cue in cues.items()}
    if max(last.values()) < 0:
        return "leave" if seen % 2 == 0 else "arrive"
    return max(last, key=lambda kind: last[kind])


def _place_slot(before: str, seen: int) -> str:
    """Whether a place is where a journey starts or ends, by the words right before it."""
    near = before[-24:]
    if re.search(
        r"(\bto|\btowards|\bfor|arriv\w* (in|at|to)|arriv\w*|reach\w*|destination\w*( is| of)?) (the )?$",
        near,
    ):
        return "destination"
    if re.search(r"(\bfrom|leav\w*|depart\w*|departure\w*( is| of)?|pick\w* (you )?up (at|from)) (the )?$", near):
        return "departure"
    return "departure" if seen % 2 == 0 else "destination"


def _is_counted(before: str, after: str) -> bool:
    """Whether a type stands in "[count] [type] in ...", where a plural belongs."""
    counted = re.search(r"\[count\] (different |such )?(\[(price|area)\] )?$", before)
    alone = re.match(
        r"\s*([.,?!;]|$)|\s+(in|on|that|which|with|to|located|matching|available|and|or|for|near|there)\b",
        after,
    )
    return bool(counted and alone)


def _plural(noun: str) -> str:
    if noun.startswith("(") or noun.endswith("s"):
        return noun
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("ch", "sh", "x")) else "s")
