"""The embedded corpus: reproducible, well annotated, scorable like MultiWOZ 2.2, and not copied from it."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rapidfuzz import fuzz

from morejax.tasks.multiwoz.embedded import (
    build_world,
    embedded_root,
    generate,
    generator,
    system_wording,
    user_wording,
    write_embedded,
)
from morejax.tasks.multiwoz.embedded.__main__ import main
from morejax.tasks.multiwoz.embedded.entities import FOODS, STREETS
from morejax.tasks.multiwoz.embedded.phrase import ALTERNATIVES, Speech, fill, plain, realise
from morejax.tasks.multiwoz.embedded.wishes import Wish, refused
from morejax.tasks.multiwoz.normalise import canonical_food, canonical_name, normalise_response
from morejax.tasks.multiwoz.reader import read_corpus
from morejax.tasks.multiwoz.records import Corpus
from morejax.tasks.multiwoz.scorer import DialogueScore, score_dialogue

SIZES = {"train": 1200, "dev": 150, "test": 150}
REQUESTED = {"PHONE": "phone", "ADDRESS": "address", "POST": "postcode", "TRAINID": "trainid", "REFERENCE": "ref"}
PER_SLOT_TABLES = ("FRAGMENTS", "TAXI_FRAGMENTS", "NOUNS", "ATTRIBUTES", "TOPICS", "SURFACES", "BEFORE", "AFTER")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedded(tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="module")
def corpus(root: Path) -> Corpus:
    return read_corpus(root)


@pytest.fixture(scope="module")
def raw(root: Path) -> list[dict[str, Any]]:
    files = sorted((root / "MultiWOZ_2.2").glob("*/dialogues_*.json"))
    return [dialogue for file in files for dialogue in json.loads(file.read_text())]


@pytest.fixture(scope="module")
def acts(root: Path) -> dict[str, Any]:
    return json.loads((root / "MultiWOZ_2.2" / "dialog_acts.json").read_text())


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def human_scores(corpus: Corpus, split: str) -> list[DialogueScore]:
    return [
        score_dialogue(
            [{"response": turn.delex, "state": turn.state} for turn in dialogue.turns],
            dialogue.goal,
            [turn.booked for turn in dialogue.turns],
            corpus.database,
        )
        for dialogue in corpus.splits[split]
    ]


# Phrases


def test_fill_and_realise_annotate_values_at_their_place():
    phrase = fill(
        "we have a(n) {food} {noun}.", {"food": "Italian", "noun": plain("bistro")}, "X-Inform", random.Random(0)
    )
    spoken = realise(phrase, [("X-Request", "area", "?")])
    assert spoken.text == "We have an Italian bistro."
    assert [(span.act, span.slot, span.value, span.start, span.end) for span in spoken.spans] == [
        ("X-Inform", "food", "Italian", 11, 18)
    ]
    assert spoken.dialog_act() == {"X-Inform": [["food", "Italian"]], "X-Request": [["area", "?"]]}


def test_realise_contracts_and_lowers_without_losing_the_span():
    phrase = fill("I am after {name}. it is near", {"name": "That Is Old"}, "X-Inform", random.Random(0))
    spoken = realise(phrase, contract=True, lower=True)
    assert spoken.text == "i'm after that is old. it's near"
    assert spoken.text[spoken.spans[0].start : spoken.spans[0].end] == spoken.spans[0].value == "that is old"


def test_article_follows_the_letter_even_across_pieces():
    rng = random.Random(0)
    assert realise(fill("a(n) eatery or a(n) {food} bar", {"food": "Thai"}, "X", rng)).text == "An eatery or a Thai bar"


def test_speeches_add_up_as_sentences():
    both = Speech(plain("yes"), (("a", "b", "?"),)) + Speech(plain("no?"), (("c", "d", "?"),))
    assert realise(both.phrase).text == "Yes. No?"
    assert both.acts == (("a", "b", "?"), ("c", "d", "?"))
    assert realise((Speech(plain("yes")) + Speech(())).phrase).text == "Yes"


@pytest.mark.parametrize("module", [user_wording, system_wording])
def test_every_act_can_be_said_in_at_least_eight_ways(module: Any):
    for name, table in vars(module).items():
        if name.isupper() and name not in PER_SLOT_TABLES and isinstance(table, tuple):
            ways = sum(_expansions(template) for template in table)
            assert ways >= (5 if name in ("ANSWER_SUBJECT", "NAMED") else 8), name
    leads = len(set(system_wording.ANSWER_LEAD))
    for slot, table in system_wording.ANSWER.items():
        assert leads * sum(map(_expansions, table)) >= 8, slot
    leads = len(set(system_wording.OPTIONAL_LEAD))
    for slot, table in system_wording.REQUEST.items():
        assert leads * sum(map(_expansions, table)) >= 8, slot


def _expansions(template: str) -> int:
    ways = 1
    for alternatives in ALTERNATIVES.findall(template):
        ways *= alternatives.count("|") + 1
    return ways


# Wishes


def test_goal_of_a_wish_is_in_scorer_form():
    wish = Wish("train", {"day": "monday", "leaveat": "10:15"}, ("trainid", "price"), booking={"bookpeople": "2"})
    assert wish.goal() == {
        "informable": {"day": "monday", "leave": "10:15"},
        "requestable": ["TRAINID", "REFERENCE"],
    }


@pytest.mark.parametrize(
    ("booking", "expected"),
    [
        ({"bookday": "friday", "booktime": "19:30", "bookpeople": "2"}, True),
        ({"bookday": "monday", "booktime": "19:30", "bookpeople": "2"}, False),
        ({"bookday": "friday", "booktime": "18:30", "bookpeople": "2"}, False),
        ({"bookday": "friday", "bookstay": "5", "bookpeople": "2"}, True),
        ({"bookday": "friday", "bookstay": "4", "bookpeople": "8"}, False),
        ({}, False),
    ],
)
def test_bookings_are_refused_by_a_rule_that_can_be_learnt(booking: dict[str, str], expected: bool):
    assert refused(booking) is expected


# Files


def test_same_arguments_give_the_same_bytes_whatever_the_hash_seed(tmp_path: Path):
    here = files_of(write_embedded(tmp_path / "here", dialogues=40, seed=3))
    command = [sys.executable, "-m", "morejax.tasks.multiwoz.embedded", "--to", str(tmp_path / "there")]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([*command, "--dialogues", "40", "--seed", "3"], check=True, env=environment, capture_output=True)
    assert files_of(tmp_path / "there") == here


def test_another_seed_changes_the_dialogues_but_not_the_town(tmp_path: Path):
    one = files_of(write_embedded(tmp_path / "one", dialogues=20, seed=0))
    two = files_of(write_embedded(tmp_path / "two", dialogues=20, seed=1))
    changed = {name for name in one if one[name] != two[name]}
    assert "MultiWOZ_2.2/train/dialogues_001.json" in changed
    assert not any(name.startswith("db/") or name.endswith("schema.json") for name in changed)


def test_corpus_json_says_how_it_was_made(root: Path):
    facts = json.loads((root / "corpus.json").read_text())
    assert facts == {"name": "embedded", "generator_version": 1, "seed": 0, "dialogues": 1500}


def test_writer_refuses_a_folder_in_use_and_too_few_dialogues(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        write_embedded(tmp_path, dialogues=20)
    assert main(["--to", str(tmp_path / "new"), "--dialogues", "9"]) == 1
    assert "dialogues is 9; expected at least 10" in capsys.readouterr().err


def test_embedded_root_writes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MOREJAX_CACHE", str(tmp_path))
    first = embedded_root(dialogues=20)
    stamp = (first / "goals.json").stat().st_mtime_ns
    assert embedded_root(dialogues=20) == first
    assert (first / "goals.json").stat().st_mtime_ns == stamp
    assert embedded_root(tmp_path / "other", dialogues=20, seed=2).parent == tmp_path / "other"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# Annotation


def test_reader_gives_back_what_was_generated(corpus: Corpus):
    assert corpus.name == "embedded"
    assert {split: len(dialogues) for split, dialogues in corpus.splits.items()} == SIZES
    assert not corpus.skipped
    generated = generate(1500, 0)
    read = [dialogue for split in SIZES for dialogue in corpus.splits[split]]
    assert [dialogue.id for dialogue in read] == [each.identifier[:-5].lower() for each in generated]
    names = {"leaveat": "leave", "arriveby": "arrive"}
    for dialogue, made in zip(read, generated, strict=True):
        assert dialogue.goal == {wish.domain: wish.goal() for wish in made.wishes}
        for turn, exchange in zip(dialogue.turns, made.exchanges, strict=True):
            assert (turn.user, turn.response) == (exchange.user.text, exchange.system.text)
            assert set(turn.requested) == set(exchange.requested)
            assert turn.booked == exchange.booked
            expected = {
                domain: {names.get(slot, slot): value for slot, value in slots.items() if value != "dontcare"}
                for domain, slots in exchange.state.items()
            }
            assert turn.state == {domain: slots for domain, slots in expected.items() if slots}


def test_every_span_is_the_text_it_points_at(raw: list[dict[str, Any]], acts: dict[str, Any]):
    for dialogue in raw:
        for turn in dialogue["turns"]:
            text, end = turn["utterance"], 0
            annotation = acts[dialogue["dialogue_id"]][turn["turn_id"]]
            for act, slot, value, start, stop in annotation["span_info"]:
                assert start >= end
                assert text[start:stop] == value
                assert [slot, value] in annotation["dialog_act"][act]
                end = stop
            for frame in turn["frames"]:
                for slot in frame["slots"]:
                    assert text[slot["start"] : slot["exclusive_end"]] == slot["value"]


def test_names_and_numbers_in_replies_are_in_the_databases(corpus: Corpus, acts: dict[str, Any]):
    known = {
        slot: {str(record[slot]) for table in build_world().tables.values() for record in table if slot in record}
        for slot in ("name", "address", "postcode", "trainID")
    }
    said: Counter[str] = Counter()
    for turns in acts.values():
        for number, turn in turns.items():
            for act, slot, value, _, _ in turn["span_info"] if int(number) % 2 else ():
                column = "trainID" if slot == "trainid" else slot
                if column in known:
                    said[slot] += 1
                    assert (value if slot == "trainid" else value.lower()) in known[column], (act, slot, value)
    assert min(said[slot] for slot in ("name", "address", "postcode", "trainid")) > 100


def test_states_grow_and_end_at_the_goal(corpus: Corpus):
    for dialogue in corpus.dialogues("train+dev+test"):
        slots: set[tuple[str, str]] = set()
        for turn in dialogue.turns:
            now = {(domain, slot) for domain, values in turn.state.items() for slot in values}
            assert slots <= now
            slots = now
        for domain, goal in dialogue.goal.items():
            final = dialogue.turns[-1].state[domain]
            assert goal["informable"].items() <= final.items(), dialogue.id
            extra = set(final) - set(goal["informable"])
            assert all(slot == "name" or slot.startswith("book") for slot in extra), dialogue.id


def test_every_goal_can_be_met_and_is_asked_for(corpus: Corpus):
    for dialogue in corpus.dialogues("train+dev+test"):
        asked = {slot for turn in dialogue.turns for slot in turn.requested}
        for domain, goal in dialogue.goal.items():
            assert domain == "taxi" or corpus.database.count(domain, goal["informable"]) > 0, dialogue.id
            for request in goal["requestable"]:
                assert f"{domain}-{REQUESTED[request]}" in asked, dialogue.id
            if "REFERENCE" in goal["requestable"]:
                assert domain in dialogue.turns[-1].booked


def test_bookings_only_grow(corpus: Corpus):
    for dialogue in corpus.dialogues("train+dev+test"):
        booked: tuple[str, ...] = ()
        for turn in dialogue.turns:
            assert turn.booked[: len(booked)] == booked
            booked = turn.booked


def test_utterances_have_the_expected_shape(corpus: Corpus):
    turns = [turn for dialogue in corpus.dialogues("train+dev+test") for turn in dialogue.turns]
    assert {len(dialogue.turns) for dialogue in corpus.dialogues("train+dev+test")} == set(range(3, 10))
    for texts in ([turn.user for turn in turns], [turn.response for turn in turns]):
        lengths = [len(text.split()) for text in texts]
        assert min(lengths) >= 4
        assert sum(length > 20 for length in lengths) < 0.08 * len(lengths)
        assert not any(re.search(r"  | [.,?!]|[{}\[\]]|a\(n\)|\b[aA] [AEIaei]", text) for text in texts)
    vocabulary = {word for turn in turns for word in re.findall(r"[a-z']+", turn.delex)}
    assert len(vocabulary) >= 500
    assert all(normalise_response(turn.delex) for turn in turns)


def test_agents_need_help_in_train_more_than_in_dev_and_test(corpus: Corpus):
    success = {}
    for split in SIZES:
        scores = human_scores(corpus, split)
        success[split] = sum(score.success for score in scores) / len(scores)
        inform = sum(score.inform for score in scores) / len(scores)
        assert inform >= success[split]
        assert inform < 1
    assert 0.69 <= success["train"] <= 0.80
    assert 0.86 <= success["dev"] <= 0.96
    assert 0.86 <= success["test"] <= 0.96


def test_careful_agents_always_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generator, "HURRIED", dict.fromkeys(SIZES, 0.0))
    careful = read_corpus(write_embedded(tmp_path / "careful", dialogues=300))
    assert all(score.success for split in SIZES for score in human_scores(careful, split))


def test_hurried_agents_answer_two_of_three_things(corpus: Corpus):
    unified = {slot: name for name, slot in REQUESTED.items()}
    answered = []
    for dialogue in corpus.splits["train"]:
        for turn in dialogue.turns:
            asked = [unified[slot.split("-")[1]] for slot in turn.requested if slot.split("-")[1] in unified]
            if len(asked) == 3 and "REFERENCE" not in asked:
                answered.append(all(name in normalise_response(turn.delex) for name in asked))
    assert len(answered) > 40
    assert 0.3 < sum(answered) / len(answered) < 0.6


# The town


def test_names_are_told_apart_by_the_fuzzy_database():
    for table in build_world().tables.values():
        names = sorted({record["name"] for record in table if "name" in record})
        for index, name in enumerate(names):
            assert canonical_name(name) == name
            assert all(fuzz.partial_ratio(name, other) < 90 for other in names[:index]), name
    assert all(canonical_food(food) == food for food in FOODS)


def test_nothing_is_taken_from_multiwoz(corpus: Corpus):
    folder = os.environ.get("MOREJAX_MULTIWOZ_DIR")
    if not folder:
        pytest.skip("MOREJAX_MULTIWOZ_DIR is not set: the real corpus is not here to compare with")
    real = Path(folder)
    taken: dict[str, set[str]] = {column: set() for column in ("name", "address", "postcode", "phone")}
    for domain in ("restaurant", "hotel", "attraction"):
        for record in json.loads((real / "db" / f"{domain}_db.json").read_text()):
            for column, values in taken.items():
                values.add(record.get(column, "").lower())
    for domain in ("restaurant", "hotel", "attraction"):
        for record in build_world().tables[domain]:
            assert not [column for column, values in taken.items() if record[column] in values], record
    assert not any(street in address for street in STREETS for address in taken["address"])
    replies = {
        normalise_response(turn.delex)
        for dialogue in read_corpus(real, "dev").dialogues("dev")
        for turn in dialogue.turns
    }
    ours = {normalise_response(turn.delex) for turns in corpus.splits["dev"] for turn in turns.turns}
    assert not {reply for reply in ours & replies if len(reply.split()) > 5}
