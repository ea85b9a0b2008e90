"""The README's Python runs, and its links lead somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from morejax.tasks.streams import SampledBatch, StreamContext, get_stream, unregister_stream

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = "".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))


def block_with(text: str) -> str:
    (found,) = (block for block in PYTHON if text in block)
    return found


def test_every_python_block_is_run_below():
    assert len(PYTHON) == 5
    for block in PYTHON:
        ast.parse(block)


def test_the_step_learns_and_runs_on_a_mesh(capsys):
    names: dict = {"__name__": "readme"}
    exec(block_with("compile_sampler"), names)
    lines = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3
    assert lines[-1]["J/even"] > 0.85
    assert lines[-1]["J/threes"] > lines[0]["J/threes"]
    exec(block_with("on_mesh"), names)
    assert int(names["state"].step) == 31
    exec(block_with("place_local"), names)
    assert int(names["state"].step) == 32


def test_an_iteration_is_one_program(capsys):
    names: dict = {"__name__": "readme"}
    exec(block_with("compile_sampler"), names)
    exec(block_with("compile_iteration"), names)
    assert int(names["state"].step) == 31
    assert float(names["metrics"]["J/even"]) > 0.85
    assert float(names["metrics"]["response_tokens"]) == names["S"] * names["T"]


def test_the_stream_registers_and_can_be_asked_for():
    from types import SimpleNamespace

    from morejax.experiments.multiwoz.__main__ import parse

    exec(block_with("register_stream"), {"__name__": "readme"})
    try:
        stream = get_stream("brevity")
        turn = SimpleNamespace(dialogue=SimpleNamespace(id="a"), turn=SimpleNamespace(index=0))
        turns = tuple(SimpleNamespace(**vars(turn), tokens=(5,) * count) for count in (10, 25, 40))
        values = stream.function(SampledBatch((turns,)), StreamContext())
        assert values.reward.tolist() == [1.0, 0.5, 0.0]
        (command,) = re.findall(r"python my_run\.py (.*)", SHELL)
        config = parse(command.split())
        assert config.step.objectives[-1] == stream.name
    finally:
        unregister_stream("brevity")


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m (morejax[\w.]+)", README))))
def test_commands_name_modules_that_can_be_run(module):
    from importlib.util import find_spec

    spec = find_spec(module)
    assert spec is not None
    if spec.submodule_search_locations:
        assert find_spec(module + ".__main__") is not None


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_local_links_lead_somewhere(document):
    path = ROOT / document
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


def test_experiment_flags_of_the_readme_are_flags():
    help_text = subprocess.run(
        [sys.executable, "-m", "morejax.experiments.multiwoz", "--help"], capture_output=True, text=True, check=True
    ).stdout
    used = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", README))
    elsewhere = {"--to", "--system", "--show-delex", "--json", "--size"}  # download, chat, evaluate, bench
    elsewhere |= {"--worker", "--command", "--arms"}  # gcloud; the shop's A/B test
    assert {flag for flag in used - elsewhere if flag not in help_text and flag != "--help"} == set()
