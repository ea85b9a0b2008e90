"""The standard scorer: hand-made dialogues, and the official scores of published systems."""

from __future__ import annotations

import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.metrics import ScoringError, richness, state_tracking
from morejax.tasks.multiwoz.scorer import (
    ScoringData,
    derive_scoring_data,
    estimate_domains,
    has_scoring_data,
    load_scoring_data,
    score,
    score_dialogue,
)

real = pytest.mark.skipif("MOREJAX_MULTIWOZ_DIR" not in os.environ, reason="MOREJAX_MULTIWOZ_DIR is not set")

DATABASE = Database(
    {
        "restaurant": [
            {"id": "1", "name": "golden fork", "area": "north", "food": "thai"},
            {"id": "2", "name": "silver spoon", "area": "north", "food": "greek"},
            {"id": "3", "name": "iron knife", "area": "south", "food": "thai"},
        ],
        "attraction": [{"id": "7", "name": "big hall", "area": "north"}],
        "hotel": [{"id": "0", "name": "blue inn", "area": "north"}, {"id": "5", "name": "red inn", "area": "south"}],
        "train": [
            {"trainID": "TR1", "leaveAt": "09:00", "arriveBy": "10:00", "day": "monday"},
            {"trainID": "TR2", "leaveAt": "11:00", "arriveBy": "12:00", "day": "monday"},
        ],
    }
)


def goal(requestable: tuple[str, ...] = (), **informable: str) -> dict[str, Any]:
    return {"informable": informable, "requestable": list(requestable)}


def turns(*replies: str, domains: str | list[str] = "restaurant") -> list[Any]:
    active = [domains] if isinstance(domains, str) else domains
    return [{"response": reply, "active_domains": active} for reply in replies]


def rate(predictions: list[Any], goals: dict[str, Any], states: list[Any] | None, booked: Any = None) -> Any:
    return score_dialogue(predictions, goals, booked or [[]] * len(predictions), DATABASE, states)


NORTH = {"restaurant": {"area": "north"}}
NORTH_THAI = {"restaurant": {"area": "north", "food": "thai"}}


def test_offer_must_be_within_the_goal() -> None:
    wanted = {"restaurant": goal(area="north", food="thai")}
    assert rate(turns("how about [name] ?"), wanted, [NORTH_THAI]).inform
    assert not rate(turns("how about [name] ?"), wanted, [NORTH]).inform  # would also be the greek one
    assert not rate(turns("what food ?"), wanted, [NORTH_THAI]).inform  # nothing offered
    assert not rate(turns("how about [name] ?"), wanted, [{}]).inform  # no state of the domain
    assert not rate(turns("how about [name] ?", domains="hotel"), wanted, [NORTH_THAI]).inform


def test_a_narrower_offer_replaces_a_wider_one_and_not_the_reverse() -> None:
    wanted = {"restaurant": goal(area="north", food="thai")}
    assert rate(turns("[name]", "[name]"), wanted, [NORTH, NORTH_THAI]).inform
    # What was offered is still part of the wider result: the offer stands.
    assert rate(turns("[name]", "[name]"), wanted, [NORTH_THAI, NORTH]).inform
    other = {"restaurant": {"area": "south"}}
    assert not rate(turns("[name]", "[name]"), wanted, [NORTH_THAI, other]).inform
    # An empty result replaces an offer, and is then replaced by anything.
    nothing = {"restaurant": {"area": "west"}}
    assert not rate(turns("[name]", "[name]"), wanted, [NORTH_THAI, nothing]).inform
    assert rate(turns("[name]", "[name]", "[name]"), wanted, [NORTH_THAI, nothing, NORTH_THAI]).inform


def test_domains_that_match_without_an_offer() -> None:
    for domain in ("taxi", "police", "hospital"):
        assert rate(turns("ok"), {domain: goal()}, [{}]).inform
    assert rate(turns("ok"), {"restaurant": goal(name="golden fork")}, [{}]).inform
    assert not rate(turns("ok"), {"bus": goal()}, [{}]).inform


def test_trains() -> None:
    wanted = {"train": goal(day="monday", leave="10:00")}
    late, any_time = {"train": {"day": "monday", "leave": "10:30"}}, {"train": {"day": "monday"}}
    assert rate(turns("ok", domains="train"), wanted, [any_time]).inform  # no number asked for, none offered
    assert rate(turns("[trainid]", domains="train"), wanted, [late]).inform
    assert not rate(turns("[trainid]", domains="train"), wanted, [any_time]).inform
    assert rate(turns("[name]", domains="train"), wanted, [any_time]).inform  # a name offers no train
    number = {"train": goal(("TRAINID",), day="monday", leave="10:00")}
    assert not rate(turns("ok", domains="train"), number, [late]).inform


