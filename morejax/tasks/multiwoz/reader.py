"""Read a corpus in the original MultiWOZ 2.2 layout into typed records.

What the standard scorer's own reader derives is derived in the same way: the state of a system turn is the first listed value
of every slot after the preceding user turn (Zang et al. 2020), slots with ``dontcare`` left out, in the scorer's normal form;
the delexicalised reply comes from the annotated character spans (Nekvinda and Dusek 2021).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.delexicalise import delexicalise
from morejax.tasks.multiwoz.jsonfiles import DOWNLOAD_COMMAND, read_json
from morejax.tasks.multiwoz.layout import BASE_SPLITS, Layout, find_layout
from morejax.tasks.multiwoz.normalise import normalise_state
from morejax.tasks.multiwoz.records import (
    Act,
    Corpus,
    CorpusError,
    Dialogue,
    DomainGoal,
    Goal,
    Schema,
    State,
    Turn,
    split_names,
)

READER_VERSION = 1
"""Raised when the records change for the same files, so that caches of older readers are not used."""

logger = logging.getLogger(__name__)

T = TypeVar("T")


def read_corpus(root: str | Path, splits: str | Iterable[str] | None = None) -> Corpus:
    """Read and check a corpus folder.

    A train dialogue that cannot be scored (no goal, or booked domains that do not fit its turns) is left out, counted in
    ``Corpus.skipped`` and logged; in every other split it is an error. Turns without acts and requested slots outside the
    schema occur in the release: the former are kept without acts, the latter dropped, and both are counted.

    Args:
        root: folder in the release's layout (see `morejax.tasks.multiwoz.layout.find_layout`).
        splits: names such as ``"train+gold_fit"`` or a list of names; all that the folder has if None.

    Returns:
        The parsed corpus with its database. Dialogues of a named part of dev are those of dev.

    Raises:
        CorpusError: something is missing, broken, empty or unknown; the message says where and what to do.
    """
    layout = find_layout(root)
    parts = read_parts(layout)
    wanted = _wanted(layout, parts, splits)
    bases = [
        base for base in BASE_SPLITS if any(base == ("dev" if name in parts else name) for name in wanted)
    ]
    skipped: Counter[str] = Counter()
    schema = read_schema(layout.schema)
    read = _read_splits(layout, bases, schema, skipped)
    _log_skipped(layout.root, skipped)
    return assemble(layout, {name: read[name] for name in bases}, parts, schema, skipped, wanted)


def assemble(
    layout: Layout,
    bases: Mapping[str, tuple[Dialogue, ...]],
    parts: Mapping[str, Sequence[str]],
    schema: Schema,
    skipped: Mapping[str, int],
    wanted: Sequence[str] | None = None,
) -> Corpus:
    """Put a corpus together from its base splits.

    Args:
        layout: where the files lie.
        bases: train, dev and test as far as they were read.
        parts: named part of dev -> dialogue ids.
        schema: services and slots.
        skipped: what was left out, by reason.
        wanted: names of the splits to give; all if None.
    """
    splits = dict(bases)
    if "dev" in bases:
        by_id = {dialogue.id: dialogue for dialogue in bases["dev"]}
        splits |= {name: _part(layout, name, ids, by_id) for name, ids in parts.items()}
    chosen = {name: splits[name] for name in (wanted or splits)}
    database = Database.load(layout.databases)
    return Corpus(layout.corpus_name(), layout.root, chosen, database, schema, dict(skipped))


def read_parts(layout: Layout) -> dict[str, list[str]]:
    """Named parts of dev in ``dev_splits.json``; none without that file."""
    if not layout.dev_splits.exists():
        return {}
    parts = read_json(layout.dev_splits, dict)
    for name, ids in parts.items():
        if name in BASE_SPLITS:
            raise CorpusError(
                f"{layout.dev_splits}: found a part named {name!r}, expected a name other than {BASE_SPLITS}"
            )
        if not isinstance(ids, list) or not ids:
            raise CorpusError(
                f"{layout.dev_splits}: split {name!r} is empty or no list, expected ids of dev dialogues"
            )
    return {name: [dialogue_key(str(item)) for item in ids] for name, ids in parts.items()}


def read_schema(path: Path) -> Schema:
    """Services, slots and categorical values of ``schema.json``."""
    services = {}
    for service in read_json(path, list):
        name = _field(service, "service_name", str, f"{path}: service")
        slots = _field(service, "slots", list, f"{path}: service {name}")
        services[name] = {
            _field(slot, "name", str, f"{path}: service {name}, slot"): tuple(slot.get("possible_values", ()))
            for slot in slots
        }
    return Schema(
        {
            name: {slot.partition("-")[2]: values for slot, values in slots.items()}
            for name, slots in services.items()
        }
    )


def dialogue_key(dialogue_id: str) -> str:
    """Id as in the scorer's files: ``"PMUL0698.json"`` -> ``"pmul0698"``."""
    return dialogue_id.split(".")[0].lower()


