"""A corpus of four dialogues in the release's layout, written by hand, and the folder of the real one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SLOTS = {
    "hotel": ("area", "stars", "bookstay", "name", "ref"),
    "restaurant": ("food", "name", "phone"),
    "attraction": ("area", "name"),
    "train": ("leaveat", "arriveby", "departure", "destination", "trainid"),
    "taxi": ("destination", "leaveat", "phone"),
}
DATABASES: dict[str, list[dict[str, Any]]] = {
    "hotel": [
        {"id": "0", "name": "the heron", "area": "west", "stars": "4"},
        {"id": "1", "name": "mill rest", "area": "north", "stars": "3"},
    ],
    "restaurant": [{"id": "7", "name": "blue fig", "food": "italian", "phone": "01999"}],
    "attraction": [{"id": "3", "name": "clock museum", "area": "west"}],
    "train": [
        {
            "trainID": "TX1",
            "leaveAt": "09:10",
            "arriveBy": "10:00",
            "departure": "ashby",
            "destination": "corle",
        }
    ],
}
USER_STATES: list[dict[str, list[str]]] = [
    {"hotel-area": ["west"], "hotel-stars": ["dontcare"]},
    {"hotel-area": ["west"], "hotel-bookstay": ["2"], "train-leaveat": ["9:05", "after 9"]},
]
ACTS = {
    "1": {
        "dialog_act": {
            "Hotel-Recommend": [["name", "The Heron"], ["name", "it"]],
            "general-reqmore": [["none", "none"]],
        },
        "span_info": [["Hotel-Recommend", "name", "The Heron", 4, 13]],
    },
    "3": {
        "dialog_act": {"Booking-Book": [["ref", "Q7"]]},
        "span_info": [["Booking-Book", "ref", "Q7", 22, 24]],
    },
}


def dialogue(dialogue_id: str) -> dict[str, Any]:
    """Two turn pairs: a hotel is recommended, then booked."""
    said = (
        ("A place to sleep in the west please.", "Try The Heron. Anything else?"),
        ("Two nights there, and a train around nine.", "Booked, the number is Q7."),
    )
    turns = []
    for index, ((user, system), state) in enumerate(zip(said, USER_STATES, strict=True)):
        frames = [_frame(service, state) for service in SLOTS]
        frames[0]["state"]["requested_slots"] = ["hotel-ref"] if index else []
        turns.append({"turn_id": str(2 * index), "speaker": "USER", "utterance": user, "frames": frames})
        turns.append({"turn_id": str(2 * index + 1), "speaker": "SYSTEM", "utterance": system, "frames": []})
    return {"dialogue_id": dialogue_id, "services": ["hotel", "train"], "turns": turns}


def _frame(service: str, state: dict[str, list[str]]) -> dict[str, Any]:
    values = {slot: listed for slot, listed in state.items() if slot.startswith(service + "-")}
    return {"service": service, "slots": [], "state": {"requested_slots": [], "slot_values": values}}


@pytest.fixture
def tiny_root(tmp_path: Path) -> Path:
    """Folder of a corpus with two train and two dev dialogues; `part` is a part of dev."""
    root = tmp_path / "corpus"
    ids = {"train": ("TR01.json", "TR02.json"), "dev": ("DV01.json", "DV02.json")}
    everybody = [name.lower().removesuffix(".json") for names in ids.values() for name in names]
    goal = {
        "hotel": {"informable": {"area": "west"}, "requestable": ["reference"], "booking": {"stay": "2"}},
        "train": {"informable": [], "requestable": [], "booking": []},
    }
    schema = [
        {
            "service_name": service,
            "slots": [{"name": f"{service}-{slot}", "possible_values": []} for slot in slots],
        }
        for service, slots in SLOTS.items()
    ]
    files: dict[str, Any] = {
        "MultiWOZ_2.2/schema.json": schema,
        "MultiWOZ_2.2/dialog_acts.json": {name: ACTS for names in ids.values() for name in names},
        "goals.json": {key: goal for key in everybody},
        "booked_domains.json": {key: [[], ["hotel"]] for key in everybody},
        "dev_splits.json": {"part": ["dv02"]},
    }
    files |= {f"MultiWOZ_2.2/train/dialogues_00{n}.json": [dialogue(name)] for n, name in enumerate(ids["train"], 1)}
    files["MultiWOZ_2.2/dev/dialogues_001.json"] = [dialogue(name) for name in ids["dev"]]
    files |= {f"db/{domain}_db.json": rows for domain, rows in DATABASES.items()}
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return root


@pytest.fixture
def edit_json() -> Callable[[Path, Callable[[Any], Any]], None]:
    """Change a JSON file in place: the function edits the value, or returns a new one."""

    def edit(path: Path, change: Callable[[Any], Any]) -> None:
        value = json.loads(path.read_text())
        changed = change(value)
        path.write_text(json.dumps(value if changed is None else changed))

    return edit


@pytest.fixture(scope="session")
def real_root() -> Path:
    """Folder of MultiWOZ 2.2, from the environment variable MOREJAX_MULTIWOZ_DIR."""
    folder = os.environ.get("MOREJAX_MULTIWOZ_DIR")
    if not folder:
        pytest.skip("MOREJAX_MULTIWOZ_DIR is not set: no MultiWOZ 2.2 here")
    return Path(folder)