def test_success_needs_every_request_of_every_domain() -> None:
    wanted = {"restaurant": goal(("PHONE", "POST"), area="north", food="thai"), "taxi": goal(("PHONE",))}
    states = [NORTH_THAI, NORTH_THAI, NORTH_THAI]
    told = turns("[name] , [phone]", "[restaurant_postcode]") + turns("[taxi_phone]", domains="taxi")
    result = rate(told, wanted, states)
    assert result.inform
    assert result.success
    untold = turns("[name] , [phone]", "[restaurant_postcode]", "[taxi_phone]")
    result = rate(untold, wanted, states)  # the taxi's phone is told in a turn about the restaurant
    assert result.inform
    assert not result.success
    assert result.domains_success == {"restaurant": True, "taxi": False}


def test_without_inform_no_domain_succeeds() -> None:
    wanted = {"restaurant": goal(area="north"), "taxi": goal()}
    result = rate(turns("ok"), wanted, [NORTH])
    assert result.domains_inform == {"restaurant": False, "taxi": True}
    assert result.domains_success == {"restaurant": False, "taxi": False}
    assert result.domains_provided == {"restaurant": True, "taxi": True}


def test_reference_counts_only_after_booking() -> None:
    wanted = {"restaurant": goal(("REFERENCE",), area="north")}
    told = turns("[name] [ref]", "ok")
    assert not rate(told, wanted, [NORTH, NORTH], [[], ["restaurant"]]).success
    assert not rate(told, wanted, [NORTH, NORTH], [["hotel"], ["hotel"]]).success
    assert rate(told, wanted, [NORTH, NORTH], [["restaurant"], ["restaurant"]]).success


def test_turns_say_what_is_credited() -> None:
    wanted = {"restaurant": goal(("PHONE",), area="north"), "train": goal()}
    told = turns("[name] [phone] [area] [ref]") + turns("[trainid] [name]", domains=["train", "hotel"])
    first, second = rate(told, wanted, [NORTH, NORTH]).turns
    assert first.domains == ("restaurant",)
    assert first.mentioned == {"NAME", "PHONE"}
    assert first.offered == ("restaurant",)
    assert second.domains == ("train",)
    assert second.mentioned == {"TRAINID"}
    assert second.offered == ("train",)


def test_predicted_states_are_normalised_and_win() -> None:
    wanted = {"train": goal(("TRAINID",), day="monday", leave="10:00")}
    predictions = [
        {"response": "[train_id]", "state": {"train": {"leaveAt": "by 10:30 am"}}, "active_domains": ["train"]}
    ]
    assert rate(predictions, wanted, [{}]).inform
    partly = [*predictions, {"response": "bye", "active_domains": []}]
    assert not rate(partly, wanted, [{}, {}]).inform  # a turn without a state: gold states for all
    with pytest.raises(ScoringError, match="no gold states"):
        rate(partly, wanted, None)
    with pytest.raises(ScoringError, match="'name' has the value 3"):
        rate([{"response": "", "state": {"hotel": {"name": 3}}}], {}, None)


def test_scoring_leaves_its_arguments_alone() -> None:
    predictions = [{"response": "[Name]s", "state": {"restaurant": {"Price Range": "x"}}}]
    before = copy.deepcopy(predictions)
    rate(predictions, {"restaurant": goal()}, None)
    assert predictions == before


def test_estimated_domains() -> None:
    hotel, train = {"area": "north"}, {"day": "monday", "leave": "09:00"}
    assert estimate_domains([{}, {"hotel": hotel}, {"hotel": hotel}]) == [(), ("hotel",), ("hotel",)]
    # Of two new domains the one with more slots; if then nothing changes, the other one.
    both = {"hotel": hotel, "train": train}
    assert estimate_domains([both, both, both]) == [("train",), ("hotel",), ("hotel",)]
    # The current domain stays as long as it changes.
    more = {"hotel": {**hotel, "stars": "4"}, "train": train}
    assert estimate_domains([{"hotel": hotel}, more]) == [("hotel",), ("hotel",)]
    # A slot that goes is no change.
    assert estimate_domains([both, {"hotel": {}, "train": train}]) == [("train",), ("hotel",)]
    assert estimate_domains([{"hotel": hotel}, {"train": train}, {"hotel": hotel}]) == [
        ("hotel",),
        ("train",),
        ("hotel",),
    ]