def parse_goal(raw: Any, where: str, schema: Schema) -> Goal:
    """Goal in scorer form; the public file's ``booking`` entries and empty lists for empty constraints are accepted.

    Raises:
        CorpusError: a domain is unknown or constraints or requests have the wrong form.
    """
    if not isinstance(raw, dict):
        raise CorpusError(f"{where}: found {_brief(raw)}, expected an object domain -> goal")
    return {
        domain: _parse_domain_goal(goal, f"{where}, {domain}", domain, schema) for domain, goal in raw.items()
    }


def _parse_domain_goal(raw: Any, where: str, domain: str, schema: Schema) -> DomainGoal:
    if domain not in schema.services:
        raise CorpusError(f"{where}: unknown domain, expected one of {', '.join(schema.services)}")
    informable = _field(raw, "informable", (dict, list), where) or {}
    requestable = _field(raw, "requestable", list, where)
    if not isinstance(informable, dict) or not all(isinstance(value, str) for value in informable.values()):
        raise CorpusError(f"{where}: found constraints {_brief(informable)}, expected slot -> string")
    if not all(isinstance(slot, str) for slot in requestable):
        raise CorpusError(f"{where}: found requests {_brief(requestable)}, expected strings")
    return {"informable": dict(informable), "requestable": [slot.upper() for slot in requestable]}


def parse_acts(raw: Mapping[str, Any], where: str) -> tuple[Act, ...]:
    """Acts of one turn of ``dialog_acts.json``: ``{"Hotel-Inform": [["area", "west"]]}`` -> hotel, inform, (area,).

    Raises:
        CorpusError: an act is not written ``Domain-Intent`` or its slots are not pairs.
    """
    acts = []
    for name, pairs in raw.items():
        domain, dash, intent = name.lower().partition("-")
        if (
            not dash
            or not isinstance(pairs, list)
            or not all(isinstance(pair, list) and pair for pair in pairs)
        ):
            raise CorpusError(
                f"{where}: found act {name!r}: {_brief(pairs)}, expected 'Domain-Intent': [[slot, value], ...]"
            )
        slots = dict.fromkeys(str(pair[0]).lower() for pair in pairs)
        acts.append(Act(domain, intent, tuple(slot for slot in slots if slot != "none")))
    return tuple(acts)


@dataclass(frozen=True)
class _Annotation:
    """Everything about the dialogues that is not in the dialogue files."""

    layout: Layout
    schema: Schema
    acts: Mapping[str, Any]
    goals: Mapping[str, Any]
    booked: Mapping[str, Any]
    skipped: Counter[str]


def _read_splits(
    layout: Layout, bases: Sequence[str], schema: Schema, skipped: Counter[str]
) -> dict[str, tuple[Dialogue, ...]]:
    annotation = _Annotation(
        layout,
        schema,
        read_json(layout.acts, dict),
        _by_key(read_json(layout.goals, dict)),
        _by_key(read_json(layout.booked, dict)),
        skipped,
    )
    seen: dict[str, Path] = {}
    return {split: _read_split(split, annotation, seen) for split in bases}


