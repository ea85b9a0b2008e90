"""A run whose policy is the mean of several runs' policies."""

from __future__ import annotations

import json

import numpy as np
import pytest

from morejax.experiments.multiwoz.merge import main
from morejax.experiments.shared.branch import SHARED
from morejax.experiments.shared.merge import merge
from morejax.training.checkpoint import load_params, save_params


@pytest.fixture
def make(tmp_path):
    """What a finished run leaves, without what this does not read."""

    def made(name, policy, supervised=1.0, rank=0, stages=(*SHARED, "ppo", "evaluate"), aloud=False):
        folder = tmp_path / name
        for stage in SHARED:
            save_params(folder / "checkpoints" / f"{stage}-final", {"w": np.full(2, supervised, np.float32)}, {})
        save_params(folder / "checkpoints" / "ppo-final", policy, {"iteration": 3})
        (folder / "tokenizer").mkdir()
        (folder / "stages.json").write_text(json.dumps({stage: {"seconds": 1.0} for stage in stages}))
        config = {"seed": 0, "model": {"lora": {"rank": rank}}, "aloud": aloud}
        document = {"config": config, "command": f"it --out {name}", "commit": name * 3}
        (folder / "config.json").write_text(json.dumps(document))
        (folder / "metrics.jsonl").write_text('{"stage": "ppo", "step": 1}\n{"stage": "scaffold", "step": 1}\n')
        return folder

    return made


def policy(*values):
    return {"layer": {"w": np.array(values, np.float32)}}


def test_the_mean_of_three(make, tmp_path):
    runs = [make("a", policy(1, 2)), make("b", policy(4, 2)), make("c", policy(1, -1))]
    assert main([str(tmp_path / "out"), *map(str, runs)]) == 0
    mean, meta = load_params(tmp_path / "out" / "checkpoints" / "ppo-final", policy(0, 0))
    np.testing.assert_array_equal(mean["layer"]["w"], [2, 1])
    assert mean["layer"]["w"].dtype == np.float32
    assert meta == {"merged": 3}
    stages = json.loads((tmp_path / "out" / "stages.json").read_text())
    assert list(stages) == [*SHARED, "ppo"]
    assert stages["ppo"]["seconds"] == 3.0
    document = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [one["command"] for one in document["merged_from"]] == ["it --out a", "it --out b", "it --out c"]
    assert json.loads((tmp_path / "out" / "metrics.jsonl").read_text())["stage"] == "scaffold"


def test_policies_that_answer_aloud_share_a_scaffold(make, tmp_path, capsys):
    one, two = (make(name, policy(value, 2), aloud=True) for name, value in (("a", 1), ("b", 3)))
    assert main([str(tmp_path / "out"), str(one), str(two)]) == 0
    mean, _ = load_params(tmp_path / "out" / "checkpoints" / "ppo-final", policy(0, 0))
    np.testing.assert_array_equal(mean["layer"]["w"], [2, 2])
    other = make("c", policy(1, 2), supervised=2.0, aloud=True)
    assert main([str(tmp_path / "none"), str(one), str(other)]) == 2
    assert "started from another scaffold model" in capsys.readouterr().err


def test_what_cannot_be_merged_is_named_and_nothing_is_left(make, tmp_path, capsys):
    one = make("a", policy(1, 2))
    others = {
        "started from another supervised model": make("b", policy(1, 2), supervised=2.0),
        "started from its scaffold model": make("f", policy(1, 2), aloud=True),
        "has another shape": make("c", policy(1, 2, 3)),
        "has no policy": make("d", policy(1, 2), stages=SHARED),
        "has adapters": make("e", policy(1, 2), rank=4),
        "not there": tmp_path / "none",
        "each of them once": tmp_path / "a" / ".." / "a",
    }
    before = sorted(path.name for path in tmp_path.iterdir())
    for message, other in others.items():
        assert main([str(tmp_path / "out"), str(one), str(other)]) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with pytest.raises(ValueError, match="two or more"):
        merge(tmp_path / "out", [one])
    with pytest.raises(ValueError, match="is not empty"):
        merge(one, [one, others["has another shape"]])
