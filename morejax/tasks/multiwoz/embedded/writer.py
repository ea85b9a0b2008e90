"""Writes generated dialogues in the file layout of MultiWOZ 2.2, with goals and bookings for the scorer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from morejax.tasks.multiwoz.embedded import entities
from morejax.tasks.multiwoz.embedded.conversation import Exchange
from morejax.tasks.multiwoz.embedded.generator import GENERATOR_VERSION, GeneratedDialogue, generate
from morejax.tasks.multiwoz.embedded.phrase import Span, Utterance
from morejax.tasks.multiwoz.embedded.schema import build_schema, is_categorical

PER_FILE = 512
Json = Any


def write_embedded(directory: str | Path, *, dialogues: int = 1500, seed: int = 0) -> Path:
    """Write the embedded corpus.

    Args:
        directory: folder to write into; created if missing, must be empty.
        dialogues: number of dialogues over all splits (80 % train, 10 % dev, 10 % test).
        seed: corpus seed; equal arguments give byte-identical files.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: fewer than 10 dialogues.
    """
    root = Path(directory)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty; the embedded corpus needs a new or empty folder")
    generated = generate(dialogues, seed)
    for split in ("train", "dev", "test"):
        _write_split(root, split, [dialogue for dialogue in generated if dialogue.split == split])
    release = root / "MultiWOZ_2.2"
    _dump(release / "dialog_acts.json", {each.identifier: _acts(each) for each in generated})
    _dump(release / "schema.json", build_schema())
    for name, table in _tables().items():
        _dump(root / "db" / f"{name}_db.json", table)
    _dump(root / "goals.json", {_key(each): _goal(each) for each in generated})
    _dump(root / "booked_domains.json", {_key(each): _booked(each) for each in generated})
    facts = {"name": "embedded", "generator_version": GENERATOR_VERSION, "seed": seed, "dialogues": dialogues}
    _dump(root / "corpus.json", facts)
    return root


def _goal(dialogue: GeneratedDialogue) -> Json:
    return {wish.domain: wish.goal() for wish in dialogue.wishes}


def _booked(dialogue: GeneratedDialogue) -> list[list[str]]:
    return [list(exchange.booked) for exchange in dialogue.exchanges]


def _key(dialogue: GeneratedDialogue) -> str:
    return dialogue.identifier.removesuffix(".json").lower()


def _write_split(root: Path, split: str, dialogues: Sequence[GeneratedDialogue]) -> None:
    for number, start in enumerate(range(0, len(dialogues), PER_FILE), 1):
        part = [_dialogue(dialogue) for dialogue in dialogues[start : start + PER_FILE]]
        _dump(root / "MultiWOZ_2.2" / split / f"dialogues_{number:03d}.json", part)


def _dialogue(dialogue: GeneratedDialogue) -> Json:
    turns = []
    for index, exchange in enumerate(dialogue.exchanges):
        turns.append(_turn(2 * index, "USER", exchange.user, _user_frames(dialogue, exchange)))
        turns.append(_turn(2 * index + 1, "SYSTEM", exchange.system, _system_frames(dialogue, exchange)))
    return {"dialogue_id": dialogue.identifier, "services": list(dialogue.services), "turns": turns}


def _turn(number: int, speaker: str, utterance: Utterance, frames: list[Json]) -> Json:
    return {"frames": frames, "speaker": speaker, "turn_id": str(number), "utterance": utterance.text}


def _user_frames(dialogue: GeneratedDialogue, exchange: Exchange) -> list[Json]:
    frames = []
    for service in dialogue.services:
        values = exchange.state.get(service, {})
        state = {
            "active_intent": exchange.intents.get(service, "NONE"),
            "requested_slots": [slot for slot in exchange.requested if slot.startswith(f"{service}-")],
            "slot_values": {f"{service}-{slot}": [value] for slot, value in sorted(values.items())},
        }
        slots = _frame_slots(service, exchange.user)
        frames.append({"actions": [], "service": service, "slots": slots, "state": state})
    return frames


def _system_frames(dialogue: GeneratedDialogue, exchange: Exchange) -> list[Json]:
    slots = {service: _frame_slots(service, exchange.system) for service in dialogue.services}
    return [{"actions": [], "service": service, "slots": found} for service, found in slots.items() if found]


def _frame_slots(service: str, utterance: Utterance) -> list[Json]:
    return [
        {
            "slot": f"{service}-{span.slot}",
            "start": span.start,
            "exclusive_end": span.end,
            "value": span.value,
        }
        for span in utterance.spans
        if span.act.split("-")[0].lower() == service and not is_categorical(service, span.slot)
    ]


def _acts(dialogue: GeneratedDialogue) -> Json:
    spoken = [utterance for exchange in dialogue.exchanges for utterance in (exchange.user, exchange.system)]
    return {
        str(number): {
            "dialog_act": utterance.dialog_act(),
            "span_info": [_span(span) for span in utterance.spans],
        }
        for number, utterance in enumerate(spoken)
    }


def _span(span: Span) -> list[str | int]:
    return [span.act, span.slot, span.value, span.start, span.end]


def _tables() -> dict[str, Json]:
    taxi = {
        "taxi_colors": list(entities.TAXI_COLOURS),
        "taxi_types": list(entities.TAXI_MAKES),
        "taxi_phone": ["^[0-9]{11}$"],
    }
    return {**entities.build_world().tables, "taxi": [taxi]}


def _dump(path: Path, content: Json) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
