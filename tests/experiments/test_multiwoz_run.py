"""The main job from the command line on a tiny corpus: what it leaves, how it stops, goes on and fails."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from transformers import AutoTokenizer

from morejax import chat
from morejax.evaluate import evaluate_file
from morejax.experiments.multiwoz.__main__ import main
from morejax.export import load_run
from morejax.export import main as export
from morejax.models import hf
from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.reader import read_corpus
from morejax.training.writers import read_stages

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[2] / "experiments" / "multiwoz"
ITERATIONS = 5
STREAMS = ("likeness", "fluency", "faithfulness", "naturalness", "inform", "success", "slots")
SCORES = ("inform", "success", "bleu", "combined")


@pytest.fixture(autouse=True)
def _cache(tiny, monkeypatch):
    monkeypatch.setenv("MOREJAX_CACHE", tiny.environment["MOREJAX_CACHE"])


def read(path):
    return json.loads(path.read_text())


def lines(run, stage):
    """The log of a stage without what the clock says."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in records if r["stage"] == stage]


def arrays(folder):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder)


def assert_same_arrays(left, right):
    left, right = arrays(left), arrays(right)
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def assert_same_ppo(run, undisturbed):
    """Same log, same state bit for bit, same policy."""
    assert lines(run, "ppo") == lines(undisturbed, "ppo")
    state = f"checkpoints/ppo/{ITERATIONS}/state"
    assert_same_arrays(run / state, undisturbed / state)
    assert_same_arrays(run / "checkpoints/ppo-final/params", undisturbed / "checkpoints/ppo-final/params")
    left, right = (read(folder / "stages.json")["ppo"] | {"seconds": None} for folder in (run, undisturbed))
    assert left == right


def failure(arguments, capsys):
    """Exit status and the one line of an error."""
    status = main([str(argument) for argument in arguments])
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1, said
    assert "Traceback" not in said
    return status, said


SHORT = ("--ppo.iterations", "1", "--eval-splits", "test")
ALOUD = ("--aloud", "--ppo.iterations", "1", "--eval-splits", "dev")
VARIANTS = {
    "mixed": ("--method", "mixed", *SHORT),
    "unconstrained": ("--method", "unconstrained", "--ppo.ref-context", "direct", *SHORT),
    "supervised": ("--method", "supervised", *SHORT),
    "aloud": ALOUD,
    "gdpo": (
        *("--method", "fixed", "--step.baseline", "group_mean", "--step.adv-norm", "group", "--critic.kind", "none"),
        *("--ppo.samples", "2", "--ppo.turns", "64", "--numbers.gamma-turn", "0.5", *SHORT),
    ),
    "ppo diverges": ("--numbers.learning-rate", "1e30", "--numbers.warmup-steps", "0", "--ppo.eval-every", "0"),
}
TWO_DEVICES = (
    *("--method", "fixed", "--devices", "2", "--ppo.iterations", "1", "--stages", "ppo"),
    *("--ppo.runs", "2", "--ppo.average", "0.5"),
)
# The few dialogues of dev serve for everything: prompts of few lengths, little to compile.
END_TO_END = (
    *("--model.max-length", "296", "--context.max-context", "264", "--context.max-state", "96", "--track", "e2e"),
    *("--fit", "dev", "--eval-splits", "dev", "--ppo.iterations", "1", "--ppo.eval-every", "0"),
    # What was given before decides the prompts: rollouts, too, go turn by turn then.
    "--context.given",
)
# Whole dialogues as sequences, on the other track.
WHOLE_DIALOGUES = (
    *("--model.max-length", "320", "--context.layout", "dialogue", "--context.window", "320", "--fit", "dev"),
    *("--eval-splits", "dev", "--ppo.iterations", "1", "--ppo.eval-every", "0", "--user-loss"),
)


