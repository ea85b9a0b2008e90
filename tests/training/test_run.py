"""A run's folder: refused when in use, the same configuration on resume, stages recorded, time added up."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from morejax.training import run as runs
from morejax.training.run import Run, RunError, git_commit, versions, write_json

CONFIG = {
    "seed": 0,
    "out": Path("runs/a"),
    "stages": ("supervised", "ppo"),
    "ppo": {"turns": 32, "split": ""},
    "supervised": {"epochs": 1.5},
}
FIRST_READ = {"ppo": "ppo"}


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(runs, "time", made)
    return made


def config_of(run):
    return json.loads((run.directory / "config.json").read_text())


def changed(**entries):
    return CONFIG | entries


def test_a_new_run_writes_who_and_what(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/opt/py/bin/python3.11", "my run.py", "--seed", "3"])
    config = config_of(Run(tmp_path / "new" / "run", CONFIG, resume=False))
    assert config["config"]["ppo"] == {"turns": 32, "split": ""}
    assert config["config"]["out"] == "runs/a"
    assert config["versions"]["jax"]
    assert config["command"] == "python 'my run.py' --seed 3"
    assert "earlier_commands" not in config
    assert {"commit", "device", "machine"} <= config.keys()


def test_an_empty_folder_may_be_used(tmp_path):
    Run(tmp_path, CONFIG, resume=False)
    assert (tmp_path / "config.json").is_file()


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"--out .* is not empty: pass --resume to continue that run, or name another"):
        Run(tmp_path, CONFIG, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_resume_with_the_same_configuration(tmp_path):
    first = Run(tmp_path, CONFIG, resume=False)
    first.describe(corpus="embedded", thresholds={"inform": np.float32(0.5)})
    again = Run(tmp_path, CONFIG, resume=True)
    assert config_of(again)["corpus"] == "embedded"
    assert config_of(again)["thresholds"] == {"inform": 0.5}


def test_every_sittings_command_is_kept(tmp_path, monkeypatch):
    for sitting in ("--stages supervised", "--resume", "--split test"):
        monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "-m", "package", *sitting.split()])
        config = config_of(Run(tmp_path, CONFIG, resume=True))
    assert config["command"] == "python -m package --split test"
    assert config["earlier_commands"] == ["python -m package --stages supervised", "python -m package --resume"]


def test_where_and_how_far_may_change(tmp_path):
    Run(tmp_path, CONFIG, resume=False)
    Run(tmp_path, changed(stages=("evaluate",), out=Path("elsewhere"), resume=True, devices=8), resume=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, r"seed: 0 then, 1 now"),
        ({"supervised": {"epochs": 2.0}}, r"supervised\.epochs: 1\.5 then, 2\.0 now"),
        ({"new_flag": 3}, r"new_flag: None then, 3 now"),
    ],
)
def test_a_changed_setting_is_named(tmp_path, change, named):
    Run(tmp_path, CONFIG, resume=False)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(RunError, match=named):
        Run(tmp_path, changed(**change), resume=True)
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize("begun", ["record", "checkpoint"])
def test_what_a_later_stage_reads_may_change_until_it_begins(tmp_path, begun):
    def resume(turns):
        return Run(tmp_path, changed(ppo={"turns": turns, "split": ""}), resume=True, first_read=FIRST_READ)

    Run(tmp_path, CONFIG, resume=False, first_read=FIRST_READ)
    run = resume(64)
    assert config_of(run)["config"]["ppo"]["turns"] == 64
    if begun == "record":
        with run.stage("ppo"):
            pass
    else:
        (tmp_path / "checkpoints" / "ppo").mkdir(parents=True)
    resume(64)
    with pytest.raises(RunError, match=r"ppo\.turns: 64 then, 32 now"):
        resume(32)


def test_a_finished_stage_is_recorded(tmp_path, clock):
    run = Run(tmp_path, CONFIG, resume=False)
    assert run.stage_record("supervised") is None
    assert run.timings() == {}
    with run.stage("supervised") as record:
        record["dev_loss"] = jnp.float32(1.5)
        clock.now += 12.5
    with run.stage("ppo"):
        clock.now += 2
    assert run.stage_record("supervised") == {"dev_loss": 1.5, "seconds": 12.5}
    assert run.timings() == {"supervised": 12.5, "ppo": 2.0}
    assert Run(tmp_path, CONFIG, resume=True).timings() == {"supervised": 12.5, "ppo": 2.0}


@pytest.mark.parametrize("reason", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_stage_is_not_recorded_but_its_time_counts(tmp_path, clock, reason):
    run = Run(tmp_path, CONFIG, resume=False)

    def sit(seconds):
        with run.stage("ppo"):
            clock.now += seconds
            raise reason

    for seconds in (10, 20):
        with pytest.raises(reason):
            sit(seconds)
    assert run.stage_record("ppo") is None
    with Run(tmp_path, CONFIG, resume=True).stage("ppo"):
        clock.now += 3
    assert run.timings() == {"ppo": 33.0}
    # The next time the stage is run it starts from nothing.
    with run.stage("ppo"):
        clock.now += 1
    assert run.timings() == {"ppo": 1.0}


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError, match="object does not go into JSON"):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}


def test_json_takes_what_runs_are_made_of(tmp_path):
    @dataclass
    class Point:
        x: int

    write_json(tmp_path / "a.json", {"p": Point(1), "path": Path("a/b"), "n": np.int64(3), "text": "café"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"p": {"x": 1}, "path": "a/b", "n": 3, "text": "café"}


def test_versions_and_commit():
    assert {"python", "jax", "jaxlib", "flax", "optax"} <= versions().keys()
    commit = git_commit()
    assert commit is None or len(commit.rstrip("+")) == 12


def test_a_field_that_the_run_did_not_know_had_its_default(tmp_path):
    """Code that has grown a field since: today's default is no change, anything else is one."""
    old = {"width": 8, "ppo": {"turns": 16}}
    Run(tmp_path, old, resume=False)
    defaults = {"width": 4, "ppo": {"turns": 32, "samples": 1}, "extra": None}
    grown = {"width": 8, "ppo": {"turns": 16, "samples": 1}, "extra": None}
    Run(tmp_path, grown, resume=True, defaults=defaults)
    with pytest.raises(RunError, match=r"ppo\.samples: 1 then, 2 now"):
        Run(tmp_path, grown | {"ppo": {"turns": 16, "samples": 2}}, resume=True, defaults=defaults)
