"""`python -m morejax.bench shop`: a line for each part."""

from __future__ import annotations

import json
from functools import partial

import jax
import pytest

from morejax.bench import __main__ as cli


@pytest.fixture(autouse=True)
def quick(core, monkeypatch):
    """What is measured here does not matter: compile fast."""
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=core.fast_compile()))


def test_the_command_prints_one_json_line_a_part(capsys):
    sizes = ["--size", "tiny", "--rounds", "1", "--dialogues", "3", "--sequences", "4"]
    assert cli.main(["shop", *sizes, "--parts", "environment", "oracle", "--json"]) == 0
    environment, oracle = map(json.loads, capsys.readouterr().out.splitlines())
    assert (environment["bench"], environment["part"], environment["sequences"]) == ("shop", "environment", 4)
    assert environment["steps_per_s"] == pytest.approx(4e3 / environment["ms"], rel=0.05)
    assert (oracle["part"], oracle["dialogues"]) == ("oracle", 3)
    assert oracle["turns"] >= 3
    assert 0.0 < oracle["agent_share"] < 1.0


def test_people_get_speeds(capsys):
    sizes = ["--size", "tiny", "--dialogues", "1"]
    assert cli.main(["shop", *sizes, "--parts", "model"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("shop/model")
    assert "dialogues_per_s" in line
