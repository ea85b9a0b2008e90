"""Dialogues side by side: whose replies stand there, what is said of them, and which other runs are refused."""

from __future__ import annotations

import json

import pytest

from morejax.experiments.multiwoz.config import MultiwozConfig
from morejax.experiments.multiwoz.parts import Parts
from morejax.experiments.multiwoz.samples import compared, read_predictions, sample_dialogues
from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.faults import FACT_LEFT_OUT, FACT_MISSING, NEVER_OFFERED
from morejax.tasks.multiwoz.records import Dialogue, Turn
from morejax.training.interrupt import StopRequest

DATABASE = Database(
    {
        "restaurant": [{"id": "1", "name": "blue fig", "area": "north"}],
        "hotel": [{"id": "2", "name": "the heron", "stars": "4"}],
        "attraction": [{"id": "3", "name": "clock museum", "area": "north"}],
        "train": [{"trainID": "TX1", "leaveAt": "09:10", "arriveBy": "10:00", "day": "monday"}],
    }
)
STATE = {"restaurant": {"area": "north"}}
GOAL = {"restaurant": {"informable": {"area": "north"}, "requestable": ["PHONE"]}}
REPLY = "[name] , call [phone] ."
DIALOGUE = Dialogue("one", "dev", (Turn(0, "hello", REPLY, REPLY, STATE, (), (), ()),), GOAL)


def test_every_system_has_its_replies_notes_and_verdict():
    systems = {
        "supervised": {"one": [{"response": "[name] ?"}]},
        "mixed": {"one": [{"response": REPLY}]},
        "ppo": {"one": [{"response": "bye", "state": {"restaurant": {}}}]},
    }
    [sample] = sample_dialogues([DIALOGUE], systems, "ppo", DATABASE)
    assert (sample["id"], sample["goal"]) == ("one", GOAL)
    [turn] = sample["turns"]
    assert list(turn["replies"]) == ["human", "supervised", "mixed", "ppo"]
    assert turn["replies"]["human"] == {"text": REPLY, "notes": []}
    # A question is no fault.
    assert turn["replies"]["supervised"] == {"text": "[name] ?", "notes": [FACT_LEFT_OUT]}
    assert turn["state"] == {"restaurant": {}}
    assert sample["verdicts"]["human"] == sample["verdicts"]["mixed"] == []
    assert sample["verdicts"]["supervised"] == [f"{FACT_MISSING} (restaurant phone)"]
    assert sample["verdicts"]["ppo"] == [f"{NEVER_OFFERED} (restaurant)"]


def test_runs_to_compare_with_are_found_by_name(tmp_path):
    folder = tmp_path / "a=b" / "predictions"
    folder.mkdir(parents=True)
    assert compared([f"mixed={folder.parent}"]) == {"mixed": folder}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["mixed"], "--compare mixed: expected NAME=RUN"),
        (["=there"], "--compare =there: expected NAME=RUN"),
        (["ppo=there"], "the name ppo is taken"),
        (["a=there", "a=there"], "the name a is taken"),
        (["a=gone"], "a=gone: gone/predictions is not there; expected the folder of an evaluated run"),
    ],
)
def test_what_is_no_run_is_refused(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / "predictions").mkdir(parents=True)
    with pytest.raises(ValueError, match=message):
        compared(given)


def test_predictions_must_answer_the_dialogues(tmp_path):
    path = tmp_path / "dev.json"
    with pytest.raises(ValueError, match=r"dev\.json is not there; evaluate that run with --split dev"):
        read_predictions(path, [DIALOGUE])
    path.write_text(json.dumps({"one": []}))
    with pytest.raises(ValueError, match="has 0 replies to one, expected 1"):
        read_predictions(path, [DIALOGUE])


def test_a_run_that_has_not_answered_stops_the_command_before_it_writes(tmp_path):
    other = tmp_path / "other" / "predictions"
    config = MultiwozConfig(out=tmp_path / "run", compare=(f"mixed={other.parent}",), eval_splits=("dev",))
    with pytest.raises(ValueError, match="other/predictions is not there"):
        Parts(config, StopRequest())
    other.mkdir(parents=True)
    (other / "test.json").write_text("{}")
    with pytest.raises(ValueError, match=r"dev\.json is not there; evaluate that run with --split dev"):
        Parts(config, StopRequest())
    assert not (tmp_path / "run").exists()
