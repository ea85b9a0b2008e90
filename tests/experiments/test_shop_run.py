"""The shop experiment from the command line, tiny: all stages, stop and resume, baselines, the A/B subcommand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from morejax.experiments.shop.keep import keep
from morejax.tasks.shop.ontology import FUNCTIONS
from morejax.training.writers import read_stages

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
ITERATIONS = 4
FLAGS = (
    "--corpus.train 16 --corpus.dev 4 --corpus.test 4 --corpus.held-out 4 --context.max-reply 40 "
    "--context.max-reasoning 24 --model.layers 1 --model.width 16 --model.heads 2 --supervised.epochs 0.3 "
    "--scaffold.epochs 0.3 --supervised.tokens-per-batch 2048 --scaffold.tokens-per-batch 2048 --reward.examples 8 "
    "--reward.held-out 4 --reward.steps 3 --reward.batch 8 --critic.hidden 8 "
    f"--ppo.iterations {ITERATIONS} --ppo.turns 8 --ppo.eval-every 2 --ppo.eval-dialogues 2 --ppo.checkpoint-every 3 "
    "--step.minibatches 2 --step.epochs 1 --numbers.learning-rate 0.01 --numbers.warmup-steps 1 "
    "--ab.dialogues 14 --ab.settings patient --samples 2"
).split()
# Runs one after another in one process; a run with a step sends itself a signal after that step of PPO.
DRIVER = """
import json, signal, sys
from morejax.experiments.shop import branch
from morejax.experiments.shop.__main__ import main
from morejax.training.progress import Progress
update = Progress.update
def watched(self, done, *arguments, **more):
    update(self, done, *arguments, **more)
    if self.stage == "ppo" and done == stop_after:
        signal.raise_signal(signal.SIGTERM)
Progress.update = watched
statuses = []
for command, stop_after, arguments in json.loads(sys.argv[1]):
    statuses.append({"run": main, "branch": branch.main}[command](arguments))
