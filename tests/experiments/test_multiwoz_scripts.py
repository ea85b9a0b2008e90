"""The scripts beside the recorded runs: what they read of a run and what they write."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from morejax.evaluate import evaluate_file
from morejax.experiments.multiwoz.__main__ import parse
from morejax.experiments.multiwoz.keep import keep
from morejax.tasks.multiwoz.canonical import VENUE_DOMAINS
from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.records import Dialogue, Turn

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[2] / "experiments" / "multiwoz"
SCORES = ("inform", "success", "bleu", "combined")


def script(tiny, name, *arguments):
    """Run a script to its end; what it printed."""
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    done = subprocess.run(command, env=tiny.environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def here(tiny, monkeypatch, capsys):
    """`here(name, *arguments)`: a script that trains and answers nothing, in this process; its status, output and
    errors."""
    monkeypatch.setenv("MOREJAX_CACHE", tiny.environment["MOREJAX_CACHE"])
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def here(name, *arguments):
        capsys.readouterr()
        try:
            status = importlib.import_module(name).main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return here


def scores(run, system, split):
    rows = json.loads((run / "results.json").read_text())["scores"]
    return next(row for row in rows if (row["system"], row["split"]) == (system, split))


def test_cost_has_the_scores_of_the_run_and_tells_acts_from_replies(tiny, finished, copy_of, tmp_path):
    run, saved = copy_of(finished[0]), tmp_path / "cost.json"
    before = (run / "config.json").read_text()
    said = script(tiny, "cost.py", "--turns", 3, "--save", saved, "--", *tiny.arguments(run))
    scaffold, policy = json.loads(saved.read_text())
    for row in (scaffold, policy):
        recorded = scores(run, row["system"], row["split"])
        assert {key: row[key] for key in SCORES} == pytest.approx({key: recorded[key] for key in SCORES})
        assert 0 < row["milliseconds"]["p50"] <= row["milliseconds"]["p95"]
        assert row["turns_timed"] == 3
        assert row["tokens"] == pytest.approx(row["reply_tokens"] + row["reasoning_tokens"])
    assert scaffold["reasoning_tokens"] > 0
    assert policy["reasoning_tokens"] == 0
    assert said.splitlines()[0].startswith("| model | Inform |")
    assert (run / "config.json").read_text() == before


def test_a_run_that_is_not_there_is_not_made(tiny, here, tmp_path):
    status, _, complaint = here("interpolate", "--", *tiny.arguments(tmp_path / "none"))
    assert status == 2
    assert "there is no run" in complaint
    assert not (tmp_path / "none").exists()


def test_decoding_reports_the_runs_own_greedy_score(tiny, finished, copy_of, tmp_path):
    run, saved = copy_of(finished[0]), tmp_path / "decoding.json"
    script(tiny, "decoding.py", "--samples", 2, "--save", saved, "--", *tiny.arguments(run))
    rows = {row["decoding"]: row for row in json.loads(saved.read_text())}
    assert list(rows) == ["greedy", "sampled", "likeliest", "natural", "consensus"]
    recorded = scores(run, "ppo", rows["greedy"]["split"])
    assert {key: rows["greedy"][key] for key in SCORES} == pytest.approx({key: recorded[key] for key in SCORES})


def test_tuning_on_a_split_starts_from_the_runs_own_model(tiny, finished, copy_of):
    run = copy_of(finished[0])
    flags = ("--split", "dev", "--epochs", 1, "--learning-rate", 0.01)
    said = script(tiny, "gold_tuning.py", *flags, "--", *tiny.arguments(run))
    before, after = ([float(cell) for cell in line.split("|")[2:-1]] for line in said.splitlines()[2:])
    recorded = scores(run, "supervised", "dev")
    assert before[1:-1] == pytest.approx([recorded[key] for key in SCORES], abs=0.006)
    # What is learnt from is what is scored.
    assert after[0] < before[0]


def test_a_policy_learns_its_own_consensus(tiny, finished, copy_of, tmp_path):
    run, replies = copy_of(finished[0]), tmp_path / "replies.json"
    flags = ("--split", "dev", "--samples", 2, "--replies", replies)
    said = script(tiny, "consensus_tuning.py", *flags, "--epochs", 1, "--", *tiny.arguments(run))
    before, after = ([float(cell) for cell in line.split("|")[2:-1]] for line in said.splitlines()[2:])
    recorded = scores(run, "ppo", "dev")
    assert before[1:-1] == pytest.approx([recorded[key] for key in SCORES], abs=0.006)
    assert after != before
    # Another split's replies are refused.
    flags = ("--split", "test", *flags[2:])
    command = [sys.executable, str(SCRIPTS / "consensus_tuning.py"), *map(str, flags), "--", *tiny.arguments(run)]
    done = subprocess.run(command, env=tiny.environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    count = len(json.loads(replies.read_text())["replies"])
    assert f"--replies {replies}: {count} replies to dev, expected" in done.stderr


def test_less_taken_off_the_end_makes_replies_shorter(tiny, finished, copy_of, tmp_path):
    run, saved = copy_of(finished[0]), tmp_path / "penalty.json"
    # Hardly trained, the model never ends by itself.
    flags = ("--penalties", 0, -99, "--mean", run, "--save", saved)
    script(tiny, "end_penalty.py", *flags, "--", *tiny.arguments(run))
    plain, rewarded = json.loads(saved.read_text())
    recorded = scores(run, "ppo", "dev")
    assert [plain[key] for key in SCORES] == pytest.approx([recorded[key] for key in SCORES])
    assert [plain["policies"], plain["penalty"], rewarded["penalty"]] == [2, 0, -99]
    assert plain["length"] > rewarded["length"] == 0


def test_models_score_as_in_their_run_and_the_scaffold_once_more_with_peoples_acts(tiny, finished, copy_of, tmp_path):
    run, saved = copy_of(finished[0]), tmp_path / "gold_acts.json"
    said = script(tiny, "gold_acts.py", "--save", saved, "--", *tiny.arguments(run))
    rows = {row["system"]: row for row in json.loads(saved.read_text())}
    assert list(rows) == ["supervised", "scaffold", "ppo", "scaffold, people's acts"]
    for name in ("supervised", "scaffold", "ppo"):
        recorded = scores(run, name, rows[name]["split"])
        assert {key: rows[name][key] for key in SCORES} == pytest.approx({key: recorded[key] for key in SCORES})
    assert len(said.splitlines()) == 2 + len(rows)


def test_the_scaffold_reads_peoples_acts_where_others_read_none(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("gold_acts")
    found = {"ppo": SimpleNamespace(params="P", reasoned=False), "scaffold": SimpleNamespace(params="S", reasoned=True)}
    monkeypatch.setattr(module, "systems", lambda parts: found)

    def saying(how):
        return lambda params: lambda prompts: [(how, params, prompt) for prompt in prompts]

    decoding = SimpleNamespace(answer=saying("answers"), reason_and_answer=saying("reasons"))
    writers = module._writers(SimpleNamespace(decoding=decoding, dir="run"))
    turn = SimpleNamespace(direct="prompt", reasoned="prompt with acts")
    assert {name: write([turn]) for name, write in writers.items()} == {
        "ppo": [("answers", "P", "prompt")],
        "scaffold": [("reasons", "S", "prompt")],
        "scaffold, people's acts": [("answers", "S", "prompt with acts")],
    }
    del found["scaffold"]
    with pytest.raises(ValueError, match="run has no scaffold"):
        module._writers(SimpleNamespace(decoding=decoding, dir="run"))


def test_replies_are_told_apart_by_their_placeholders(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    by_content = importlib.import_module("gold_acts").by_content
    people = ["try the nice [restaurant_name] on [phone] now", "which area do you like best ?", "it is at [address]"]
    # The order of placeholders and their domain do not matter, how often they stand does.
    texts = ["[phone] is of the nice [hotel_name]", "which area do you like best ?", "at [address] or [address]"]
    found = by_content(texts, people)
    assert found["same"] == pytest.approx(200 / 3)
    assert 0 < found["bleu_other"] < found["bleu_same"] < 100
    assert by_content(people, people) == pytest.approx({"same": 100, "bleu_same": 100, "bleu_other": 0})


def test_the_ends_of_the_interpolation_are_the_runs_models(tiny, finished, copy_of, tmp_path):
    run, saved = copy_of(finished[0]), tmp_path / "front.json"
    # The mean with itself is the policy.
    flags = ("--shares", 0, 0.5, 1, "--mean", finished[0], "--save", saved)
    script(tiny, "interpolate.py", *flags, "--", *tiny.arguments(run))
    rows = json.loads(saved.read_text())
    assert [row["share"] for row in rows] == [0, 0.5, 1]
    assert {row["policies"] for row in rows} == {2}
    assert saved.with_suffix(".png").stat().st_size > 10_000
    for row, system in ((rows[0], "supervised"), (rows[2], "ppo")):
        recorded = scores(run, system, row["split"])
        assert {key: row[key] for key in SCORES} == pytest.approx({key: recorded[key] for key in SCORES})


def test_errors_add_up_to_the_scores_and_people_do_what_people_do(tiny, here, finished, tmp_path):
    run, saved = finished[0], tmp_path / "errors.json"
    predictions = run / "predictions" / "test.json"
    flags = ("--data-dir", tiny.corpus, "--split", "test", "--save", saved)
    status, said, _ = here("errors", f"more={predictions}", *flags)
    assert status == 0
    found = json.loads(saved.read_text())
    recorded = scores(run, "ppo", "test")
    names = [name for name in found["more"] if "lost" in name]
    never, unfit = (found["more"][name] for name in names[:2])
    assert max(never, unfit) <= 100 - recorded["inform"] + 0.1 <= never + unfit + 0.2
    missing = [found["more"][name] for name in names[2:]]
    assert max(missing) <= recorded["inform"] - recorded["success"] + 0.1 <= sum(missing) + 0.2
    assert found["human"]["offers where people do not"] == 0
    assert found["human"]["does not offer where people do"] == 0
    assert said.startswith("| per cent | human | more |")


def test_intervals_stand_around_the_scores_and_a_system_does_not_differ_from_itself(tiny, here, finished):
    predictions = finished[0] / "predictions" / "test.json"
    flags = ("--data-dir", tiny.corpus, "--split", "test", "--draws", 50)
    status, said, _ = here("intervals", f"a={predictions}", f"b={predictions}", *flags)
    assert status == 0
    first, second = ([cell.split("±") for cell in line.split("|")[2:-1]] for line in said.splitlines()[2:])
    recorded = scores(finished[0], "ppo", "test")
    # BLEU of the scorer moves spaces before it counts, which hardly matters.
    found = [float(cell[0]) for cell in first[:4]]
    assert found == pytest.approx([recorded[key] for key in SCORES], abs=0.5)
    assert second[:4] == first[:4]
    assert [float(part) for part in second[4]] == [0, 0]


def test_one_of_two_references_missing_is_a_missing_reference(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    errors = importlib.import_module("errors")
    database = Database({domain: [{"id": domain, "trainid": domain, "area": "north"}] for domain in VENUE_DOMAINS})
    goal = {
        domain: {"informable": {"area": "north"}, "requestable": [*more, "REFERENCE"]}
        for domain, more in (("hotel", []), ("restaurant", ["PHONE"]))
    }
    states = [{"hotel": {"area": "north"}}] * 2 + [{"hotel": {"area": "north"}, "restaurant": {"area": "north"}}] * 2
    replies = ["[name].", "[reference].", "[name], [phone].", "[reference]."]
    booked = [(), ("hotel",), ("hotel",), ("hotel", "restaurant")]
    turns = tuple(Turn(t, "user", text, text, states[t], (), (), booked[t]) for t, text in enumerate(replies))
    dialogue = Dialogue("one", "dev", turns, goal)
    corpus = SimpleNamespace(database=database)
    count = lambda said: errors.counts([dialogue], {"one": said}, corpus)  # noqa: E731
    lost = [name for name in errors.FAULTS if "Success" in name]
    slot, reference = lost
    assert [count(replies)[name] for name in lost] == [0, 0]
    without_reference = count([*replies[:3], "done."])
    assert (without_reference[slot], without_reference[reference]) == (0, 100)
    without_phone = count([replies[0], "[reference]. [phone]", "[name].", replies[3]])
    assert (without_phone[slot], without_phone[reference]) == (100, 0)
    assert without_phone["does not give one where people do"] == 25
    assert without_phone["gives a requestable slot where people do not"] == 25


def test_errors_names_a_file_that_lacks_a_dialogue(tiny, here, tmp_path):
    (tmp_path / "none.json").write_text("{}")
    status, _, complaint = here("errors", f"x={tmp_path / 'none.json'}", "--data-dir", tiny.corpus, "--split", "test")
    assert status == 2
    assert "none.json has 0 replies to" in complaint


def test_a_grid_makes_its_runs_once_and_tables_them(tiny, prepared, tmp_path):
    common = tiny.arguments(tmp_path / "unused", "--ppo.iterations", "1", "--eval-splits", "dev")
    common = [flag for flag in common if flag not in ("--out", str(tmp_path / "unused"))]
    arguments = ("attempts", "--backbone", prepared, "--out", tmp_path / "grid", "--seeds", 1)
    said = script(tiny, "grid.py", *arguments, "--arms", "weak anchor", "--", *common)
    (row,) = json.loads((tmp_path / "grid" / "attempts.json").read_text())
    assert (row["arm"], row["seed"], row["split"]) == ("weak anchor", 1, "dev")
    run = tmp_path / "grid" / "weak-anchor-seed1"
    assert row["combined"] == scores(run, "ppo", "dev")["combined"]
    assert json.loads((run / "config.json").read_text())["config"]["numbers"]["kl_coef"] == 0.02
    assert (tmp_path / "grid" / "attempts.png").stat().st_size > 5000
    again = script(tiny, "grid.py", *arguments, "--table")
    assert again == said
    assert "| weak anchor | 1 |" in again
    document = json.loads((run / "config.json").read_text())
    document["command"] = document["command"].replace("--numbers.kl-coef 0.02", "--numbers.kl-coef 0.03")
    (run / "config.json").write_text(json.dumps(document))
    command = [sys.executable, str(SCRIPTS / "grid.py"), *map(str, arguments), "--table"]
    done = subprocess.run(command, env=tiny.environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert "weak-anchor-seed1 was not made with" in done.stderr
    assert "--numbers.kl-coef 0.02'" in done.stderr


def test_every_arm_of_a_grid_goes_with_thresholds_given_for_all(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    grids = importlib.import_module("grid").GRIDS
    common = ("--preset", "cpu", "--data-dir", tmp_path, "--out", tmp_path / "run", "--seed", 3)
    common = [*map(str, common), "--numbers.thresholds", "success", "0.5", "inform", "0.55"]
    for flags in (*grids["ablation"].values(), *grids["parts"].values()):
        config = parse([*common, *flags.split()])
        # The step takes no threshold of another name. The others are the scaffold's own scores.
        assert set(config.numbers.thresholds) == {"success", "inform"} & set(config.step.constraints), flags


def test_dynamics_draws_every_stream_of_every_run(finished, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    dynamics = importlib.import_module("dynamics")
    runs = dict(map(dynamics.read_run, (f"more={finished[0]}", f"again={finished[0]}")))
    figure = dynamics.dynamics_figure(runs)
    axes = {axis.get_title("left"): axis for axis in figure.axes}
    assert list(axes)[:2] == ["more: constraints, thresholds dashed", "again: constraints, thresholds dashed"]
    assert len(axes) == 2 * len(dynamics.ROWS)
    logged = runs["more"]
    for title, pattern in (("share of the gradient", "share/"), ("gradient norms", "grad_norm/")):
        streams = {key.split("/")[1].replace("_", " ") for key in logged if key.startswith(pattern)}
        assert streams <= {text.get_text() for text in axes[f"more: {title}"].texts}
    # Every stream but the first objective has a cosine with it.
    named = {text.get_text() for text in axes["more: cosine with the first objective"].texts}
    assert named - {"●"} == streams - {dynamics.objectives_of(logged)[0].replace("_", " ")}
    assert axes["more: multipliers"].get_ylim() == axes["again: multipliers"].get_ylim()
    assert dynamics.main([f"more={finished[0]}", "--out", str(tmp_path / "figure.png")]) == 0
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_dynamics_says_which_run_it_cannot_read(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    dynamics = importlib.import_module("dynamics")
    for given, message in (("more", "expected NAME=RUN"), (f"more={tmp_path / 'gone'}", "gone/metrics.jsonl")):
        assert dynamics.main([given, "--out", str(tmp_path / "figure.png")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "figure.png").exists()


def test_a_recorded_run_is_its_command_scores_and_end(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    record = importlib.import_module("record")
    # The policy's scores on the split that choices are made on, which the tiny run has not asked for.
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (run / name).write_bytes((finished[0] / name).read_bytes())
    results = json.loads((finished[0] / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"select": "test"}))
    target = tmp_path / "attempts.jsonl"
    target.write_text('{"attempt": "kept", "inform": 1}\n{"attempt": "a", "inform": 2}\n')
    assert record.main([f"a={run}", "--to", str(target)]) == 0
    kept, line = map(json.loads, target.read_text().splitlines())
    assert kept == {"attempt": "kept", "inform": 1}
    expected = scores(finished[0], "ppo", "test")
    assert {key: line[key] for key in SCORES} == {key: expected[key] for key in SCORES}
    assert str(tmp_path) not in line["command"]
    assert "--resume" not in line["command"]
    *_, last = (
        row for text in (run / "metrics.jsonl").read_text().splitlines() if "J/success" in (row := json.loads(text))
    )
    assert line["last_iteration"] == last["step"]
    assert line["last"]["multiplier/success"] == pytest.approx(last["multiplier/success"], abs=1e-4)
    # The mean of several runs has no iterations: the commands of those take their place.
    document = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(document | {"merged_from": [{"command": document["command"]}] * 2}))
    (run / "metrics.jsonl").write_text("")
    assert record.main([f"mean={run}", "--to", str(target)]) == 0
    merged = json.loads(target.read_text().splitlines()[-1])
    assert merged == {"attempt": "mean", "merged_from": [line["command"]] * 2} | {
        key: line[key] for key in ("commit", *SCORES, "richness", "ppo_seconds")
    }
    assert record.main([f"a={tmp_path / 'gone'}", "--to", str(target)]) == 2
    assert "gone" in capsys.readouterr().err
    (run / "results.json").write_text(json.dumps(results | {"select": "train"}))
    assert record.main([f"a={run}", "--to", str(target)]) == 2
    assert "no scores of the policy on train" in capsys.readouterr().err


def test_what_is_kept_scores_as_the_run_did_and_holds_no_words_of_users(tiny, finished, copy_of, tmp_path):
    run, kept = copy_of(finished[0]), tmp_path / "kept"
    # As end to end, where what is predicted has states.
    path = run / "predictions" / "dev.json"
    state = {"state": {"hotel": {"name": "hers"}}}
    said = json.loads(path.read_text())
    path.write_text(json.dumps({name: [turn | state for turn in turns] for name, turns in said.items()}))
    written = keep(run, kept)
    assert {"config.json", "results.json", "overview.png", "predictions_dev.json"} <= {file.name for file in written}
    assert not any((kept / name).exists() for name in ("checkpoints", "report.html", "samples.json"))
    assert "hers" not in (kept / "predictions_dev.json").read_text()
    again = evaluate_file(kept / "predictions_dev.json", tiny.corpus, "dev")
    recorded = scores(run, "ppo", "dev")
    assert {key: again[key] for key in SCORES} == pytest.approx({key: recorded[key] for key in SCORES})
    config = (kept / "config.json").read_text()
    assert str(tiny.corpus) not in config
    assert json.loads(config)["config"]["data_dir"] == "DATA"


def test_a_recorded_command_names_no_folder(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    record = importlib.import_module("record")
    given = "python -m morejax.experiments.multiwoz --data-dir=/a/b --out /c --seed=1 --resume --stages ppo evaluate "
    given += "--step.objectives a b --compare mixed=/d --model /e --numbers.kl-coef 0.1"
    wanted = "--data-dir DATA --seed 1 --step.objectives a b --model MODEL --numbers.kl-coef 0.1"
    assert record.plain_command(given) == f"python -m morejax.experiments.multiwoz {wanted}"
    with pytest.raises(ValueError, match="not the experiment's own"):
        record.plain_command("python experiments/multiwoz/decoding.py -- --out x")
