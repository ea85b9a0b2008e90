"""What an evaluation answers, keeps and replaces; thresholds that are not given."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest

from morejax.config import StepConfig, StepNumbers
from morejax.experiments.multiwoz.config import STAGES
from morejax.experiments.multiwoz.evaluation import predict_splits
from morejax.experiments.multiwoz.pipeline import STAGES as FUNCTIONS
from morejax.experiments.multiwoz.results import merge_scores, write_results
from morejax.experiments.shared.systems import System
from morejax.experiments.shared.thresholds import fill_numbers
from morejax.tasks.multiwoz.records import Dialogue, Turn

SPLITS = {"dev": ("a", "b", "c"), "select": ("c", "a"), "test": ("d",)}


def dialogue(name):
    turn = Turn(0, "hello", "hi", "hi", {}, (), (), ())
    return Dialogue(name, "dev", (turn,), {})


class Corpus:
    """Dialogues by split."""

    database = None

    name = "tiny"

    def dialogues(self, splits):
        return tuple(dialogue(name) for name in SPLITS[splits])


class Decoding:
    """Answers with the system's name; remembers what it was asked."""

    def __init__(self):
        self.labels = []

    def predict(self, params, splits, *, reasoned, label):
        self.labels.append(label)
        return {name: [{"response": f"{params} {reasoned} {name}"}] for name in SPLITS[splits]}


def fake(folder, select="select"):
    run = SimpleNamespace(stage_record=lambda stage: None, timings=lambda: {})
    config = SimpleNamespace(method="more", track="policy", preset="demo", seed=0, samples=2, compare=())
    return SimpleNamespace(
        dir=folder, run=run, config=config, corpus=Corpus(), fit="train", select=select, decoding=Decoding()
    )


def row(system, split, inform=50.0):
    return {"system": system, "split": split, "inform": inform, "success": 1.0, "bleu": 2.0, "combined": 3.0} | {
        "dialogues": 1
    }


def replies(word, split):
    return {name: [{"response": f"{word} {name}"}] for name in SPLITS[split]}


def evaluated(parts, systems, splits, word="said"):
    """Write an evaluation of these systems on these splits."""
    scores = [row(system, split) for system in systems for split in splits]
    made = {system: {split: replies(f"{system} {word}", split) for split in splits} for system in systems}
    return write_results(parts, scores, made)


def read(path):
    return json.loads(path.read_text())


def test_every_stage_has_its_function():
    assert tuple(FUNCTIONS) == STAGES


def test_a_split_within_another_is_not_answered_twice(tmp_path):
    parts = fake(tmp_path)
    made = predict_splits(parts, "ppo", System("P"), ("select", "dev", "test"))
    # What is decoded is what the progress bar names.
    assert parts.decoding.labels == ["ppo answers dev", "ppo answers test"]
    assert list(made) == ["select", "dev", "test"]
    assert list(made["select"]) == ["c", "a"]
    assert made["select"]["a"] == made["dev"]["a"] == [{"response": "P False a"}]
    alone = predict_splits(parts, "scaffold", System("S", reasoned=True), ("select",))
    assert parts.decoding.labels[2:] == ["scaffold answers select"]
    assert alone["select"]["c"] == [{"response": "S True c"}]


def test_rows_of_the_same_system_and_split_are_replaced_others_kept():
    before = [row("supervised", "dev", 1.0), row("ppo", "dev", 2.0)]
    now = [row("supervised", "test", 3.0), row("ppo", "test", 4.0), row("ppo", "dev", 5.0)]
    merged = [(r["system"], r["split"], r["inform"]) for r in merge_scores(before, now)]
    assert merged == [
        ("supervised", "dev", 1.0),
        ("supervised", "test", 3.0),
        ("ppo", "dev", 5.0),
        ("ppo", "test", 4.0),
    ]