@pytest.fixture(scope="module", autouse=True)
def started(tiny, beside, tmp_path_factory, request):
    """Folder and futures of runs that are made beside the others: end to end, on two devices, of other methods."""
    root, futures = tmp_path_factory.mktemp("beside"), {}
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    if "end_to_end" in wanted:
        futures["end to end"] = beside.submit(tiny.run, root / "e2e", *END_TO_END)
    if "whole_dialogues" in wanted:
        futures["whole dialogues"] = beside.submit(tiny.run, root / "dialogues", *WHOLE_DIALOGUES)
    if wanted & {"variants", "two_devices"}:
        prepared = request.getfixturevalue("prepared")
        for name in (*VARIANTS, "two devices"):
            shutil.copytree(prepared, root / name)
        runs = [tiny.arguments(root / name, *more, resume=True) for name, more in VARIANTS.items()]
        runs.append(tiny.arguments(root / "diverges", "--supervised.learning-rate", "1e30", "--stages", "supervised"))
        futures["variants"] = beside.submit(tiny.each, runs)
        run = tiny.arguments(root / "two devices", *TWO_DEVICES, resume=True)
        futures["two devices"] = beside.submit(tiny.each, [run], JAX_NUM_CPU_DEVICES="2")
    return root, futures


@pytest.fixture(scope="module")
def two_devices(started):
    root, futures = started
    return root / "two devices", *futures["two devices"].result()


@pytest.fixture(scope="module")
def end_to_end(started):
    root, futures = started
    return root / "e2e", futures["end to end"].result()


@pytest.fixture(scope="module")
def whole_dialogues(started):
    root, futures = started
    return root / "dialogues", futures["whole dialogues"].result()


# What a run leaves


def test_finished_stages_are_skipped(finished):
    _, said = finished
    for stage in ("supervised", "scaffold", "reward_heads"):
        assert f"{stage}: done before, skipped" in said
    assert "Traceback" not in said


def test_the_banner_names_corpus_splits_and_method(finished):
    run, said = finished
    assert "method more, track policy, seed 0" in said
    assert "corpus embedded (dev 4, test 4, train 32); fit train, select dev, ppo train" in said
    assert f"out {run}" in said


def test_config_says_what_was_run_on_what(finished, tiny):
    run, _ = finished
    config = read(run / "config.json")
    assert config["corpus"] == "embedded"
    assert config["splits"] == {"fit": "train", "select": "dev", "ppo": "train"}
    assert {"python", "jax", "flax", "orbax-checkpoint"} <= config["versions"].keys()
    assert re.fullmatch(r"[0-9a-f]{12}\+?", config["commit"] or "0" * 12)
    assert config["config"]["method"] == "more"
    assert config["config"]["model"]["width"] == 16
    assert config["config"]["data_dir"] == str(tiny.corpus)
    assert config["thresholds"].keys() == {"inform", "success", "slots"}
    assert config["targets"].keys() == set(STREAMS[:4])
    assert "--resume" in config["command"]


def test_metrics_have_all_stages_and_names(finished):
    run, _ = finished
    supervised, ppo = lines(run, "supervised"), lines(run, "ppo")
    steps = [line["step"] for line in supervised if "loss" in line]
    assert steps == list(range(1, steps[-1] + 1))
    assert len([line for line in supervised if "dev_loss" in line]) == 1
    assert [line["step"] for line in lines(run, "scaffold") if "dev_loss" in line]
    assert [line["step"] for line in ppo if "kl" in line] == list(range(1, ITERATIONS + 1))
    assert [line["step"] for line in ppo if "eval/combined" in line] == [0, 2, 4, ITERATIONS]
    names = set(ppo[-2])
    for stream in STREAMS:
        assert {f"J/{stream}", f"grad_norm/{stream}", f"explained_variance/{stream}"} <= names
    for objective in STREAMS[:4]:
        assert f"weight/{objective}" in names
    for constraint in STREAMS[4:]:
        assert {f"constraint/{constraint}/{n}" for n in ("threshold", "violation", "score_ema")} <= names
        assert f"multiplier/{constraint}" in names
    assert any(name.startswith("cosine/") for name in names)
    assert any(name.startswith("share/") for name in names)
    assert {"entropy", "kl", "response_tokens"} <= names
    assert "tokens_per_s" in read_stages(run / "metrics.jsonl")["ppo"]


