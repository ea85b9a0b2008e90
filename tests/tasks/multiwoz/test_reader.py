"""The reader on a hand-written corpus, on broken copies of it, and on the real dev set."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from morejax.tasks.multiwoz.errors import CorpusError
from morejax.tasks.multiwoz.normalise import normalise_response
from morejax.tasks.multiwoz.reader import read_corpus
from morejax.tasks.multiwoz.records import Act, Turn

Edit = Callable[[Path, Callable[[Any], Any]], None]
TRAIN, DEV = "MultiWOZ_2.2/train/dialogues_001.json", "MultiWOZ_2.2/dev/dialogues_001.json"


def test_turns_goal_and_names_of_a_dialogue(tiny_root: Path) -> None:
    corpus = read_corpus(tiny_root)
    first = corpus.splits["dev"][0]
    assert (corpus.name, first.id, first.split) == ("multiwoz-2.2", "dv01", "dev")
    assert first.goal == {
        "hotel": {"informable": {"area": "west"}, "requestable": ["REFERENCE"]},
        "train": {"informable": {}, "requestable": []},
    }
    assert first.turns == (
        Turn(
            index=0,
            user="A place to sleep in the west please.",
            response="Try The Heron. Anything else?",
            delex="try [name]. anything else?",
            state={"hotel": {"area": "west"}},
            requested=(),
            acts=(Act("hotel", "recommend", ("name",)), Act("general", "reqmore", ())),
            booked=(),
        ),
        Turn(
            index=1,
            user="Two nights there, and a train around nine.",
            response="Booked, the number is Q7.",
            delex="booked, the number is [reference].",
            state={"hotel": {"area": "west", "bookstay": "2"}, "train": {"leave": "09:05"}},
            requested=("hotel-ref",),
            acts=(Act("booking", "book", ("ref",)),),
            booked=("hotel",),
        ),
    )


def test_splits_and_parts(tiny_root: Path) -> None:
    corpus = read_corpus(tiny_root)
    assert {name: [d.id for d in dialogues] for name, dialogues in corpus.splits.items()} == {
        "train": ["tr01", "tr02"],
        "dev": ["dv01", "dv02"],
        "part": ["dv02"],
    }
    assert [d.id for d in corpus.dialogues("train+part")] == ["tr01", "tr02", "dv02"]
    assert list(read_corpus(tiny_root, "part+train").splits) == ["part", "train"]
    assert list(read_corpus(tiny_root, ["part"]).splits) == ["part"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("test", "no split 'test'; .* dev, part, train"),
        ("dev+part", "'dv02' is in more than one"),
        ("dev++part", "joined by"),
    ],
)
def test_wrong_split_names(tiny_root: Path, asked: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        read_corpus(tiny_root).dialogues(asked)


def test_unknown_split_is_refused_before_reading(tiny_root: Path) -> None:
    with pytest.raises(CorpusError, match=r"no split 'gold', expected one of train, dev, part"):
        read_corpus(tiny_root, "train+gold")


def test_name_in_the_marker_file(tiny_root: Path) -> None:
    (tiny_root / "corpus.json").write_text('{"name": "embedded"}')
    assert read_corpus(tiny_root, "dev").name == "embedded"
    (tiny_root / "corpus.json").write_text('{"title": "embedded"}')
    with pytest.raises(CorpusError, match=r"corpus\.json: found name None"):
        read_corpus(tiny_root, "dev")


def test_dialogues_folder_itself_with_databases_two_folders_up(tiny_root: Path, tmp_path: Path) -> None:
    expected = read_corpus(tiny_root, "train").splits
    release = tmp_path / "release"
    (release / "data").mkdir(parents=True)
    shutil.move(tiny_root / "MultiWOZ_2.2", release / "data")
    shutil.move(tiny_root / "db", release)
    for name in ("goals.json", "booked_domains.json"):
        shutil.copy(tiny_root / name, release)
        shutil.copy(tiny_root / name, release / "data" / "MultiWOZ_2.2")
    assert read_corpus(release, "train").splits == expected
    assert read_corpus(release / "data" / "MultiWOZ_2.2", "train").splits == expected


def test_original_ids_in_goals_are_accepted(tiny_root: Path, edit_json: Edit) -> None:
    expected = read_corpus(tiny_root).splits
    edit_json(tiny_root / "goals.json", lambda goals: {f"{key.upper()}.json": goal for key, goal in goals.items()})
    assert read_corpus(tiny_root).splits == expected


@pytest.mark.parametrize(
    "missing",
    [
        "goals.json",
        "booked_domains.json",
        "MultiWOZ_2.2/schema.json",
        "MultiWOZ_2.2/dialog_acts.json",
        "db/train_db.json",
    ],
)
def test_missing_file_is_named_with_the_download_command(tiny_root: Path, missing: str) -> None:
    (tiny_root / missing).unlink()
    with pytest.raises(CorpusError) as error:
        read_corpus(tiny_root)
    assert str(tiny_root / missing) in str(error.value)
    assert "morejax.tasks.multiwoz.download" in str(error.value)


@pytest.mark.parametrize("missing", ["", "MultiWOZ_2.2", "db"])
def test_missing_folder_is_named(tiny_root: Path, missing: str) -> None:
    shutil.rmtree(tiny_root / missing)
    with pytest.raises(CorpusError, match=r"(?s)" + missing + ".*morejax.tasks.multiwoz.download"):
        read_corpus(tiny_root)


def test_truncated_json_is_named_with_its_position(tiny_root: Path) -> None:
    content = (tiny_root / TRAIN).read_text()
    (tiny_root / TRAIN).write_text(content[:300])
    with pytest.raises(CorpusError, match=r"train/dialogues_001\.json: truncated JSON, ends at line 1 column \d+"):
        read_corpus(tiny_root)


def test_invalid_json_is_named_with_its_position(tiny_root: Path) -> None:
    content = (tiny_root / TRAIN).read_text()
    (tiny_root / TRAIN).write_text(content[:100] + "}" + content[100:])
    with pytest.raises(CorpusError, match=r"train/dialogues_001\.json: invalid JSON at line 1 column 101"):
        read_corpus(tiny_root)


def test_wrong_outermost_type(tiny_root: Path) -> None:
    (tiny_root / "goals.json").write_text("[]")
    with pytest.raises(CorpusError, match=r"goals\.json: found a JSON list outermost, expected a dict"):
        read_corpus(tiny_root)


def first_state(dialogues: list[dict[str, Any]]) -> dict[str, Any]:
    return dialogues[0]["turns"][0]["frames"][0]["state"]


BROKEN: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "unknown slot": (
        TRAIN,
        lambda d: first_state(d)["slot_values"].update({"hotel-garden": ["yes"]}),
        r"dialogues_001\.json: dialogue TR01\.json, turn 0: found unknown slot 'hotel-garden'",
    ),
    "no value": (
        TRAIN,
        lambda d: first_state(d)["slot_values"].update({"hotel-area": []}),
        r"TR01\.json, turn 0: found hotel-area = \[\], expected a non-empty list",
    ),
    "unreadable time": (
        TRAIN,
        lambda d: first_state(d)["slot_values"].update({"train-leaveat": ["x:30 pm"]}),
        r"TR01\.json, turn 0: time 'x:30 pm'",
    ),
    "no state": (
        TRAIN,
        lambda d: d[0]["turns"][2]["frames"][0].pop("state") and None,
        r"TR01\.json, turn 2: found 'state' = None, expected a dict",
    ),
    "two user turns": (
        TRAIN,
        lambda d: d[0]["turns"][1].update(speaker="USER"),
        r"TR01\.json, turn 1: found speaker 'USER', expected SYSTEM",
    ),
    "unanswered": (
        TRAIN,
        lambda d: d[0]["turns"].pop() and None,
        r"TR01\.json: found 3 turns, expected pairs",
    ),
    "no turns": (TRAIN, lambda d: d[0].update(turns=[]), r"TR01\.json: found 0 turns"),
    "same id twice": (
        DEV,
        lambda d: d + d[:1],
        r"dialogues_001\.json: dialogue DV01\.json is also in .*dev/",
    ),
    "goal missing in dev": (
        "goals.json",
        lambda g: g.pop("dv02") and None,
        r"DV02\.json: found no goal in .*goals\.json",
    ),
    "goal empty in dev": ("goals.json", lambda g: g.update(dv02={}), r"DV02\.json: found an empty goal"),
    "unknown goal domain": (
        "goals.json",
        lambda g: g["tr01"].update(spa={}),
        r"goals\.json: dialogue tr01: found unknown domain 'spa'",
    ),
    "constraint list": (
        "goals.json",
        lambda g: g["tr02"]["hotel"].update(informable=["area"]),
        r"goals\.json: dialogue tr02, hotel: found 'informable' = \['area'\], expected a dict",
    ),
    "booked too short": (
        "booked_domains.json",
        lambda b: b.update(dv01=[[]]),
        r"DV01\.json: found 1 entries in .*booked_domains\.json, expected one a system turn: 2",
    ),
    "booked domain": (
        "booked_domains.json",
        lambda b: b.update(tr01=[[], ["spa"]]),
        r"booked_domains\.json: dialogue tr01, system turn 1: found \['spa'\]",
    ),
    "no acts of a dialogue": (
        "MultiWOZ_2.2/dialog_acts.json",
        lambda a: a.pop("TR02.json") and None,
        r"dialogue TR02\.json: not in .*dialog_acts\.json",
    ),
    "span form": (
        "MultiWOZ_2.2/dialog_acts.json",
        lambda a: a["TR02.json"]["1"]["span_info"].append(["Hotel-Inform", "area", "west", "4", "8"]),
        r"dialog_acts\.json: dialogue TR02\.json, turn 1: found span .*expected \[act, slot, value, start,",
    ),
    "act form": (
        "MultiWOZ_2.2/dialog_acts.json",
        lambda a: a["TR02.json"]["1"]["dialog_act"].update(Recommend=[]),
        r"dialogue TR02\.json, turn 1: found act 'Recommend'",
    ),
    "part of others": ("dev_splits.json", lambda s: s["part"].append("tr01"), r"'part' names 1 .*'tr01'"),
    "empty part": ("dev_splits.json", lambda s: s.update(rest=[]), r"_splits\.json: split 'rest' is empty"),
    "part named dev": ("dev_splits.json", lambda s: s.update(dev=["dv01"]), r"found a part named 'dev'"),
    "empty split": (DEV, lambda d: [], r"dev: split 'dev' is empty \(its files hold no dialogue\)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_corpus_is_an_error_that_says_where(tiny_root: Path, edit_json: Edit, case: str) -> None:
    name, change, message = BROKEN[case]
    edit_json(tiny_root / name, change)
    with pytest.raises(CorpusError, match=message):
        read_corpus(tiny_root)


def test_split_folder_without_files_is_an_error(tiny_root: Path) -> None:
    (tiny_root / "MultiWOZ_2.2" / "test").mkdir()
    with pytest.raises(CorpusError, match=r"MultiWOZ_2\.2/test: split 'test' is empty, expected files"):
        read_corpus(tiny_root)


def test_unscorable_train_dialogues_are_left_out_counted_and_logged(
    tiny_root: Path, edit_json: Edit, caplog: pytest.LogCaptureFixture
) -> None:
    edit_json(tiny_root / "goals.json", lambda goals: goals.update(tr01={}))
    with caplog.at_level(logging.WARNING):
        corpus = read_corpus(tiny_root)
    assert [dialogue.id for dialogue in corpus.splits["train"]] == ["tr02"]
    assert corpus.skipped == {"train dialogues left out: no goal": 1}
    assert "1 train dialogues left out: no goal" in caplog.text
    edit_json(tiny_root / "booked_domains.json", lambda booked: booked.pop("tr02") and None)
    with pytest.raises(CorpusError, match=r"split 'train' is empty \(1 .*no goal, 1 .*no booked domains\)"):
        read_corpus(tiny_root)


def test_tolerated_gaps_are_counted(tiny_root: Path, edit_json: Edit) -> None:
    def acts(table: Any) -> None:
        table["DV01.json"].pop("3")
        table["DV02.json"]["3"]["dialog_act"] = {}
        table["TR01.json"]["1"]["span_info"][0][4] = 99

    edit_json(tiny_root / "MultiWOZ_2.2" / "dialog_acts.json", acts)
    edit_json(tiny_root / TRAIN, lambda d: first_state(d)["requested_slots"].append("hotel-garden"))
    corpus = read_corpus(tiny_root)
    assert corpus.skipped == {
        "train requested slots outside the schema (dropped)": 1,
        "train spans that leave their reply (cut)": 1,
        "dev system turns without acts (kept)": 2,
    }
    assert corpus.splits["dev"][0].turns[1].delex == "booked, the number is q7."
    assert corpus.splits["train"][0].turns[0].delex == "try [name]"


def test_database_and_schema(tiny_root: Path) -> None:
    corpus = read_corpus(tiny_root, "dev")
    assert corpus.schema.has_slot("hotel-area")
    assert not corpus.schema.has_slot("hotel-food")
    assert not corpus.schema.has_slot("spa-area")
    assert [row["name"] for row in corpus.database.query("hotel", {"area": "west"})] == ["the heron"]


def test_real_dev_gives_what_the_standard_reader_derives(real_root: Path) -> None:
    dev = {dialogue.id: dialogue for dialogue in read_corpus(real_root, "dev").splits["dev"]}
    derived = {
        "references": {key: [normalise_response(turn.delex) for turn in d.turns] for key, d in dev.items()},
        "gold_states": {key: [turn.state for turn in d.turns] for key, d in dev.items()},
        "goals": {key: d.goal for key, d in dev.items()},
        "booked_domains": {key: [list(turn.booked) for turn in d.turns] for key, d in dev.items()},
    }
    for name, table in derived.items():
        published = json.loads((real_root / "scoring" / "dev" / f"{name}.json").read_text())
        assert len(table) == 1000
        assert table == published, name
