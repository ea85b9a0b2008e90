"""A run that starts from another's stages before PPO."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from morejax.experiments.multiwoz.branch import main
from morejax.experiments.multiwoz.evaluation import predict_splits
from morejax.experiments.shared.branch import ANSWERS, SHARED, branch
from morejax.experiments.shared.systems import System


@pytest.fixture
def run(tmp_path):
    """What a finished run leaves, without what this does not read."""
    folder = tmp_path / "run"
    for stage in (*SHARED, "ppo"):
        (folder / "checkpoints" / f"{stage}-final").mkdir(parents=True)
        (folder / "checkpoints" / f"{stage}-final" / "meta.json").write_text(stage)
        (folder / "checkpoints" / stage).mkdir()
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / "reward_heads.json").write_text("{}")
    (folder / "results.json").write_text("{}")
    stages = {stage: {"seconds": 1.0} for stage in (*SHARED, "ppo", "evaluate")}
    (folder / "stages.json").write_text(json.dumps(stages))
    config = {"config": {"seed": 0, "method": "more"}, "command": "python -m it", "commit": "abc"}
    (folder / "config.json").write_text(json.dumps(config))
    records = [{"stage": stage, "step": step} for stage in ("supervised", "scaffold", "ppo") for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_it_has_the_stages_before_ppo_and_nothing_of_ppo(run, tmp_path):
    out = branch(run, tmp_path / "out", seed=3)
    assert set(json.loads((out / "stages.json").read_text())) == set(SHARED)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {f"{stage}-final" for stage in SHARED}
    assert (out / "checkpoints" / "scaffold-final" / "meta.json").read_text() == "scaffold"
    assert (out / "tokenizer" / "tokenizer.json").is_file()
    assert (out / "reward_heads.json").is_file()
    assert not (out / "results.json").exists()
    stages = [json.loads(line)["stage"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["supervised", "supervised", "scaffold", "scaffold"]
    document = json.loads((out / "config.json").read_text())
    assert document["config"] == {"seed": 3, "method": "more"}
    assert document["branched_from"] == "python -m it"


def test_the_seed_is_the_runs_own_unless_given(run, tmp_path):
    out = branch(run, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["config"]["seed"] == 0


@pytest.mark.parametrize(("final", "scaffold"), [("ppo", "scaffold"), ("scaffold", "")])
def test_answers_of_the_models_it_shares_come_along(run, tmp_path, final, scaffold):
    said = {"": "final", "supervised": "supervised"} | ({"scaffold": "scaffold"} if scaffold else {})
    for folder, text in said.items():
        (run / "predictions" / folder).mkdir(parents=True, exist_ok=True)
        (run / "predictions" / folder / "select.json").write_text(text)
    (run / "results.json").write_text(json.dumps({"system": final}))
    out = branch(run, tmp_path / "out")
    found = {path.parent.name: path.read_text() for path in (out / ANSWERS).glob("*/*.json")}
    assert found == {"supervised": "supervised", "scaffold": said[scaffold]}


@pytest.mark.parametrize(("turns", "answers"), [(1, ["dev"]), (2, ["select", "dev"])])
def test_evaluation_takes_the_answers_that_came_along_while_they_fit(tmp_path, turns, answers):
    shared = tmp_path / ANSWERS / "scaffold"
    shared.mkdir(parents=True)
    (shared / "select.json").write_text('{"select": [{"response": "taken over"}]}')
    answered = []

    def predict(params, part, **_):
        answered.append(part)
        return {part: [{"response": params}]}

    dialogues = {part: [SimpleNamespace(id=part, turns=(None,) * turns)] for part in ("select", "dev")}
    parts = SimpleNamespace(
        dir=tmp_path,
        corpus=SimpleNamespace(dialogues=dialogues.__getitem__),
        decoding=SimpleNamespace(predict=predict),
    )
    made = predict_splits(parts, "scaffold", System("new", reasoned=True), ["select", "dev"])
    assert answered == answers
    assert made["select"]["select"][0]["response"] == ("new" if "select" in answers else "taken over")
    assert made["dev"] == {"dev": [{"response": "new"}]}


def test_what_cannot_be_branched_is_named_and_nothing_is_left(run, tmp_path, capsys):
    assert main([str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert "stages.json: not there" in capsys.readouterr().err
    assert main([str(run), str(run)]) == 2
    assert "is not empty" in capsys.readouterr().err
    stages = json.loads((run / "stages.json").read_text())
    del stages["scaffold"]
    (run / "stages.json").write_text(json.dumps(stages))
    assert main([str(run), str(tmp_path / "out")]) == 2
    assert "stage scaffold is not finished" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