def test_richness_by_hand() -> None:
    # words: a b a / a -> p(a) = 3/4; bigrams (a,b) and (b,a), each 1/4 of 4 words, given a: 1/3, given b: 1
    result = richness(["a b a", "a"])
    assert result["entropy"] == pytest.approx(0.8112781)
    assert result["cond_entropy"] == pytest.approx(0.25 * 1.5849625)
    assert result["avg_lengths"] == 2
    assert result["msttr"] == 0.5
    assert (result["num_unigrams"], result["num_bigrams"], result["num_trigrams"]) == (2, 2, 1)


def test_state_tracking_by_hand() -> None:
    gold = {"d": [{"hotel": {"name": "blue inn", "area": "north"}}, {}, {"taxi": {"leave": "09:00"}}]}
    predicted = {
        "d": [{"hotel": {"name": "the blue inn", "area": "south"}}, {"hotel": {}}, {"taxi": {"leave": "09:00"}}]
    }
    result = state_tracking(predicted, gold)
    # 2 of 3 values agree; the third is a false positive and a false negative; an empty domain is none.
    assert result["joint_accuracy"] == pytest.approx(200 / 3)
    assert result["slot_precision"] == result["slot_recall"] == pytest.approx(2 / 3)
    assert result["slot_f1"] == pytest.approx(200 / 3)
    with pytest.raises(ScoringError, match=r"dialogue 'd', turn 0.*4"):
        state_tracking({"d": [{"hotel": {"name": 4}}]}, gold)


def data() -> ScoringData:
    return ScoringData(
        goals={"a": {"restaurant": goal(area="north")}, "b": {"taxi": goal(("PHONE",))}},
        booked={"a": [[]], "b": [[], []]},
        gold_states={"a": [NORTH], "b": [{}, {"taxi": {"leave": "09:00"}}]},
        references={"a": ["how about the lovely NAME?"], "b": ["when do you want to go?", "call PHONE."]},
    )


def replies(**dialogues: list[str]) -> dict[str, Any]:
    return {key: [{"response": text} for text in texts] for key, texts in dialogues.items()}


def test_score_of_two_dialogues() -> None:
    predictions = replies(
        a=["How about the lovely [restaurant_name] ?"], b=["When do you want to go ?", "Call [phone] ."]
    )
    result = score(predictions, data(), DATABASE)
    assert result["bleu"] == pytest.approx(100)
    assert result["inform"] == result["success"] == 100
    assert result["combined"] == pytest.approx(200)
    assert result["per_domain"]["success"] == {"total": 100, "restaurant": 100, "taxi": 100}
    assert result["dst"] is None
    assert (result["dialogues"], result["turns"]) == (2, 3)


def test_only_predicted_dialogues_count_and_turns_may_be_fewer() -> None:
    result = score(replies(b=["when do you want to go?"]), data(), DATABASE)
    assert result["bleu"] == pytest.approx(100)
    assert (result["inform"], result["success"]) == (100, 0)
    assert result["per_domain"]["inform"] == {"total": 100, "taxi": 100}
    assert (result["dialogues"], result["turns"]) == (1, 1)


def test_rates_are_of_dialogues_with_the_domain() -> None:
    result = score(replies(a=["no idea"], b=["x", "[phone]"]), data(), DATABASE)
    assert result["per_domain"]["inform"] == {"total": 50, "restaurant": 0, "taxi": 100}
    assert result["per_domain"]["success"] == {"total": 50, "restaurant": 0, "taxi": 100}


def test_states_are_scored_if_all_are_there() -> None:
    predictions = replies(a=["[name]"])
    predictions["a"][0]["state"] = {"restaurant": {"Area": "north"}}
    result = score(predictions, data(), DATABASE)
    assert result["dst"]["joint_accuracy"] == pytest.approx(100)
    assert score(predictions, data(), DATABASE, with_dst=False)["dst"] is None
    with pytest.raises(ScoringError, match="state tracking"):
        score(replies(a=["x"]), data(), DATABASE, with_dst=True)