def test_tensorboard_has_the_same_stages(finished):
    run, _ = finished
    for stage in ("supervised", "scaffold", "ppo"):
        events = list((run / "tensorboard" / stage).glob("events.out.tfevents.*"))
        assert events
        assert all(path.stat().st_size > 0 for path in events)


def test_predictions_scored_again_give_the_results(finished, tiny):
    run, _ = finished
    results = read(run / "results.json")
    rows = {(row["system"], row["split"]): row for row in results["scores"]}
    assert rows.keys() == {(s, part) for s in ("supervised", "scaffold", "ppo") for part in ("dev", "test")}
    for (system, part), row in rows.items():
        folder = run / "predictions" if system == "ppo" else run / "predictions" / system
        again = evaluate_file(folder / f"{part}.json", tiny.corpus, part)
        assert again["missing"] == 0
        assert {name: again[name] for name in SCORES} == {name: row[name] for name in SCORES}


def test_results_are_those_of_the_policy_on_test(finished):
    results = read(finished[0] / "results.json")
    expected = {"method": "more", "track": "policy", "corpus": "embedded", "preset": "demo", "seed": 0}
    expected |= {"fit": "train", "select": "dev", "split": "test", "system": "ppo", "dialogues": 4}
    assert {name: results[name] for name in expected} == expected
    row = next(r for r in results["scores"] if (r["system"], r["split"]) == ("ppo", "test"))
    assert all(results[name] == row[name] for name in SCORES)
    assert results["constraints"].keys() == {"inform", "success", "slots"}
    assert results["timings"].keys() == {"supervised", "scaffold", "reward_heads", "ppo", "evaluate"}
    assert all(seconds > 0 for seconds in results["timings"].values())


def test_checkpoints_and_tokenizer_are_there(finished):
    run, _ = finished
    assert sorted(path.name for path in (run / "checkpoints" / "ppo").iterdir()) == ["3", "5"]
    for stage in ("supervised", "scaffold", "reward_heads", "ppo"):
        assert (run / "checkpoints" / f"{stage}-final" / "meta.json").is_file()
    assert (run / "tokenizer" / "tokenizer.json").is_file()
    assert read(run / "reward_heads.json")["naturalness"]["examples"] == 32


def test_the_report_is_one_page_that_names_the_corpus(finished):
    run, said = finished
    page = (run / "report.html").read_text()
    assert str(run / "report.html") in said
    assert "embedded (made by the project itself)" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert not re.search(r"@import|url\(\s*['\"]?http", page)
    assert page.count("<svg") + page.count("data:image") >= 3


# Scoring later


@pytest.fixture(scope="module")
def held_back(tiny, tmp_path_factory):
    """A run made without the test dialogues, then its command again with `--split test` when they have come."""
    folder = tmp_path_factory.mktemp("held")
    corpus, run = shutil.copytree(tiny.corpus, folder / "corpus"), folder / "run"
    shutil.rmtree(corpus / "MultiWOZ_2.2" / "test")
    command = ("--method", "supervised", "--stages", "supervised", "evaluate", "--data-dir", str(corpus))
    refused = tiny.run(folder / "refused", *command, "--split", "test")
    first = tiny.run(run, *command)
    assert first.returncode == 0, first.stderr
    before = shutil.copytree(run, folder / "before")
    shutil.copytree(tiny.corpus / "MultiWOZ_2.2" / "test", corpus / "MultiWOZ_2.2" / "test")
    later = tiny.run(run, *command, "--split", "test")
    assert later.returncode == 0, later.stderr
    return before, run, refused, later.stderr


def test_held_back_dialogues_cannot_be_scored(held_back):
    refused = held_back[2]
    assert refused.returncode == 2
    assert "no split 'test'; this corpus has dev, train" in refused.stderr


