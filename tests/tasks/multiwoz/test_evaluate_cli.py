"""The evaluate command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from morejax.evaluate import evaluate_file, format_scores, main

GOALS = {"d1": {"restaurant": {"informable": {"area": "north"}, "requestable": ["PHONE"]}}, "d2": {}}
PREDICTIONS = {"d1": [{"response": "[name] is good , call [phone] ."}]}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with databases and the scoring data of dev, of which `part` is a part."""
    rows = {
        "restaurant": [{"id": "1", "name": "golden fork", "area": "north"}],
        "hotel": [{"id": "1", "name": "x"}],
        "attraction": [{"id": "1", "name": "x"}],
        "train": [{"trainID": "1", "leaveAt": "09:00", "arriveBy": "10:00"}],
    }
    scoring = {
        "goals": GOALS,
        "booked_domains": {"d1": [[]], "d2": [[]]},
        "gold_states": {"d1": [{"restaurant": {"area": "north"}}], "d2": [{}]},
        "references": {"d1": ["NAME is good, call PHONE."], "d2": ["bye bye"]},
    }
    files = {f"db/{domain}_db.json": table for domain, table in rows.items()}
    files |= {f"scoring/dev/{name}.json": content for name, content in scoring.items()}
    files["dev_splits.json"] = {"part": ["d1"]}
    for name, content in files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return tmp_path / "data"


def write(folder: Path, content: Any) -> str:
    path = folder / "predictions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_json_is_one_object_on_stdout(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(corpus, PREDICTIONS)
    assert main([path, "--data-dir", str(corpus), "--split", "dev", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bleu"] == pytest.approx(100)
    assert (result["inform"], result["success"]) == (100, 100)
    assert (result["split"], result["dialogues"], result["missing"]) == ("dev", 1, 1)
    assert result == evaluate_file(path, corpus, "dev")


def test_table(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = {"d1": [{**PREDICTIONS["d1"][0], "state": {"restaurant": {"area": "north"}}}]}
    assert main([write(corpus, predictions), "--data-dir", str(corpus), "--split", "dev"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "dev: 1 dialogues, 1 turns (1 of the split not predicted)"
    assert any(line.split() == ["total", "100.00", "100.00", "100.00", "200.00"] for line in lines)
    assert any(line.split() == ["restaurant", "100.00", "100.00"] for line in lines)
    assert any(line.split() == ["joint_accuracy", "100.0000"] for line in lines)


def test_a_part_of_dev(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(corpus, {**PREDICTIONS, "d2": [{"response": "bye bye"}]})
    assert main([path, "--data-dir", str(corpus), "--split", "part"]) == 2
    assert "dialogue 'd2'" in capsys.readouterr().err
    assert main([path, "--data-dir", str(corpus), "--split", "part", "--subset", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == 0


def test_format_needs_no_split(corpus: Path) -> None:
    scores = evaluate_file(write(corpus, PREDICTIONS), corpus, "dev")
    del scores["split"], scores["missing"]
    assert format_scores(scores).startswith("1 dialogues, 1 turns\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"d1": [', "not valid JSON at line 1"),
        ("[]", "outermost value is a list"),
        ({"d9": []}, "dialogue 'd9'"),
        ({"d1": [{"response": 3}]}, "dialogue 'd1', turn 0"),
    ],
)
def test_broken_predictions(corpus: Path, capsys: pytest.CaptureFixture[str], content: Any, message: str) -> None:
    path = write(corpus, content)
    assert main([path, "--data-dir", str(corpus), "--split", "dev"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: {path}: ")
    assert message in output.err


def test_missing_files_are_named(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.json"), "--data-dir", str(corpus)]) == 2
    assert "none.json: cannot be read" in capsys.readouterr().err
    assert main([write(corpus, PREDICTIONS), "--data-dir", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    (corpus / "scoring/dev/goals.json").write_text('{"d1": ')
    assert main([write(corpus, PREDICTIONS), "--data-dir", str(corpus), "--split", "dev"]) == 2
    assert "goals.json: truncated JSON" in capsys.readouterr().err


def test_a_split_that_is_not_there(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([write(corpus, PREDICTIONS), "--data-dir", str(corpus), "--split", "test"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert "python -m morejax.evaluate" in output
    assert '"response"' in output


def test_as_a_module_without_a_traceback(corpus: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "morejax.evaluate",
        write(corpus, "{"),
        "--data-dir",
        str(corpus),
        "--split",
        "dev",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "predictions.json: not valid JSON" in ended.stderr


@pytest.mark.skipif("MOREJAX_MULTIWOZ_DIR" not in os.environ, reason="MOREJAX_MULTIWOZ_DIR is not set")
def test_gold_replies_derived_from_raw_files_and_from_scoring_data_agree(tmp_path: Path) -> None:
    root = Path(os.environ["MOREJAX_MULTIWOZ_DIR"])
    for name in ("MultiWOZ_2.2", "db", "goals.json", "booked_domains.json", "dev_splits.json"):
        (tmp_path / name).symlink_to(root / name)
    references = json.loads((root / "scoring/dev/references.json").read_text())
    names = {"PHONE": "[phone]", "NAME": "[name]", "TRAINID": "[trainid]", "REFERENCE": "[ref]", "ADDRESS": "[address]"}

    def reply(text: str) -> str:
        for placeholder, spelling in names.items():
            text = text.replace(placeholder, spelling)
        return text

    path = write(tmp_path, {i: [{"response": reply(text)} for text in texts] for i, texts in references.items()})
    derived = evaluate_file(path, tmp_path, "select", subset=True)
    assert derived == evaluate_file(path, root, "select", subset=True)
    assert derived["dialogues"] == 300