def _read_split(split: str, annotation: _Annotation, seen: dict[str, Path]) -> tuple[Dialogue, ...]:
    dialogues = []
    for path in annotation.layout.dialogue_files(split):
        for number, raw in enumerate(read_json(path, list)):
            dialogue_id = _field(raw, "dialogue_id", str, f"{path}: entry {number}")
            key = dialogue_key(dialogue_id)
            if key in seen:
                raise CorpusError(
                    f"{path}: dialogue {dialogue_id} occurs again, first in {seen[key]}; expected each id once"
                )
            seen[key] = path
            dialogue = _parse_dialogue(raw, dialogue_id, split, path, annotation)
            if dialogue is not None:
                dialogues.append(dialogue)
    if not dialogues:
        left_out = (
            "; ".join(f"{count} {reason}" for reason, count in annotation.skipped.items())
            or "the files hold none"
        )
        raise CorpusError(
            f"{annotation.layout.dialogues / split}: split {split!r} is empty ({left_out}), expected dialogues"
        )
    return tuple(dialogues)


def _parse_dialogue(
    raw: Any, dialogue_id: str, split: str, path: Path, annotation: _Annotation
) -> Dialogue | None:
    where = f"{path}: dialogue {dialogue_id}"
    key = dialogue_key(dialogue_id)
    pairs = _turn_pairs(_field(raw, "turns", list, where), where)
    fault = _scoring_fault(key, len(pairs), annotation)
    if fault is not None and split == "train":
        annotation.skipped[f"train dialogues left out: {fault[0]}"] += 1
        return None
    if fault is not None:
        raise CorpusError(
            f"{where}: {fault[1]}; without it the dialogue cannot be scored (fetch it: {DOWNLOAD_COMMAND})"
        )
    acts = annotation.acts.get(dialogue_id)
    if not isinstance(acts, dict):
        raise CorpusError(
            f"{where}: not in {annotation.layout.acts}, whose spans are needed to delexicalise it"
        )
    goal = parse_goal(annotation.goals[key], f"{annotation.layout.goals}: dialogue {key}", annotation.schema)
    booked = annotation.booked[key]
    turns = tuple(
        _parse_turn(index, user, system, acts, booked[index], f"{where}, turn {2 * index}", split, annotation)
        for index, (user, system) in enumerate(pairs)
    )
    return Dialogue(key, split, turns, goal)


def _turn_pairs(turns: list[Any], where: str) -> list[tuple[Any, Any]]:
    for number, turn in enumerate(turns):
        speaker = _field(turn, "speaker", str, f"{where}, turn {number}")
        expected = ("USER", "SYSTEM")[number % 2]
        if speaker != expected:
            raise CorpusError(
                f"{where}, turn {number}: found speaker {speaker!r}, expected {expected} (turns must alternate)"
            )
    if not turns or len(turns) % 2:
        raise CorpusError(
            f"{where}: found {len(turns)} turns, expected pairs of a USER and a SYSTEM turn (turns must alternate)"
        )
    return list(zip(turns[::2], turns[1::2], strict=True))


def _scoring_fault(key: str, turns: int, annotation: _Annotation) -> tuple[str, str] | None:
    """Why a dialogue cannot be scored, as a countable reason and as a message; None if it can."""
    goals, booked = annotation.layout.goals, annotation.layout.booked
    if not annotation.goals.get(key):
        found = "an empty goal" if key in annotation.goals else "no goal"
        return "no goal", f"found {found} in {goals}, expected one"
    entry = annotation.booked.get(key)
    if not isinstance(entry, list) or len(entry) != turns:
        found = f"{len(entry)} entries" if isinstance(entry, list) else "no entry"
        return "no booked domains", f"found {found} in {booked}, expected one a system turn, {turns}"
    return None


def _parse_turn(
    index: int,
    user: Any,
    system: Any,
    acts: Mapping[str, Any],
    booked: Any,
    where: str,
    split: str,
    annotation: _Annotation,
) -> Turn:
    response = _field(system, "utterance", str, where)
    annotated = acts.get(str(system.get("turn_id", 2 * index + 1))) or {}
    parsed = parse_acts(
        annotated.get("dialog_act") or {}, f"{annotation.layout.acts}: {where.rpartition(': ')[2]} (reply)"
    )
    if not parsed:
        annotation.skipped[f"{split} system turns without acts (kept)"] += 1
    state, requested = _parse_frames(_field(user, "frames", list, where), where, split, annotation)
    if not isinstance(booked, list) or not all(domain in annotation.schema.services for domain in booked):
        raise CorpusError(
            f"{annotation.layout.booked}: {where.rpartition(': ')[2]}: found {_brief(booked)}, expected domains"
        )
    return Turn(
        index=index,
        user=_field(user, "utterance", str, where),
        response=response,
        delex=delexicalise(response, _spans(annotated, where, annotation.layout)),
        state=state,
        requested=requested,
        acts=parsed,
        booked=tuple(booked),
    )


