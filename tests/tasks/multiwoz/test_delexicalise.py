"""Delexicalised replies from spans."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from morejax.tasks.multiwoz.canonical import PLACEHOLDERS
from morejax.tasks.multiwoz.delexicalise import delexicalise
from morejax.tasks.multiwoz.normalise import PLACEHOLDER, normalise_response, normalise_state


def span(utterance: str, slot: str, value: str) -> list[object]:
    start = utterance.index(value)
    return ["Hotel-Inform", slot, value, start, start + len(value)]


def test_spans_become_tokens() -> None:
    text = "The Blue Inn  is on 5 High Road, postcode ab1. It has 4 stars."
    spans = [
        span(text, "stars", "4"),
        span(text, "name", "Blue Inn"),
        span(text, "address", "5 High Road"),
        span(text, "postcode", "ab1"),
    ]
    delex = delexicalise(text, spans)
    assert delex == "the [name] is on [address], postcode [postcode]. it has [stars] stars."
    assert normalise_response(delex) == "the NAME is on ADDRESS, postcode POST. it has COUNT stars."


def test_the_first_of_overlapping_spans_counts() -> None:
    text = "near Blue Inn Road"
    spans = [["x", "address", "Inn Road", 10, 18], ["x", "name", "Blue Inn", 5, 13]]
    assert delexicalise(text, spans) == "near [name] road"


def test_dontcare_spans_stay_text() -> None:
    assert delexicalise("Any area is fine", [["x", "area", "dontcare", 0, 8]]) == "any area is fine"


def test_plurals_and_unknown_slots() -> None:
    # The standard takes the ending of a plural away with the placeholder; an unknown slot vanishes with it.
    text = "Blue Inns cost tickets"
    delex = delexicalise(text, [["x", "name", "Blue Inn", 0, 8], ["x", "ticket", "ticket", 15, 21]])
    assert delex == "[name]s cost"
    assert normalise_response(delex) == "NAME cost"


def test_positions_beyond_the_end_are_cut_as_in_the_standard() -> None:
    assert delexicalise("call 12", [["x", "phone", "123", 5, 8]]) == "call [phone]"


@pytest.mark.parametrize("broken", [["x", "name", 0, 3], "name", ["x", "name", "y", "0", 3], None])
def test_malformed_spans(broken: object) -> None:
    with pytest.raises(ValueError, match="span"):
        delexicalise("text", [broken])  # type: ignore[list-item]


@pytest.mark.skipif("MOREJAX_MULTIWOZ_DIR" not in os.environ, reason="MOREJAX_MULTIWOZ_DIR is not set")
def test_references_and_states_of_dev_are_those_of_the_standard() -> None:
    root = Path(os.environ["MOREJAX_MULTIWOZ_DIR"])
    acts = json.loads((root / "MultiWOZ_2.2/dialog_acts.json").read_text())
    references = json.loads((root / "scoring/dev/references.json").read_text())
    states = json.loads((root / "scoring/dev/gold_states.json").read_text())
    raw = [d for file in sorted((root / "MultiWOZ_2.2/dev").glob("*.json")) for d in json.loads(file.read_text())]
    assert len(raw) == len(references)
    for dialogue in raw:
        turns = dialogue["turns"]
        spans = acts[dialogue["dialogue_id"]]
        delex = [delexicalise(t["utterance"], spans[t["turn_id"]]["span_info"]) for t in turns[1::2]]
        key = dialogue["dialogue_id"].removesuffix(".json").lower()
        assert [normalise_response(text) for text in delex] == references[key]
        assert {f"[{name}]" for text in delex for name, _ in PLACEHOLDER.findall(text)} <= set(PLACEHOLDERS)
        derived = [
            normalise_state({k: v for frame in t["frames"] for k, v in frame["state"]["slot_values"].items()})
            for t in turns[::2]
        ]
        assert derived == states[key]
        assert [list(state) for state in derived] == [list(state) for state in states[key]]