def test_unknown_placeholders_are_counted_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    score(replies(a=["[foo] [foo] [bar]"]), data(), DATABASE)
    assert "[foo] (2), [bar] (1)" in caplog.text


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({"A.json": [{"response": "x"}]}, r"dialogue 'A.json' is not among the 2 .* lower-case ids without .json"),
        (replies(a=["x", "y"]), "dialogue 'a': 2 turns predicted, but it has 1"),
        ({"a": [{"text": "x"}]}, "dialogue 'a', turn 0: \"response\" is None"),
        ({"a": ["x"]}, "dialogue 'a', turn 0: found text"),
        ({"a": {"response": "x"}}, "dialogue 'a': found an object"),
        ({"a": [{"response": "x", "active_domains": None}]}, '"active_domains" is None'),
        ({"a": [{"response": "x", "state": None}]}, "dialogue 'a': the state is None"),
        ({"a": [{"response": "x", "state": {"train": {"leave": "a:1 pm"}}}]}, "dialogue 'a': time 'a:1 pm'"),
        ({"a": [{"response": "[name]", "state": {"restaurant": {"area": ["x"]}}}]}, "dialogue 'a': slot 'area'"),
        ({}, "no turn is predicted"),
        ({"a": []}, "no turn is predicted"),
        ([], "predictions are a list"),
    ],
)
def test_what_the_standard_cannot_score(predictions: Any, message: str) -> None:
    with pytest.raises(ScoringError, match=message):
        score(predictions, data(), DATABASE)


def test_scoring_data_of_some_dialogues() -> None:
    assert list(data().only(["b"]).goals) == ["b"]
    with pytest.raises(ScoringError, match="'c'"):
        data().only(["c"])


def test_missing_scoring_data(tmp_path: Path) -> None:
    assert not has_scoring_data(tmp_path, "dev")
    with pytest.raises(ScoringError, match="no such folder"):
        load_scoring_data(tmp_path, "dev")


# The real corpus


@pytest.fixture(scope="module")
def root() -> Path:
    return Path(os.environ["MOREJAX_MULTIWOZ_DIR"])


@pytest.fixture(scope="module")
def real_database(root: Path) -> Database:
    return Database.load(root)


@real
@pytest.mark.parametrize("system", ["marco", "damd", "augpt"])
def test_official_scores(root: Path, real_database: Database, system: str) -> None:
    official = json.loads((root / "published/official_scores.json").read_text())[system]
    predictions = json.loads((root / f"published/{system}.json").read_text())
    references = load_scoring_data(root, "test")
    started = time.perf_counter()
    result = score(predictions, references, real_database)
    assert time.perf_counter() - started < 10
    assert result["per_domain"] == official["per_domain"]
    for key in ("inform", "success", "dialogues"):
        assert result[key] == official[key]
    assert result["bleu"] == pytest.approx(official["bleu"], abs=1e-6)
    assert result["richness"] == pytest.approx(official["richness"], rel=1e-12)
    if official["dst"] is None:
        assert result["dst"] is None
    else:
        assert result["dst"] == pytest.approx(official["dst"], rel=1e-9)


@real
def test_parts_of_dev_are_cut_out(root: Path) -> None:
    whole, part = load_scoring_data(root, "dev"), load_scoring_data(root, "select")
    assert len(whole.goals) == 1000
    assert len(part.goals) == 300
    assert all(part.references[i] == whole.references[i] for i in part.goals)


@real
def test_scoring_data_derived_from_the_corpus_are_the_same(root: Path) -> None:
    from morejax.tasks.multiwoz.reader import read_corpus

    derived, given = derive_scoring_data(read_corpus(root, "dev"), "dev"), load_scoring_data(root, "dev")
    assert derived.goals == given.goals
    assert derived.references == given.references
    assert derived.gold_states == given.gold_states
    assert {i: [list(b) for b in turns] for i, turns in derived.booked.items()} == given.booked


@real
def test_one_dialogue_is_fast_once_warm(root: Path, real_database: Database) -> None:
    references = load_scoring_data(root, "test")
    predictions = json.loads((root / "published/marco.json").read_text())

    def run() -> float:
        started = time.perf_counter()
        for i, dialogue in predictions.items():
            args = (references.goals[i], references.booked[i], real_database, references.gold_states[i])
            score_dialogue(dialogue, *args)
        return (time.perf_counter() - started) / len(predictions)

    assert min(run() for _ in range(4)) < 3e-4  # about 4e-5 on an idle core