def test_a_split_that_comes_later_is_scored_without_training(held_back, tiny):
    _, run, _, said = held_back
    assert "supervised: done before, skipped" in said
    assert "supervised answers test" in said
    assert "answers dev" not in said
    row = next(row for row in read(run / "results.json")["scores"] if row["split"] == "test")
    again = evaluate_file(run / "predictions" / "test.json", tiny.corpus, "test")
    assert {name: again[name] for name in SCORES} == {name: row[name] for name in SCORES}


def test_scoring_another_split_loses_nothing(held_back):
    before, run, _, _ = held_back
    old, new = read(before / "results.json"), read(run / "results.json")
    assert (old["split"], new["split"]) == ("dev", "test")
    assert [row["split"] for row in new["scores"]] == ["dev", "test"]
    assert new["scores"][0] == old["scores"][0]
    for name in ("predictions/dev.json", "samples.json", "metrics.jsonl"):
        assert (run / name).read_bytes() == (before / name).read_bytes()
    assert read(run / "stages.json")["evaluate"]["splits"] == ["dev", "test"]
    config = read(run / "config.json")
    assert config["command"] == f"{config['earlier_commands'][0]} --split test"
    page = (run / "report.html").read_text()
    assert config["command"] in page


# Handing it on


def test_a_run_from_scratch_is_exported_too(finished, tmp_path):
    """GPT-2's kind; `--system supervised` takes that stage's model, which has no heads."""
    run, _ = finished
    assert export([str(run), str(tmp_path / "out"), "--system", "supervised", "--dtype", "bfloat16"]) == 0
    loaded = hf.load_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    assert hf.load_heads(tmp_path / "out") == {}
    wanted = load_run(run, "supervised")[1]["trunk"]["embedding"]
    np.testing.assert_allclose(loaded.params["trunk"]["embedding"], wanted, rtol=2**-8)
    text = "the phone number is [phone] ."
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")(text, add_special_tokens=False)["input_ids"]
    assert ids == vocabulary.load_tokenizer(run / "tokenizer")(text, add_special_tokens=False)["input_ids"]


