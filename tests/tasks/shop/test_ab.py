"""The A/B test: coupled arms, intervals over days, shares of the oracle's lift, tables and figure."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from morejax.tasks.shop import ab_report
from morejax.tasks.shop.ab_metrics import METRICS
from morejax.tasks.shop.ab_test import Plan, Results, ab
from morejax.tasks.shop.agents import curt_agent, human_agent, oracle_agent, yes_agent
from morejax.tasks.shop.bootstrap import Estimate, day_sums, day_weights, interval, percentiles, replicates
from morejax.tasks.shop.ontology import FUNCTIONS
from morejax.tasks.shop.play import Outcomes

ARMS = {"human": human_agent(), "twin": human_agent(), "yes": yes_agent, "curt": curt_agent}


@cache
def results():
    return ab(ARMS, dialogues=210, keep=1)


# The bootstrap


def test_ratios_of_day_sums_by_hand():
    day = np.array([0, 0, 1, 2])
    above = day_sums(np.array([True, False, True, True]), day, 4)
    below = day_sums(np.ones(4), day, 4)
    assert above.tolist() == [1, 0 + 1, 1, 0]
    assert below.tolist() == [2, 1, 1, 0]
    weights = np.array([[1, 1, 1, 1], [4, 0, 0, 0], [0, 2, 2, 0], [0, 0, 0, 4]])
    found = replicates(above, below, weights)
    np.testing.assert_allclose(found[:3], [3 / 4, 1 / 2, 1.0])
    assert np.isnan(found[3])


def test_intervals_by_hand():
    drawn = np.array([0.0, 2.0, 0.0, 2.0])
    # Standard deviation 1; 14 days.
    half = student.ppf(0.975, 13) * np.sqrt(14 / 13)
    assert interval(1.0, drawn, 14) == pytest.approx((1.0, 1.0 - half, 1.0 + half))
    assert percentiles(0.5, np.arange(1001) / 1000) == pytest.approx((0.5, 0.025, 0.975))
    assert Estimate(1, 0.5, 2).clear
    assert Estimate(-1, -2, -0.5).clear
    assert not Estimate(1, -0.5, 2).clear


def test_weights_draw_whole_days():
    weights = day_weights(14, 500, seed=3)
    assert weights.shape == (500, 14)
    assert (weights.sum(axis=1) == 14).all()
    assert (weights == day_weights(14, 500, seed=3)).all()
    with pytest.raises(ValueError, match="days is 1, expected at least 2"):
        day_weights(1)


def test_intervals_cover_the_truth():
    """Two arms with a common effect of the day and a true difference of 0.05, 14 days of 60 users, 600 times."""
    rng, weights, covered = np.random.default_rng(0), day_weights(14, 400), 0
    day = np.repeat(np.arange(14), 60)
    ones = day_sums(np.ones(len(day)), day, 14)
    for _ in range(600):
        base = (0.3 + 0.1 * rng.standard_normal(14))[day]
        luck = rng.random(len(day))
        control, arm = (day_sums(luck < base + extra, day, 14) for extra in (0.0, 0.05))
        value = (arm.sum() - control.sum()) / len(day)
        drawn = replicates(arm, ones, weights) - replicates(control, ones, weights)
        estimate = interval(value, drawn, 14)
        covered += estimate.low <= 0.05 <= estimate.high
    # 95 % +- 4 standard errors of 600 draws.
    assert covered / 600 == pytest.approx(0.95, abs=0.036)


# The test


def test_an_arm_against_itself_differs_by_exactly_nothing():
    found = results()
    for setting in found.plan.settings:
        for metric in found.metrics():
            if np.isnan(found.value(setting, "human", metric).value):
                continue
            assert found.difference(setting, "twin", metric) == (0.0, 0.0, 0.0), metric
            assert found.value(setting, "twin", metric) == found.value(setting, "human", metric)


def test_arms_meet_the_same_users():
    found = results()
    for arms in found.outcomes.values():
        first = arms["human"]
        for outcomes in arms.values():
            for name in ("day", "credit", "eligible"):
                np.testing.assert_array_equal(getattr(outcomes, name), getattr(first, name))
    days = found.outcomes["patient"]["human"].day
    np.testing.assert_array_equal(days, found.outcomes["wary"]["human"].day)


def test_the_oracle_is_added_and_always_right():
    found = results()
    assert found.plan.arms == ("human", "twin", "yes", "curt", "oracle")
    assert found.plan.control == "human"
    assert found.plan.reliability_cases == 21
    assert len(found.outcomes["wary"]["twin"].transcripts) == 1
    for setting in found.plan.settings:
        for metric in (*FUNCTIONS, "passed", "pass4"):
            assert found.value(setting, "oracle", metric).value == 1.0, metric
        assert found.value(setting, "oracle", "regretted").value == 0.0
        assert found.value(setting, "oracle", "reasoning_tokens").value == 0.0
        assert found.value(setting, "human", "pass4").value < found.value(setting, "human", "passed").value
        for metric in ("regretted", "conversion"):
            assert found.difference(setting, "yes", metric).low > 0.0
            assert found.difference(setting, "yes", metric).value > 0.1
        assert found.difference(setting, "curt", "conversion").high < 0.0


def test_every_metric_is_a_ratio_of_sums():
    found = results()
    outcomes = found.outcomes["patient"]["human"]
    expected = {
        "conversion": outcomes.converted.mean(),
        "reached_conversion": outcomes.converted.sum() / outcomes.reached.sum(),
        "sound_conversion": (outcomes.converted & ~outcomes.regretted).mean(),
        "satisfaction": outcomes.satisfaction[outcomes.satisfaction > 0].mean(),
        "numeric": outcomes.right[:, 3].sum() / outcomes.judged[:, 3].sum(),
        "response_tokens": outcomes.response_tokens.sum() / outcomes.turns.sum(),
        "credit_conversion": outcomes.converted[outcomes.credit].mean(),
    }
    for name, value in expected.items():
        assert found.value("patient", "human", name).value == pytest.approx(value), name
    assert set(found.metrics()) == {*METRICS, "pass4"}
    assert found.latency("patient", "human") == pytest.approx(
        1e3 * outcomes.agent_seconds / outcomes.turns.sum(), rel=1e-12
    )


def synthetic(**converted: list[int]) -> Results:
    """Two days of four users, who convert or not."""
    names = Outcomes.__dataclass_fields__
    zeros: dict[str, Any] = {
        name: np.zeros(8, np.int32) for name in names if name not in ("agent_seconds", "transcripts")
    }
    zeros |= {"right": np.zeros((8, 6), np.int32), "judged": np.zeros((8, 6), np.int32)}
    zeros |= {"day": np.repeat([0, 1], 4), "reached": np.ones(8, bool), "turns": np.ones(8, np.int32)}
    empty = Outcomes(**zeros)
    arms = {name: replace(empty, converted=np.array(values, bool)) for name, values in converted.items()}
    plan = Plan(tuple(arms), next(iter(arms)), "oracle", ("patient",), 8, 2, 0, "test", 0)
    return Results(plan, {"patient": arms})


def test_lift_and_share_by_hand():
    found = synthetic(control=[1, 0, 0, 0, 1, 0, 0, 0], arm=[1, 1, 0, 0, 1, 1, 0, 0], oracle=[1, 1, 1, 0, 1, 1, 1, 0])
    assert found.difference("patient", "arm", "conversion") == pytest.approx((0.25, 0.25, 0.25))
    assert found.difference("patient", "oracle", "conversion", base="arm").value == pytest.approx(0.25)
    assert found.lift("patient", "arm", "conversion").value == pytest.approx(1.0)
    # (0.50 - 0.25) / (0.75 - 0.25)
    assert found.share("patient", "arm", "conversion") == pytest.approx((0.5, 0.5, 0.5))
    assert found.share("patient", "oracle", "conversion").value == 1.0
    nothing = synthetic(control=[0] * 8, arm=[1] * 8, oracle=[0] * 8)
    assert np.isnan(nothing.lift("patient", "arm", "conversion").value)
    assert np.isnan(nothing.share("patient", "arm", "conversion").value)


def test_wrong_requests_are_refused():
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"arms": {}}, "arms is empty"),
        ({"control": "none"}, "control is 'none', expected one of the arms a, oracle"),
        ({"settings": ("patient", "calm")}, "settings is .*'calm'.*, expected some of patient, wary"),
        ({"split": "new"}, "split is 'new', expected one of"),
        ({"days": 1}, "days is 1, expected at least 2"),
        ({"dialogues": 5}, "dialogues is 5, expected at least one for each of 14 days"),
        ({"reliability_cases": -1}, "reliability_cases is -1"),
    )
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            ab(**({"arms": {"a": oracle_agent}, "dialogues": 20} | changes))


def test_held_out_rules_and_no_reliability():
    told: list[tuple[int, int]] = []
    found = ab(
        {"oracle": oracle_agent},
        dialogues=28,
        days=2,
        settings=("wary",),
        split="held_out",
        reliability_cases=0,
        report=lambda ended, total: told.append((ended, total)),
    )
    assert found.plan.arms == ("oracle",)
    assert [ended for ended, _ in told] == sorted(ended for ended, _ in told)
    assert told[-1] == (28, 28)
    assert "pass4" not in found.metrics()
    assert found.value("wary", "oracle", "passed").value == 1.0


def test_progress_counts_the_dialogues_of_all_arms_settings_and_repetitions():
    told: list[tuple[int, int]] = []
    ab(
        {"a": oracle_agent},
        dialogues=14,
        days=7,
        settings=("patient", "wary"),
        reliability_cases=3,
        report=lambda ended, total: told.append((ended, total)),
    )
    # Two settings, the arm and the oracle, 14 dialogues and 3 of them with three more users.
    assert told[-1] == (92, 92)


# Reports


def test_the_table_has_every_metric_arm_and_the_papers_figures():
    text = ab_report.table(results())
    for metric in METRICS.values():
        assert text.count(f"| {metric.label} |") == 2
    assert text.count("| metric | human | twin | yes | curt | oracle |") == 2
    assert "pass^4" in text
    assert "+16.53 %" in text
    assert "+30.09 %" in text
    assert "about 60 %" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| ") and "±" in line}
    assert widths == {7}
    twin = next(line for line in text.splitlines() if line.startswith("| overall conversion, twin"))
    assert "+0.00 (+0.00 to +0.00)" in twin


def test_json_and_figure(tmp_path):
    found = ab_report.as_json(results())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    human = found["settings"]["patient"]["human"]
    assert set(human) == {"values", "latency_ms", "differences", "lifts", "shares"}
    assert human["values"]["conversion"]["value"] == results().value("patient", "human", "conversion").value
    path = ab_report.figure(results(), tmp_path / "new" / "ab.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 20_000