print("statuses", json.dumps(statuses))
"""


@pytest.fixture(scope="session")
def shop(tmp_path_factory, core):
    """Runs commands in a child process; children share a cache of compiled programs, quickly compiled."""
    folder = tmp_path_factory.mktemp("shop")
    options = core.fast_compile() or {}
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": " ".join(f"--{name}={str(value).lower()}" for name, value in options.items()),
    }

    def each(*commands: tuple[str, int, list[str]]) -> tuple[list[int], str, str]:
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, json.dumps(commands)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert done.returncode == 0, done.stderr
        out, _, statuses = done.stdout.rpartition("statuses ")
        return json.loads(statuses), out, done.stderr

    each.folder = folder
    return each


def run(out: Path, *more: str, stop_after: int = 0) -> tuple[str, int, list[str]]:
    return "run", stop_after, ["--out", str(out), *FLAGS, *more]


@pytest.fixture(scope="session")
def finished(shop):
    """An undisturbed run and what it said."""
    out = shop.folder / "finished"
    statuses, _, said = shop(run(out))
    assert statuses == [0], said
    return out, said


@pytest.fixture(scope="session")
def others(shop, finished):
    """Runs from the same supervised model: stopped and resumed, mixed on the host, gdpo; and two A/B tests."""
    base, folder = finished[0], shop.folder
    outs = {name: folder / name for name in ("resumed", "mixed", "gdpo")}
    stages = ["--resume", "--stages", "ppo", "evaluate"]
    statuses, printed, said = shop(
        *(("branch", 0, [str(base), str(out)]) for out in outs.values()),
        run(outs["resumed"], *stages, "--score", "ppo", stop_after=2),
        run(outs["resumed"], *stages, "--score", "ppo"),
        run(outs["mixed"], *stages, "--method", "mixed", "--on-device", "no"),
        run(outs["gdpo"], *stages, "--method", "gdpo", "--score", "ppo"),
        run(outs["gdpo"], *stages, "--method", "gdpo", "--model.width", "32"),
        ("run", 0, _ab(folder / "ab", f"control={base}:supervised", f"{base}", f"twin={outs['resumed']}", "--json")),
        ("run", 0, _ab(folder / "none", f"{folder / 'nowhere'}")),
        ("run", 0, _ab(folder / "none", f"{base}:oracle")),
    )
    assert statuses == [0, 0, 0, 143, 0, 0, 0, 2, 0, 2, 2], said
    return outs, printed, said


def _ab(out: Path, *arms: str) -> list[str]:
    return ["ab", "--arms", *arms, "--dialogues", "28", "--settings", "patient", "--out", str(out)]


def read(path: Path):
    return json.loads(path.read_text())


def test_a_run_leaves_results_samples_and_a_report(finished):
    out, said = finished
    assert "done in" in said
    assert "reasoning" in said
    results = read(out / "results.json")
    assert {(row["system"], row["split"]) for row in results["scores"]} == {
        (system, split) for system in ("supervised", "scaffold", "ppo") for split in ("dev", "test", "held_out")
    }
    for row in results["scores"]:
        assert set(row["functions"]) == set(FUNCTIONS)
        assert set(row["language"]) == {"overlap", "fluency", "naturalness", "concision", "empathy"}
        assert all(0 <= value <= 1 for group in ("functions", "language") for value in row[group].values())
    assert results["rewards_on_device"] is True
    assert list(results["timings"]) == ["generate", "supervised", "scaffold", "reward_heads", "ppo", "evaluate", "ab"]
    samples = read(out / "samples.json")
    assert len(samples) == 2
    assert [answer["system"] for answer in samples[0]["turns"][0]["answers"]] == [
        "corpus",
        "supervised",
        "scaffold",
        "ppo",
    ]
    page = (out / "report.html").read_text()
    for text in ("Simulated A/B test", "held out", "credit limit", "data:image/png;base64", "overall conversion"):
        assert text in page


def test_thresholds_are_the_scaffolds_scores_minus_the_margin(finished):
    out, _ = finished
    scaffold, thresholds = read(out / "reference_scores.json")["scaffold"], read(out / "config.json")["thresholds"]
    # A scaffold this small gets some function right nowhere: a threshold is 0 then, not below.
    assert thresholds == {name: pytest.approx(max(scaffold[name] - 0.01, 0.0)) for name in FUNCTIONS}


def test_the_ab_test_has_the_run_its_control_and_the_oracle(finished):
    out, said = finished
    table = (out / "ab.md").read_text()
    assert "| supervised | more | oracle |" in table
    assert table.strip() in said
    assert (out / "ab.png").stat().st_size > 0
    assert read(out / "results.json")["ab"] == read(out / "ab.json")


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(finished, others):
    outs, _, said = others
    assert "stopped by SIGTERM; continue with --resume" in said
    whole, resumed = (read_stages(out)["ppo"] for out in (finished[0], outs["resumed"]))
    assert whole.keys() == resumed.keys()
    for name, column in whole.items():
        if name != "tokens_per_s":
            np.testing.assert_array_equal(column, resumed[name], err_msg=name)
    assert (
        read(outs["resumed"] / "stages.json")["ppo"]["constraints"]
        == (read(finished[0] / "stages.json")["ppo"]["constraints"])
    )


def test_baselines_run_on_the_host_and_on_the_device(others):
    outs, _, _ = others
    mixed, gdpo = (read(outs[name] / "results.json") for name in ("mixed", "gdpo"))
    assert (mixed["method"], mixed["rewards_on_device"]) == ("mixed", False)
    assert (gdpo["method"], gdpo["rewards_on_device"]) == ("gdpo", True)
    assert {row["system"] for row in mixed["scores"]} == {"supervised", "scaffold", "ppo"}
    assert {row["system"] for row in gdpo["scores"]} == {"ppo"}
    for name in ("mixed", "gdpo"):
        metrics = read_stages(outs[name])["ppo"]
        assert metrics["step"].max() == ITERATIONS
        assert set(metrics["multiplier/numeric"][~np.isnan(metrics["multiplier/numeric"])]) == {0.25}


def test_another_model_in_the_same_folder_is_refused(others):
    assert "model.width: 16 then, 32 now" in others[2]


def test_arms_that_say_the_same_differ_by_nothing(shop, others):
    """The resumed run is bit for bit the undisturbed one: common random numbers make the difference exactly 0."""
    _, printed, said = others
    document = json.loads(printed.strip().splitlines()[-1])
    assert document == read(shop.folder / "ab" / "ab.json")
    table = (shop.folder / "ab" / "ab.md").read_text()
    assert "| control | finished | twin | oracle |" in table
    values = [line.split("|")[3:5] for line in table.splitlines() if line.startswith("| overall conversion |")]
    assert values
    assert all(first == second for first, second in values)
    assert "nowhere: no run here" in said
    assert "it has no model 'oracle', only supervised, scaffold, ppo" in said


def test_what_is_worth_keeping_has_no_checkpoints(finished, tmp_path):
    kept = {path.name for path in keep(finished[0], tmp_path / "kept")}
    assert {"config.json", "results.json", "samples.json", "ab.md", "ab.png", "corpus.json", "overview.png"} <= kept
    assert not (tmp_path / "kept" / "checkpoints").exists()
    config = (tmp_path / "kept" / "config.json").read_text()
    assert str(finished[0]) not in config
    assert json.loads(config)["config"]["out"] == f"runs/{finished[0].name}"