def test_an_export_that_cannot_be_says_why(finished, tmp_path, capsys):
    run, _ = finished
    assert export([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "no run here (no config.json)" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert export([str(run), str(tmp_path)]) == 2
    assert "holds a model already" in capsys.readouterr().err


# Stopping and going on


def test_sigterm_then_kill_9_in_ppo_and_resume(tiny, prepared, finished, copy_of):
    run = copy_of(prepared)
    arguments, saved = tiny.arguments(run, resume=True), run / "checkpoints" / "ppo"
    # The numbers of an iteration are shown while the next one is computed; at 2 no checkpoint was due.
    status, said = tiny.interrupted(signal.SIGTERM, "ppo", 1, arguments)
    assert status == 143, said
    assert said.splitlines()[-1] == "stopped by SIGTERM; continue with --resume"
    assert "Traceback" not in said
    assert (saved / "2").is_dir()
    status, _ = tiny.interrupted(signal.SIGKILL, "ppo", 4, arguments, saved=saved / "3")
    assert status == -signal.SIGKILL
    assert lines(run, "ppo")[-1]["step"] == 4
    done = tiny.run(run, "--stages", "ppo", resume=True)
    assert done.returncode == 0, done.stderr
    assert_same_ppo(run, finished[0])


def test_ctrl_c_in_supervised_and_resume(tiny, prepared, tmp_path):
    run = tmp_path / "run"
    arguments = tiny.arguments(run, "--stages", "supervised")
    status, said = tiny.interrupted(signal.SIGINT, "supervised", 3, arguments)
    assert status == 130, said
    assert said.splitlines()[-1] == "stopped by SIGINT; continue with --resume"
    assert "Traceback" not in said
    assert (run / "checkpoints" / "supervised" / "3").is_dir()
    done = tiny.run(run, "--stages", "supervised", resume=True)
    assert done.returncode == 0, done.stderr
    assert lines(run, "supervised") == lines(prepared, "supervised")
    final = "checkpoints/supervised-final"
    assert_same_arrays(run / final / "params", prepared / final / "params")
    assert read(run / final / "meta.json") == read(prepared / final / "meta.json")


def test_nan_from_a_stream_stops_the_run_and_names_it(tiny, prepared, copy_of):
    run = copy_of(prepared)
    # The stream is called twice for the reference scores, then once an iteration.
    changes = ("--stages", "ppo", "--step.objectives", "likeness", "poison", "--ppo.checkpoint-every", "1")
    arguments = tiny.arguments(run, *changes, "--ppo.iterations", "3", resume=True)
    stopped = tiny.poisoned("poison", 4, arguments)
    assert stopped.returncode == 3, stopped.stderr
    last = stopped.stderr.splitlines()[-1]
    assert last.startswith("error: ppo, iteration 2: stream 'poison': reward is nan for dialogue")
    assert "the checkpoint before it is kept" in last
    assert "Traceback" not in stopped.stderr
    assert (run / "checkpoints" / "ppo" / "1").is_dir()
    healed = tiny.poisoned("poison", 999, arguments)
    assert healed.returncode == 0, healed.stderr
    assert [line["step"] for line in lines(run, "ppo") if "kl" in line] == [1, 2, 3]


# Methods and tracks


@pytest.fixture(scope="module")
def variants(started):
    """Short runs of other methods on the prepared stages, and two that diverge: folder, exit statuses, stderr."""
    root, futures = started
    (statuses, said), names = futures["variants"].result(), [*VARIANTS, "diverges"]
    return root, dict(zip(names, statuses, strict=True)), said


@pytest.mark.parametrize("method", ["mixed", "unconstrained", "supervised"])
def test_the_other_methods_run_and_results_say_so(variants, method):
    root, statuses, said = variants
    assert statuses[method] == 0, said
    results = read(root / method / "results.json")
    assert results["method"] == method
    assert results["split"] == "test"
    assert results["system"] == ("supervised" if method == "supervised" else "ppo")
    assert {row["split"] for row in results["scores"]} == {"test"}
    assert (root / method / "report.html").is_file()


def test_groups_of_samples_need_no_critic(variants):
    """Two samples of every dialogue, standardised in their group, later turns' rewards counted: GDPO from the flags."""
    root, statuses, said = variants
    assert statuses["gdpo"] == 0, said
    metrics = lines(root / "gdpo", "ppo")[-2]
    assert metrics["updates"] > 0
    assert metrics["grad_norm/likeness"] > 0
    assert metrics["value_loss"] == 0
    assert not any(name.startswith("explained_variance") for name in metrics)


def test_a_policy_that_answers_aloud(variants):
    """From the scaffold, and anchored to it; chat asks it for acts."""
    root, statuses, said = variants
    assert statuses["aloud"] == 0, said
    results = read(root / "aloud" / "results.json")
    assert results["system"] == "ppo"
    metrics = lines(root / "aloud", "ppo")[-2]
    assert metrics["updates"] > 0
    assert all(np.isfinite(metrics[f"J/{name}"]) for name in STREAMS)
    # It starts from the reference; the first update of one iteration has rate 0. The other start is not the reference.
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert lines(root / "mixed", "ppo")[-2]["kl"] > 1e-4
    assert chat.load_talker(root / "aloud").reasoned
    assert not chat.load_talker(root / "mixed").reasoned


def test_scripts_let_a_policy_answer_aloud(tiny, variants, tmp_path):
    """Without a penalty, and at the ends of the interpolation, scores are the run's own."""
    run, saved = variants[0] / "aloud", tmp_path / "rows.json"
    recorded = {row["system"]: row for row in read(run / "results.json")["scores"]}
    for script, flags, systems in (
        ("end_penalty.py", ("--penalties", "0"), ("ppo",)),
        ("interpolate.py", ("--shares", "0", "1"), ("scaffold", "ppo")),
    ):
        command = [sys.executable, SCRIPTS / script, *flags, "--save", saved, "--", *tiny.arguments(run, *ALOUD)]
        done = subprocess.run(command, env=tiny.environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        for row, system in zip(read(saved), systems, strict=True):
            assert {key: row[key] for key in SCORES} == pytest.approx({key: recorded[system][key] for key in SCORES})


def test_methods_mix_as_they_say(variants):
    root, _, _ = variants
    mixed, unconstrained = (lines(root / name, "ppo")[-2] for name in ("mixed", "unconstrained"))
    for name in ("inform", "success", "slots"):
        assert mixed[f"multiplier/{name}"] == 0.25
        assert unconstrained[f"multiplier/{name}"] == 0.0
    assert [mixed[f"weight/{name}"] for name in STREAMS[:4]] == [0.25] * 4
    assert len({unconstrained[f"weight/{name}"] for name in STREAMS[:4]}) > 1
    assert not (root / "supervised" / "checkpoints" / "ppo").exists()


def test_a_diverging_stage_stops_and_is_named(variants):
    root, statuses, said = variants
    assert statuses["diverges"] == statuses["ppo diverges"] == 3, said
    assert re.search(r"^error: supervised, step \d+: the loss is nan; ", said, re.MULTILINE)
    found = re.search(r"^error: ppo, iteration (\d): (.*) is not finite", said, re.MULTILINE)
    assert found, said
    assert "stream " in found[2]
    assert "Traceback" not in said
    # What is kept is from before.
    for folder in (root / "ppo diverges" / "checkpoints" / "ppo").glob("[0-9]*"):
        assert int(folder.name) < int(found[1])


def test_two_devices(two_devices):
    run, statuses, said = two_devices
    assert statuses == [0], said
    assert "on 2 x cpu" in said
    assert read(run / "config.json")["config"]["method"] == "fixed"
    first, second = (line for line in lines(run, "ppo") if "kl" in line)
    assert (first["step"], second["step"]) == (1, 2)
    # The second run begins anew: no moving average of a score from the first, and samples of its own.
    for line in (first, second):
        assert line["constraint/slots/score_ema"] == line["J/slots"]
    assert second["J/slots"] != first["J/slots"]
    line = second
    assert line["constraint/inform/threshold"] == pytest.approx(0.93)
    assert [line[f"weight/{name}"] for name in STREAMS[:4]] == [0.25] * 4


def test_end_to_end_track(end_to_end, tiny):
    run, done = end_to_end
    assert done.returncode == 0, done.stderr
    predictions = read(run / "predictions" / "dev.json")
    assert len(predictions) == 4
    assert all(isinstance(turn["state"], dict) for turns in predictions.values() for turn in turns)
    results = read(run / "results.json")
    assert (results["track"], results["split"]) == ("e2e", "dev")
    for row in results["scores"]:
        assert 0 <= row["dst"]["joint_accuracy"] <= 100
    again = evaluate_file(run / "predictions" / "dev.json", tiny.corpus, "dev")
    assert again["dst"] == results["scores"][-1]["dst"]


def test_whole_dialogues_are_learnt_and_answered(whole_dialogues, tiny):
    run, done = whole_dialogues
    assert done.returncode == 0, done.stderr
    predictions = read(run / "predictions" / "dev.json")
    assert [row["dialogues"] for row in read(run / "results.json")["scores"]] == [len(predictions)] * 3
    # What the run says to a user who begins like the first dialogue is what it predicts for that dialogue's first turn.
    first, *_ = read_corpus(tiny.corpus).dialogues("dev")
    conversation = chat.Conversation(chat.load_talker(run))
    tracked = first.turns[0]
    said, _ = conversation.talker.reply([], [], tracked.user, tracked.state, {})
    assert said == predictions[first.id][0]["response"]


# Mistakes


def test_a_folder_in_use_is_refused(tiny, finished, capsys):
    run, _ = finished
    before = (run / "config.json").read_bytes()
    status, said = failure(tiny.arguments(run), capsys)
    assert status == 2
    assert said.startswith(f"error: --out {run} is not empty: pass --resume")
    assert (run / "config.json").read_bytes() == before


def test_a_changed_setting_is_named(tiny, finished, capsys):
    run, _ = finished
    before = (run / "config.json").read_bytes()
    status, said = failure(tiny.arguments(run, "--seed", "1", "--numbers.kl-coef", "0.5", resume=True), capsys)
    assert status == 2
    assert "--resume" in said
    assert "seed: 0 then, 1 now" in said
    assert "numbers.kl_coef: 0.05 then, 0.5 now" in said
    assert (run / "config.json").read_bytes() == before


def test_another_corpus_is_refused(tiny, finished, capsys, tmp_path):
    from morejax.tasks.multiwoz.embedded import write_embedded

    other = write_embedded(tmp_path / "other", dialogues=20)
    status, said = failure([*tiny.arguments(finished[0], resume=True), "--data-dir", other], capsys)
    assert status == 2
    assert "was run on another corpus" in said
    assert "--data-dir" in said


def test_no_data_no_fallback(tiny, capsys, tmp_path):
    missing, out = tmp_path / "nowhere", tmp_path / "run"
    status, said = failure(["--data-dir", missing, "--out", out], capsys)
    assert status == 2
    assert str(missing) in said
    assert "corpus embedded" not in said
    assert not out.exists()


@pytest.mark.parametrize(
    "name", ["MultiWOZ_2.2/train/dialogues_001.json", "MultiWOZ_2.2/dialog_acts.json", "db/hotel_db.json", "goals.json"]
)
def test_a_truncated_file_is_named(tiny, capsys, tmp_path, name, monkeypatch):
    monkeypatch.setenv("MOREJAX_CACHE", str(tmp_path / "cache"))
    corpus = shutil.copytree(tiny.corpus, tmp_path / "corpus")
    content = (corpus / name).read_bytes()
    (corpus / name).write_bytes(content[: len(content) // 2])
    status, said = failure(["--data-dir", corpus, "--out", tmp_path / "run"], capsys)
    assert status == 2
    assert str(corpus / name) in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--devices", "99"], r"--devices 99: only \d+ cpu device"),
        (["--eval-splits", "holdout"], r"no split 'holdout'; this corpus has dev, test, train"),
        (["--fit", "train+dev2"], r"no split 'dev2'"),
        (["--weak", "dev"], r"--weak dev: dev is not among the splits learnt from, --fit train"),
        (["--weak", "train"], r"--weak train: --fit train has no split besides, expected an exact one, too"),
        (["--ppo.split", "nothing"], r"no split 'nothing'"),
        (["--step.objectives", "likeness", "charm"], r"unknown stream 'charm', registered: .*fluency"),
        (["--numbers.targets", "charm", "1.0"], r"--numbers.targets: charm is not one of likeness"),
    ],
)
def test_a_mistake_is_found_before_any_work(tiny, capsys, tmp_path, flags, expected):
    status, said = failure(["--data-dir", tiny.corpus, "--out", tmp_path / "run", *flags], capsys)
    assert status == 2
    assert re.search(expected, said), said
    assert not (tmp_path / "run").exists()


def test_a_file_as_out_is_an_error_line(tiny, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    status, said = failure(["--data-dir", tiny.corpus, "--out", tmp_path / "file"], capsys)
    assert status == 2
    assert str(tmp_path / "file") in said


@pytest.mark.parametrize("stage", ["ppo", "evaluate"])
def test_a_stage_without_the_ones_it_needs_says_so(tiny, capsys, tmp_path, stage):
    status = main(tiny.arguments(tmp_path / "run", "--stages", stage))
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2
    assert "supervised-final: no finished parameters here; run the stage that makes them first" in said
