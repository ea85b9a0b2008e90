"""Presets, methods and flags of the MultiWOZ experiment."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest

from morejax.experiments.multiwoz.__main__ import main, parse
from morejax.experiments.multiwoz.config import FIRST_READ, PRESETS, STAGES, MultiwozConfig, preset, resolve
from morejax.experiments.shared.methods import METHODS
from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.dataset import load_corpus
from morejax.tasks.multiwoz.embedded import embedded_root
from morejax.tasks.multiwoz.examples import Serialiser


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
@pytest.mark.parametrize("track", ["policy", "e2e"])
def test_every_preset_takes_every_method_and_track(name, method, track):
    config = resolve(replace(preset(name, track), method=method, track=track))
    assert config.preset == name
    assert config.context.track == track
    assert config.run_dir == Path(f"runs/multiwoz/{name}-{track}-{method}-0")
    assert resolve(config) == config


def test_demo_is_the_default():
    assert parse([]) == resolve(preset("demo"))
    assert parse([]).data_dir is None


def test_a_preset_gives_the_other_flags_their_defaults():
    config = parse(["--preset", "gpu", "--seed", "3"])
    assert config == replace(resolve(preset("gpu")), seed=3)
    assert parse(["--seed", "3", "--preset=gpu"]) == config


@pytest.mark.parametrize("name", PRESETS)
def test_end_to_end_a_prompt_has_room_for_two_states(name):
    """The one before, and the one to be written."""
    policy, config = preset(name), parse(["--preset", name, "--track", "e2e", "--context.max-reply", "32"])
    assert config.context.max_context >= policy.context.max_context + config.context.max_state - 32
    assert config.context.max_state > policy.context.max_state or name == "gpu"
    assert config.model.max_length == max(config.context.max_context + policy.context.max_reply, config.context.window)
    assert config == parse(["--track=e2e", f"--preset={name}", "--context.max-reply=32"])
    assert replace(config.context, max_reply=policy.context.max_reply) == preset(name, "e2e").context


def test_end_to_end_the_demo_holds_every_dialogue_of_its_corpus():
    corpus, config = load_corpus(embedded_root()), preset("demo", "e2e")
    dialogues = corpus.dialogues("train+dev+test")
    texts = (text for dialogue in dialogues[::20] for turn in dialogue.turns for text in (turn.user, turn.delex))
    tokenizer = vocabulary.train_tokenizer(texts, config.vocab_size)
    serialiser = Serialiser(tokenizer, config.context)
    # Raises where a state does not fit.
    longest = max(len(e.sequence) for e in serialiser.examples(dialogues, corpus.database, reasoned=True))
    assert longest <= config.model.max_length
    # The longest utterances of a few turns are cut, no more.
    assert serialiser.stats.utterances_cut < 0.02 * serialiser.stats.examples


def test_nested_flags():
    line = (
        "--numbers.kl-coef 0.3 --step.objectives likeness fluency --ppo.keep last --model.width 64 --model.heads 4 "
        "--stages supervised ppo --data-dir /data/x"
    )
    config = parse(line.split())
    assert config.numbers.kl_coef == 0.3
    assert config.step.objectives == ("likeness", "fluency")
    assert config.ppo.keep == "last"
    assert config.model.width == 64
    assert config.stages == ("supervised", "ppo")
    assert config.data_dir == Path("/data/x")


def test_split_is_short_for_eval_splits_and_goes_on_where_a_run_is(tmp_path):
    given = ["--split", "test", "select", "--out", str(tmp_path)]
    config = parse(given)
    assert config.eval_splits == config.split == ("test", "select")
    assert not config.continues
    (tmp_path / "config.json").write_text("{}")
    assert config.continues
    assert not config.resume
    assert not parse(["--eval-splits", "test", "--out", str(tmp_path)]).continues
    assert parse(["--resume", "--out", str(tmp_path / "new")]).continues
    assert parse([*given, "--eval-splits", "test", "select"]) == config


def test_thresholds_given_stand_beside_the_presets():
    cpu = ["--preset", "cpu"]
    ours = preset("cpu").numbers.thresholds
    assert parse(cpu).numbers.thresholds == ours
    given = parse([*cpu, "--numbers.thresholds", "success", "0.5", "slots", "0.7"]).numbers.thresholds
    assert given == {"inform": ours["inform"], "success": 0.5, "slots": 0.7}
    assert parse([*cpu, "--step.constraints", "slots"]).numbers.thresholds == {}
    # The demo's come from what its scaffold reaches.
    assert parse([]).numbers.thresholds == {}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--step.baseline", "group_mean"], "--ppo.samples must be at least 2, not 1"),
        (["--step.baseline", "group_mean", "--ppo.samples", "2"], "--critic.kind none, not --critic.kind shared"),
        (["--critic.kind", "none"], "--step.baseline critic needs a critic, not --critic.kind none"),
    ],
)
def test_group_baselines_need_samples_and_no_critic(flags, message, capsys):
    assert message in " ".join(refused(flags, capsys).replace("│", " ").split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--context.track", "e2e"], "--context.track e2e: give --track e2e"),
        (["--model.vocab-size", "2048"], "--model.vocab-size 2048: the model's vocabulary is its tokenizer's"),
        (["--method", "mixed", "--step.clip", "per_stream", "--step.mix-norm", "none"], "--step.mix-norm none"),
    ],
)
def test_a_flag_that_something_else_decides_is_refused(flags, message, capsys):
    assert message in refused(flags, capsys)


def test_methods_decide_multipliers_weights_and_clip():
    made = {method: resolve(replace(preset("demo"), method=method, mixed_weight=0.4)) for method in METHODS}
    more, mixed, fixed, unconstrained = (made[name] for name in METHODS[:4])
    assert (more.step.multipliers, more.step.weights, more.step.clip) == ("pid", "gradnorm_cf", "per_stream")
    assert (fixed.step.multipliers, fixed.step.weights) == ("pid", "fixed")
    assert (unconstrained.step.multipliers, unconstrained.step.weights) == ("fixed", "gradnorm_cf")
    assert unconstrained.numbers.multiplier_init == 0.0
    assert (mixed.step.multipliers, mixed.step.weights, mixed.step.clip) == ("fixed", "fixed", "mixed")
    assert mixed.numbers.multiplier_init == 0.4
    gdpo = made["gdpo"]
    assert (gdpo.step.baseline, gdpo.step.adv_norm, gdpo.step.multipliers) == ("group_mean", "group", "fixed")
    assert (gdpo.numbers.multiplier_init, gdpo.critic.kind, gdpo.ppo.samples) == (0.4, "none", 4)
    assert "ppo" not in made["supervised"].stages
    assert made["supervised"].stages[0] == "supervised"


def test_stages_are_in_the_order_they_need():
    assert STAGES == ("supervised", "scaffold", "reward_heads", "ppo", "evaluate")
    assert set(FIRST_READ.values()) <= set(STAGES)
    assert FIRST_READ.keys() <= {field.name for field in dataclasses.fields(MultiwozConfig)}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--preset", "tpu"], "--preset must be one of demo, cpu, gpu, not 'tpu'"),
        (["--preset=tpu"], "--preset must be one of demo, cpu, gpu, not 'tpu'"),
        (["--method", "magic"], "magic"),
        (["--track", "both"], "both"),
        (["--stages", "supervised", "rlhf"], "--stages: rlhf is not one of supervised, scaffold"),
        (["--split", "test", "--eval-splits", "dev"], "--split test and --eval-splits dev both name the splits to"),
        (["--devices", "-1"], "--devices must be 0 (all) or more, not -1"),
        (["--aloud", "--model.lora.rank", "4"], "--aloud starts from the scaffold, the adapters of"),
        (["--aloud", "--ppo.ref-context", "direct"], "--aloud: the reference is the scaffold"),
        (["--preset", "gpu", "--aloud"], "--aloud: --model.max-length 256 leaves 0 tokens for acts"),
        (["--ppo.turns", "33"], "--ppo.turns 33 must be a multiple of --step.minibatches"),
        (["--ppo.temperature", "-0.5"], "--ppo.temperature must be above 0, not -0.5"),
        (["--context.max-context", "999"], "does not hold --context.max-context 999"),
        (["--model.width", "97"], "--model.width 97 must be a multiple of --model.heads"),
        (["--step.kl", "exact"], "exact"),
        (["--seed", "three"], "three"),
        (["--no-such-flag"], "no-such-flag"),
    ],
)
def test_wrong_flags_are_refused_with_what_was_found(arguments, expected, capsys):
    assert expected in " ".join(refused(arguments, capsys).replace("│", " ").split())


def test_an_unknown_preset_by_name():
    with pytest.raises(ValueError, match="must be one of demo, cpu, gpu, not 'tpu'"):
        preset("tpu")


def flags(value, prefix="--"):
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        # The one field whose flag has another name: `model` is the decoder's.
        name = prefix + {"pretrained": "model"}.get(field.name, field.name).replace("_", "-")
        if dataclasses.is_dataclass(inner):
            yield from flags(inner, name + ".")
        else:
            yield name


def test_help_teaches(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    missing = [flag for flag in flags(preset("demo")) if flag not in said]
    assert missing == []
    for word in (*PRESETS, *METHODS, *STAGES, "policy", "e2e"):
        assert word in said
    lines = [line.strip() for line in said.splitlines()]
    assert "python -m morejax.experiments.multiwoz" in lines
    assert "python -m morejax.experiments.multiwoz --preset cpu --data-dir DATA --out runs/mwz" in lines
    assert [line for line in lines if line.startswith("--split test ")]


def test_every_flag_of_the_examples_is_one(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["--help"])
    examples = capsys.readouterr().out.partition("The same command with one of these\n")[2].splitlines()
    lines = [re.split(r"\s{2,}", line.strip())[0].split() for line in takewhile(str.strip, examples)]
    assert len(lines) == 6
    for line in lines:
        assert parse(line) != parse([])


def test_help_of_a_preset_shows_its_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["--preset", "gpu", "--help"])
    assert "bfloat16" in capsys.readouterr().out


def test_devices_as_axes():
    assert parse(["--mesh", "data=8,fsdp=4,tensor=2"]).mesh == "data=8,fsdp=4,tensor=2"
    assert parse([]).devices is None
    assert parse(["--devices", "0"]).devices == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mesh data=8 --devices 8", "--devices 8 is short for --mesh data=8: give one of them"),
        ("--mesh data=8,rows=2", "--mesh data=8,rows=2: 'rows=2' is not AXIS=SIZE"),
        ("--mesh data=-1,fsdp=-1", "only one axis can be -1"),
        ("--mesh data=5", "--mesh data=5: its sizes multiply to 5, found 8 cpu device"),
        ("--mesh data=8 --ppo.turns 132 --step.minibatches 4", "--ppo.turns 132 must be a multiple of the mesh's data"),
        ("--heartbeat 0", "--heartbeat must be at least 1 second, not 0"),
        ("--process 1", "processes=None and process=1 were given without a coordinator"),
        (
            "--coordinator 10.0.0.1:1 --processes 2 --process 2",
            "process must lie between 0 and processes - 1 = 1, not 2",
        ),
    ],
)
def test_a_mesh_or_a_process_that_cannot_be_is_refused(flags, message, capsys, tmp_path):
    said = refused([*flags.split(), "--out", str(tmp_path / "run")], capsys)
    assert message in " ".join(said.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [["--exact-repeat", "0", "--weak", "train"], ["--exact-repeat", "2"]])
def test_exact_dialogues_are_repeated_beside_weak_ones_only(flags, capsys):
    said = " ".join(refused(flags, capsys).replace("│", " ").split())
    assert f"--exact-repeat {flags[1]}: expected at least 1, and more than 1 only with --weak" in said


def test_samples_of_a_turn_may_have_histories_of_their_own():
    config = parse(["--context.given", "--method", "gdpo"])
    assert (config.context.given, config.step.baseline) == (True, "group_mean")