def _spans(annotated: Mapping[str, Any], where: str, layout: Layout) -> list[Any]:
    spans = annotated.get("span_info") or []
    for span in spans:
        if not (
            isinstance(span, list)
            and len(span) == 5
            and isinstance(span[3], int)
            and isinstance(span[4], int)
        ):
            raise CorpusError(
                f"{layout.acts}: {where.rpartition(': ')[2]} (reply): found span {_brief(span)}, "
                "expected [act, slot, value, start, end] with character positions"
            )
    return spans


def _parse_frames(
    frames: list[Any], where: str, split: str, annotation: _Annotation
) -> tuple[State, tuple[str, ...]]:
    slot_values: dict[str, list[str]] = {}
    requested: dict[str, None] = {}
    for frame in frames:
        state = _field(frame, "state", dict, where)
        slot_values |= _checked_values(state.get("slot_values") or {}, where, annotation)
        for slot in state.get("requested_slots") or ():
            if annotation.schema.has_slot(slot):
                requested[slot] = None
            else:
                annotation.skipped[f"{split} requested slots outside the schema (dropped)"] += 1
    try:
        return normalise_state(slot_values), tuple(requested)
    except ValueError as error:
        raise CorpusError(f"{where}: {error}") from error


def _checked_values(slot_values: Mapping[str, Any], where: str, annotation: _Annotation) -> dict[str, list[str]]:
    for name, listed in slot_values.items():
        if not annotation.schema.has_slot(name):
            expected = f"expected one of {annotation.layout.schema}"
            raise CorpusError(f"{where}: found unknown slot {name!r} in the state, {expected}")
        if not isinstance(listed, list) or not listed or not isinstance(listed[0], str):
            raise CorpusError(f"{where}: found {name} = {_brief(listed)}, expected a non-empty list of strings")
    return dict(slot_values)


def _wanted(layout: Layout, parts: Mapping[str, Any], splits: str | Iterable[str] | None) -> tuple[str, ...]:
    have = (*layout.base_splits(), *(parts if "dev" in layout.base_splits() else ()))
    if splits is None:
        return have
    names = split_names(splits) if isinstance(splits, str) else tuple(dict.fromkeys(splits))
    for name in names:
        if name not in have:
            raise CorpusError(f"{layout.root}: found no split {name!r}, expected one of {', '.join(have)}")
    return names


def _part(layout: Layout, name: str, ids: Sequence[str], dev: Mapping[str, Dialogue]) -> tuple[Dialogue, ...]:
    missing = [key for key in ids if key not in dev]
    if missing:
        raise CorpusError(
            f"{layout.dev_splits}: split {name!r} names {len(missing)} dialogues that are not in dev, e.g. {missing[0]!r}"
        )
    return tuple(dev[key] for key in dict.fromkeys(ids))


def _by_key(table: Mapping[str, T]) -> dict[str, T]:
    return {dialogue_key(name): value for name, value in table.items()}


def _field(mapping: Any, key: str, kind: type[T] | tuple[type, ...], where: str) -> T:
    value = mapping.get(key) if isinstance(mapping, dict) else None
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(k.__name__ for k in kinds)
        found = _brief(value) if isinstance(mapping, dict) else f"{_brief(mapping)} instead of an object"
        raise CorpusError(f"{where}: found {key!r} = {found}, expected a {names}")
    return value


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _log_skipped(root: Path, skipped: Mapping[str, int]) -> None:
    for reason, count in skipped.items():
        level = logging.WARNING if "left out" in reason else logging.INFO
        logger.log(level, "%s: %d %s", root, count, reason)
