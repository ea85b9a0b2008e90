"""Parse the annotation of MultiWOZ 2.2: schema, goals, dialogue acts, spans and frames of one turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from morejax.tasks.multiwoz.delexicalise import Span
from morejax.tasks.multiwoz.errors import CorpusError
from morejax.tasks.multiwoz.jsonfiles import read_json
from morejax.tasks.multiwoz.normalise import normalise_state
from morejax.tasks.multiwoz.records import Act, DomainGoal, Goal, Schema, State

T = TypeVar("T")


def dialogue_key(dialogue_id: str) -> str:
    """Id as in the scorer's files: ``"PMUL0698.json"`` -> ``"pmul0698"``."""
    return dialogue_id.split(".")[0].lower()


def read_schema(path: Path) -> Schema:
    """Services, slots and categorical values of ``schema.json``.

    Raises:
        CorpusError: the file is missing, broken or of another form.
    """
    services = {}
    for service in read_json(path, list):
        name = field(service, "service_name", str, f"{path}: service")
        slots = field(service, "slots", list, f"{path}: service {name}")
        services[name] = dict(_schema_slot(slot, f"{path}: service {name}, slot") for slot in slots)
    return Schema(services)


def _schema_slot(slot: Any, where: str) -> tuple[str, tuple[str, ...]]:
    name = field(slot, "name", str, where)
    return name.partition("-")[2], tuple(slot.get("possible_values", ()))


def parse_goal(raw: Any, where: str, schema: Schema) -> Goal:
    """Goal in scorer form.

    The public file's ``booking`` entries are left out, and its empty lists for no constraints are accepted.

    Raises:
        CorpusError: a domain is unknown, or constraints or requests have the wrong form.
    """
    if not isinstance(raw, dict):
        raise CorpusError(f"{where}: found {brief(raw)}, expected an object domain -> goal")
    for domain in raw:
        if domain not in schema.services:
            raise CorpusError(f"{where}: found unknown domain {domain!r}, expected {', '.join(schema.services)}")
    return {domain: _parse_domain_goal(goal, f"{where}, {domain}") for domain, goal in raw.items()}


def _parse_domain_goal(raw: Any, where: str) -> DomainGoal:
    requestable = field(raw, "requestable", list, where)
    informable = {} if raw.get("informable") == [] else field(raw, "informable", dict, where)
    if not all(isinstance(value, str) for value in informable.values()):
        raise CorpusError(f"{where}: found constraints {brief(informable)}, expected slot -> string")
    if not all(isinstance(slot, str) for slot in requestable):
        raise CorpusError(f"{where}: found requests {brief(requestable)}, expected strings")
    return {"informable": dict(informable), "requestable": [slot.upper() for slot in requestable]}


def parse_acts(raw: Mapping[str, Any], where: str) -> tuple[Act, ...]:
    """Acts of one turn: ``{"Hotel-Inform": [["area", "west"]]}`` -> ``Act("hotel", "inform", ("area",))``.

    Slots keep their order, each once; ``none``, which stands for no slot, is left out.

    Raises:
        CorpusError: an act is not written ``Domain-Intent`` or its slots are not pairs.
    """
    acts = []
    for name, pairs in raw.items():
        domain, dash, intent = name.lower().partition("-")
        if not dash or not isinstance(pairs, list) or not all(isinstance(pair, list) and pair for pair in pairs):
            found = f"found act {name!r}: {brief(pairs)}"
            raise CorpusError(f"{where}: {found}, expected 'Domain-Intent': [[slot, value], ...]")
        slots = dict.fromkeys(str(pair[0]).lower() for pair in pairs)
        acts.append(Act(domain, intent, tuple(slot for slot in slots if slot != "none")))
    return tuple(acts)


def parse_spans(raw: list[Any], text: str, where: str, counts: Counter[str]) -> list[Span]:
    """Spans of a text, cut to it and counted: the standard takes text slices, which end where the text ends.

    Raises:
        CorpusError: a span is not of the form ``[act, slot, value, start, end]``.
    """
    spans = []
    for span in raw:
        if not (isinstance(span, list) and len(span) == 5 and all(type(place) is int for place in span[3:])):
            expected = "expected [act, slot, value, start, end] with character positions"
            raise CorpusError(f"{where}: found span {brief(span)}, {expected}")
        start, end = (min(max(place, 0), len(text)) for place in span[3:])
        if [start, end] != span[3:]:
            counts["spans that leave their reply (cut)"] += 1
        spans.append((span[0], str(span[1]), span[2], start, max(start, end)))
    return spans


def parse_frames(frames: list[Any], where: str, schema: Schema, counts: Counter[str]) -> tuple[State, tuple[str, ...]]:
    """State and requested slots of a user turn.

    Args:
        frames: one frame a service.
        where: file, dialogue and turn, for errors.
        schema: declared slots.
        counts: requested slots outside the schema, which are dropped, are counted here.

    Returns:
        The state in normal form and the requested slots, ``"domain-slot"``.

    Raises:
        CorpusError: an unknown slot in the state, or a value that is no list of strings or cannot be read.
    """
    slot_values: dict[str, list[str]] = {}
    requested: dict[str, None] = {}
    for frame in frames:
        state = field(frame, "state", dict, where)
        slot_values |= _checked_values(state.get("slot_values") or {}, where, schema)
        for slot in state.get("requested_slots") or ():
            if schema.has_slot(slot):
                requested[slot] = None
            else:
                counts["requested slots outside the schema (dropped)"] += 1
    try:
        return normalise_state(slot_values), tuple(requested)
    except ValueError as error:
        raise CorpusError(f"{where}: {error}") from error


def _checked_values(slot_values: Any, where: str, schema: Schema) -> Mapping[str, list[str]]:
    if not isinstance(slot_values, dict):
        raise CorpusError(f"{where}: found slot_values {brief(slot_values)}, expected an object slot -> values")
    for name, listed in slot_values.items():
        if not schema.has_slot(name):
            raise CorpusError(f"{where}: found unknown slot {name!r} in the state, expected one of schema.json")
        if not isinstance(listed, list) or not listed or not isinstance(listed[0], str):
            raise CorpusError(f"{where}: found {name} = {brief(listed)}, expected a non-empty list of strings")
    return slot_values


def field(mapping: Any, key: str, kind: type[T], where: str) -> T:
    """``mapping[key]`` if it is of that kind.

    Raises:
        CorpusError: it is missing or of another kind, or the mapping is none.
    """
    value = mapping.get(key) if isinstance(mapping, dict) else None
    if not isinstance(value, kind):
        found = brief(value) if isinstance(mapping, dict) else f"nothing in {brief(mapping)}"
        raise CorpusError(f"{where}: found {key!r} = {found}, expected a {kind.__name__}")
    return value


def brief(value: Any) -> str:
    """The value as text, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