def test_another_split_adds_to_results_and_leaves_the_samples(tmp_path):
    parts = fake(tmp_path)
    first = evaluated(parts, ("supervised", "ppo"), ("select", "dev"))
    assert (first["system"], first["split"]) == ("ppo", "dev")
    samples = (tmp_path / "samples.json").read_bytes()
    assert [sample["id"] for sample in json.loads(samples)] == ["c", "a"]
    second = evaluated(parts, ("supervised", "ppo"), ("test",))
    assert second == read(tmp_path / "results.json")
    assert (second["system"], second["split"]) == ("ppo", "test")
    assert [(r["system"], r["split"]) for r in second["scores"]] == [
        (system, split) for system in ("supervised", "ppo") for split in ("select", "dev", "test")
    ]
    assert (tmp_path / "samples.json").read_bytes() == samples
    assert read(tmp_path / "predictions" / "dev.json") == replies("ppo said", "dev")
    assert read(tmp_path / "predictions" / "supervised" / "test.json") == replies("supervised said", "test")


def test_the_same_split_again_replaces_its_own(tmp_path):
    parts = fake(tmp_path)
    evaluated(parts, ("supervised", "ppo"), ("select", "test"))
    results = evaluated(parts, ("supervised", "ppo"), ("test",), "now said")
    assert len(results["scores"]) == 4
    assert read(tmp_path / "predictions" / "test.json") == replies("ppo now said", "test")
    assert read(tmp_path / "predictions" / "select.json") == replies("ppo said", "select")


def test_a_new_final_system_does_not_pass_off_the_old_ones_predictions_as_its_own(tmp_path):
    parts = fake(tmp_path, select="dev")
    evaluated(parts, ("supervised",), ("dev",))
    evaluated(parts, ("supervised", "ppo"), ("test",))
    folder = tmp_path / "predictions"
    assert sorted(path.name for path in folder.glob("*.json")) == ["test.json"]
    assert read(folder / "supervised" / "dev.json") == replies("supervised said", "dev")
    assert read(folder / "test.json") == replies("ppo said", "test")
    # dev was never answered by the final system: the samples are of what was.
    assert [sample["id"] for sample in read(tmp_path / "samples.json")] == ["d"]


MEASURED = {
    "scaffold": {"inform": 0.80, "success": 0.64, "likeness": 0.2, "fluency": 0.5},
    "human": {"inform": 0.9, "success": 0.9, "likeness": 0.99, "fluency": 0.7},
    "dialogues": {"count": 100.0},
}
STEP = StepConfig(objectives=("likeness", "fluency"), constraints=("inform", "success"))


def test_thresholds_and_targets_that_are_not_given_are_measured(caplog):
    numbers = StepNumbers(thresholds={"success": 0.7}, targets={})
    with caplog.at_level(logging.WARNING, logger="morejax"):
        filled = fill_numbers(STEP, numbers, MEASURED, margin=0.01)
    assert dict(filled.thresholds) == pytest.approx({"inform": 0.79, "success": 0.7})
    assert dict(filled.targets) == {"likeness": 1.0, "fluency": 0.7}
    # The standard error of success is sqrt(0.64 * 0.36 / 100) = 0.048: 0.7 lies within two of it.
    assert caplog.records == []


def test_a_threshold_is_not_below_zero():
    measured = {**MEASURED, "scaffold": {**MEASURED["scaffold"], "inform": 0.004}}
    assert fill_numbers(STEP, StepNumbers(thresholds={}), measured, margin=0.01).thresholds["inform"] == 0.0


def test_a_threshold_out_of_the_scaffolds_reach_is_warned_about(caplog):
    numbers = StepNumbers(thresholds={"success": 0.74, "inform": 0.8}, targets={"fluency": 0.1})
    with caplog.at_level(logging.WARNING, logger="morejax"):
        filled = fill_numbers(STEP, numbers, MEASURED, margin=0.01)
    assert filled.targets["fluency"] == 0.1
    # 0.64 + 2 * 0.048 = 0.736.
    assert [record.getMessage() for record in caplog.records] == [
        "threshold success >= 0.740 lies 0.100 above what the scaffold reaches (0.640): it may be out of reach"
    ]
