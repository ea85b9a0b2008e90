"""Presets, methods and flags of the shop experiment, and its small parts."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from morejax.experiments.shared.methods import METHODS
from morejax.experiments.shop.__main__ import main, parse
from morejax.experiments.shop.ab import split_arm
from morejax.experiments.shop.config import PRESETS, ShopConfig, preset, resolve
from morejax.experiments.shop.evaluation import summary
from morejax.experiments.shop.loading import from_document, read_config
from morejax.experiments.shop.prompt_table import PromptTable
from morejax.experiments.shop.report import markdown_blocks
from morejax.experiments.shop.task import ShopCorpus, ShopTask
from morejax.tasks.shop.context import Serialiser
from morejax.tasks.shop.ontology import FUNCTIONS
from morejax.tasks.streams import StackedStreams


def refused(arguments, capsys):
    """What is said about wrong flags; the status must be 2."""
    try:
        status = main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    said = capsys.readouterr()
    assert status == 2
    assert "Traceback" not in said.err
    return said.err + said.out


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_takes_every_method_and_reads_back(name, method):
    config = resolve(replace(preset(name), method=method))
    assert config.run_dir == Path(f"runs/shop/{name}-{method}-0")
    assert resolve(config) == config
    document = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    assert from_document(ShopConfig, document) == config


def test_demo_is_the_default_and_a_preset_gives_the_other_flags_their_defaults():
    assert parse([]) == resolve(preset("demo"))
    assert parse(["--preset", "cpu", "--seed", "3"]) == replace(resolve(preset("cpu")), seed=3)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--method", "fixed", "--step.weights", "mgda"), "--step.weights mgda: --method fixed makes it fixed"),
        (("--method", "unconstrained", "--step.multipliers", "clip"), "--step.multipliers clip"),
        (("--method", "mixed", "--numbers.multiplier-init", "2"), "--numbers.multiplier-init 2.0"),
        (("--method", "gdpo", "--step.adv-norm", "center"), "--step.adv-norm center"),
        (("--model.vocab-size", "2048"), "--model.vocab-size 2048"),
    ],
)
def test_a_flag_that_something_else_decides_is_refused(flags, named, capsys):
    assert named in refused([*flags], capsys)


def test_what_a_method_decides_may_be_said():
    assert parse(["--method", "fixed", "--step.weights", "fixed"]) == parse(["--method", "fixed"])


def test_one_process_only(monkeypatch, capsys, tmp_path):
    out = tmp_path / "never"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert "the shop runs in one" in refused(["--out", str(out)], capsys)
    assert not out.exists()


def test_methods_differ_in_what_they_are_named_for():
    mixed, fixed, free, gdpo = (parse(["--method", m]) for m in ("mixed", "fixed", "unconstrained", "gdpo"))
    assert (mixed.step.clip, mixed.step.multipliers, mixed.numbers.multiplier_init) == ("mixed", "fixed", 0.25)
    assert (fixed.step.weights, fixed.step.multipliers) == ("fixed", "pid")
    assert (free.step.multipliers, free.numbers.multiplier_init) == ("fixed", 0.0)
    assert (gdpo.step.baseline, gdpo.step.adv_norm, gdpo.critic.kind, gdpo.ppo.samples) == (
        "group_mean",
        "group",
        "none",
        4,
    )
    assert "ppo" not in parse(["--method", "supervised"]).stages


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--model.max-length 200", ("--model.max-length 200", "--context.max-context")),
        ("--ppo.turns 30 --step.minibatches 4", ("--ppo.turns 30", "--step.minibatches 4")),
        ("--stages generate fly", ("fly", "supervised")),
        ("--corpus.train 0", ("--corpus.train", "0")),
        ("--ab.dialogues 5", ("--ab.dialogues 5", "14")),
        ("--ab.split moon", ("--ab.split", "moon")),
        ("--preset gpu", ("--preset", "gpu")),
        ("--step.objectives overlap charm --out {out}", ("charm", "overlap")),
        ("--numbers.thresholds bravery 1 --out {out}", ("bravery",)),
        ("--ppo.split dev --out {out}", ("--ppo.split dev",)),
        ("ab --arms {out}", ("no run here",)),
        ("ab --arms {out} --dialogues 3", ("3", "14")),
    ],
)
def test_mistakes_are_named(flags, words, capsys, tmp_path):
    said = refused(flags.format(out=tmp_path / "run").split(), capsys)
    assert all(word in said for word in words), said
    assert not (tmp_path / "run").exists()


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    for word in ("--method", "--resume", "ab --arms", "--threshold-margin", "gdpo"):
        assert word in said


def test_another_experiments_folder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": {}}))
    with pytest.raises(ValueError, match=r"not a run of morejax\.experiments\.shop"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("runs/a", ("a", "runs/a", "")),
        ("runs/a:supervised", ("a-supervised", "runs/a", "supervised")),
        ("control=runs/a:supervised", ("control", "runs/a", "supervised")),
        ("b=runs/a", ("b", "runs/a", "")),
    ],
)
def test_arms_are_named(text, parts):
    assert split_arm(text) == (parts[0], Path(parts[1]), parts[2])


def test_summary_by_hand():
    names = ("overlap", *FUNCTIONS)
    applies = np.zeros((3, 7), bool)
    scores = np.zeros((3, 7), np.float32)
    applies[:, 0], scores[:, 0] = True, (0.2, 0.4, 0.6)
    # First reply: two functions, both right; second: two, one right; third: nothing to check.
    applies[0, [1, 4]] = applies[1, [1, 4]] = True
    scores[0, [1, 4]] = 1
    scores[1, 1] = 1
    found = summary(
        StackedStreams(names, np.zeros((3, 1, 7), np.float32), applies, scores, np.ones_like(scores)),
        [(1,), (1, 2), (1, 2, 3)],
    )
    assert found["functions"]["eligibility"] == 1.0
    assert found["functions"]["numeric"] == 0.5
    assert found["reasoning"] == 0.75
    assert found["all_right"] == 0.5
    assert found["language"] == {"overlap": pytest.approx(0.4)}
    assert (found["reply_tokens"], found["turns"]) == (2.0, 3)


@pytest.fixture(scope="module")
def task() -> ShopTask:
    corpus = ShopCorpus({"train": 5}, seed=0)
    return ShopTask(corpus, Serialiser(preset("demo").context), ("overlap", *FUNCTIONS))


def test_every_reply_is_like_itself(task):
    prompts = [prompt for dialogue in task.corpus.dialogues("train") for prompt in task.prompts(dialogue)]
    scored = task.rewards(task.sampled(prompts, [prompt.reference for prompt in prompts]), 72)
    assert scored.names == task.streams
    assert scored.scores[:, 0] == pytest.approx(1.0)


def test_every_turn_is_answered_once_an_epoch(task):
    prompts = [prompt for dialogue in task.corpus.dialogues("train") for prompt in task.prompts(dialogue)]
    split, settings = task.corpus.split("train"), {"reply": 72, "reasoned": True, "pad_id": task.pad_id, "seed": 3}
    table = PromptTable(split, prompts, rows=8, samples=2, **settings)
    turns = len(prompts)
    drawn = np.concatenate([table.chosen(iteration) for iteration in range(1, turns + 1)])
    for epoch in range(4):
        assert sorted(drawn[epoch * turns : (epoch + 1) * turns]) == list(range(turns))
    one = table(2)
    chosen = np.repeat(table.chosen(2), 2)
    assert one.tokens.shape[0] == one.ref_tokens.shape[0] == 8
    assert one.ref_tokens.shape[1] > one.tokens.shape[1]
    assert list(one.group) == [0, 0, 1, 1, 2, 2, 3, 3]
    for row, number in enumerate(chosen):
        assert tuple(one.tokens[row][one.mask[row]]) == prompts[number].direct
        assert tuple(one.ref_tokens[row][one.ref_mask[row]]) == prompts[number].reasoned
        reference = one.rewards.reference[row][one.rewards.reference_mask[row]]
        assert tuple(reference) == prompts[number].reference
    other = PromptTable(split, prompts, rows=8, samples=2, **settings)(2)
    assert (other.tokens == one.tokens).all()


def test_markdown_becomes_tables():
    blocks = markdown_blocks("### Users\n\n| a | b |\n|---|---:|\n| 1 | **2** |\n\n| c |\n|---|\n| 3 |\n")
    assert blocks == [
        {"text": "Users", "rows": []},
        {"head": ["a", "b"], "rows": [["1", "2"]]},
        {"head": ["c"], "rows": [["3"]]},
    ]


# The study of oscillation

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def oscillation():
    spec = importlib.util.spec_from_file_location("oscillation", REPOSITORY / "experiments/shop/oscillation.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_moving_average_by_hand(oscillation):
    found = oscillation.moving_average(np.array([0.0, 3.0, 6.0, 0.0, 1.0]), 3)
    assert found == pytest.approx([0.0, 3.0, 3.0, 7 / 3, 1.0])


def test_a_line_does_not_oscillate_and_a_wave_does(oscillation):
    line = np.linspace(0, 1, 41)
    wave = np.sin(np.arange(41) * 2 * np.pi / 10)
    assert oscillation.roughness(line) == pytest.approx(0, abs=1e-15)
    assert oscillation.turns(line) == 0
    assert oscillation.roughness(line + 0.1 * wave) > 1e-4
    # A period of ten steps turns twice in ten.
    assert oscillation.turns(wave) == pytest.approx(2.0, abs=0.3)


def test_methods_are_compared_seed_by_seed(oscillation, tmp_path, capsys):
    names = ("overlap", "eligibility")
    steps = np.arange(30)
    for method, size in (("more", 0.0), ("mixed", 0.1)):
        for seed in (0, 1):
            run = tmp_path / f"{method}-{seed}"
            run.mkdir()
            step = {"objectives": names[:1], "constraints": names[1:]}
            config = {"method": method, "mixed_weight": 0.25, "seed": seed, "step": step}
            (run / "config.json").write_text(json.dumps({"config": config | {"numbers": {"warmup_steps": 2}}}))
            values = 0.5 + 0.01 * steps + size * (-1.0) ** steps
            rows = [
                {"stage": "ppo", "step": int(i), "J/overlap": v, "J/eligibility": v, "cosine/overlap/eligibility": -0.5}
                for i, v in zip(steps, values.tolist(), strict=True)
            ]
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = [str(tmp_path / f"{method}-{seed}") for method in ("more", "mixed") for seed in (0, 1)]
    assert oscillation.main([*runs, "--out", str(tmp_path / "found")]) == 0
    said = capsys.readouterr().out
    # The nine-point mean of an alternating series keeps a ninth of it: (0.1 * 8 / 9)^2 = 0.0079, times 1000.
    assert "| roughness, constraints | 0.000 ± 0.000 | 7.901 ± 0.000 (+7.901 ± 0.000) |" in said
    assert "| share of negative cosines | 1.000 ± 0.000 |" in said
    assert {path.name for path in tmp_path.glob("found.*")} == {"found.json", "found.md", "found.png"}
    assert oscillation.main([runs[2], "--base", "more"]) == 2
    assert "--base more" in capsys.readouterr().err
