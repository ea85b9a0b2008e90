"""Arithmetic and rules: hand-computed figures, an independent slow implementation, and the device against the host."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))  # pytest's importlib mode puts no test directory on the path
import shop_slow_policy as slow
from shop_scenarios import AFTERSALES, CREDIT, single

from morejax.tasks.shop import arithmetic, ontology, policy
from morejax.tasks.shop.answers import gold_answers, slot_values
from morejax.tasks.shop.ontology import ACTIONS, DECISIONS, DISCLOSURES, INTENTS, REASONS, SLOTS
from morejax.tasks.shop.state import map_leaves, pack, row, unpack
from morejax.tasks.shop.world import sample_cases


def named(names, flags) -> set[str]:
    return {name for name, flag in zip(names, flags, strict=True) if flag}


@given(amount=st.integers(0, 1_000_000), basis_points=st.integers(0, 4_800))
def test_basis_points_are_rounded_half_up_within_32_bits(amount, basis_points):
    expected = slow.cents(slow.Fraction(amount * basis_points, 10_000))
    assert arithmetic.basis_points_of(amount, basis_points) == expected
    narrow = arithmetic.basis_points_of(np.int32(amount), np.int32(basis_points))
    assert narrow.dtype == np.int32
    assert narrow == expected


@given(amount=st.integers(500, 600_000), monthly_bp=st.integers(0, 300), months=st.sampled_from([3, 6, 12]))
def test_instalments_add_up_and_only_the_last_differs(amount, monthly_bp, months):
    total = amount + arithmetic.total_interest(amount, monthly_bp, months)
    each, last = arithmetic.instalments(total, months)
    assert [each] * (months - 1) + [last] == slow.instalment_plan(amount, monthly_bp, months)
    assert abs(last - each) <= months


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"), [(5, 10, 1), (4, 10, 0), (7, 2, 4), (1, 3, 0), (2, 3, 1)]
)
def test_division_rounds_half_up(numerator, denominator, expected):
    assert arithmetic.divide_half_up(numerator, denominator) == expected


@given(day=st.integers(0, 800))
def test_dates_follow_the_calendar(day):
    number, month = slow.date_words(day)
    assert ontology.date_text(day) == f"{number} {ontology.MONTHS[month - 1]}"
    assert ontology.day_of_year(number, month - 1) == day % 365


def test_hand_computed_credit_figures():
    values, defined = slot_values(pack([CREDIT]))
    found = dict(zip(SLOTS, values[0].tolist(), strict=True))
    # $3000 - $1250 - $100; 1.50% x 6 of $1000 = $90; $1090 / 6 = $181.67, the last $1090 - 5 x $181.67.
    assert found["limit_left"] == 165_000
    assert (found["interest"], found["total_repay"]) == (9_000, 109_000)
    assert (found["instalment"], found["last_instalment"]) == (18_167, 18_165)
    assert found["fee"] == 2_000
    assert ontology.date_text(found["due_date"]) == "21 april"
    assert not defined[0][SLOTS.index("refund")]


def test_hand_computed_aftersales_figures():
    values, defined = slot_values(pack([AFTERSALES]))
    found = dict(zip(SLOTS, values[0].tolist(), strict=True))
    assert (found["restock_fee"], found["refund"]) == (800, 7_200)
    assert ontology.date_text(found["return_deadline"]) == "13 april"
    assert found["shipping_fee"] == 0
    assert found["member_refund"] == 1_644  # $60.00 x 100 / 365
    assert not defined[0][SLOTS.index("limit_left")]


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_figures_equal_the_slow_implementation(split):
    cases = sample_cases(np.random.default_rng(7), 300, split)
    values, defined = slot_values(cases)
    promotion = policy.promotion_applies(cases)
    for number, case in enumerate(unpack(cases)):
        expected = slow.values(case, bool(promotion[number]))
        for slot, value in expected.items():
            if defined[number, SLOTS.index(slot)]:
                assert values[number, SLOTS.index(slot)] == value, (slot, case)


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("decision", DECISIONS)
def test_the_first_rule_in_the_versions_order_decides(split, decision):
    cases = sample_cases(np.random.default_rng(8), 300, split)
    code = DECISIONS.index(decision)
    rule, reason = policy.decide(cases, np.full(300, code))
    seen = set()
    for number, case in enumerate(unpack(cases)):
        against = slow.reasons(case, decision)
        order = [policy.RULES[position] for position in case.rules.order]
        first = next((r.reason for r in order if r.decision == decision and r.reason in against), None)
        assert (REASONS[reason[number]] if rule[number] >= 0 else None) == first
        seen.add(first)
    assert None in seen
    assert len(seen) >= 3


def test_order_of_rules_matters():
    both = CREDIT._replace(profile=CREDIT.profile._replace(kyc=0, score=500))
    assert REASONS[policy.decide(pack([both]), np.array([0]))[1][0]] == "kyc"
    score_first = both.rules._replace(order=policy.VERSIONS["train"][2].order)
    assert REASONS[policy.decide(pack([both._replace(rules=score_first)]), np.array([0]))[1][0]] == "score"


def test_thresholds_hold_at_their_edge():
    at = CREDIT._replace(request=CREDIT.request._replace(amount=165_000))
    assert policy.decide(pack([at]), np.array([0]))[0][0] == -1
    above = CREDIT._replace(request=CREDIT.request._replace(amount=165_001))
    assert REASONS[policy.decide(pack([above]), np.array([0]))[1][0]] == "limit"
    last_day = AFTERSALES._replace(order=AFTERSALES.order._replace(delivered=90))
    assert policy.decide(pack([last_day]), np.array([3]))[0][0] == -1
    late = AFTERSALES._replace(order=AFTERSALES.order._replace(delivered=89))
    assert REASONS[policy.decide(pack([late]), np.array([3]))[1][0]] == "window"


def test_what_a_right_reply_needs():
    gold = row(gold_answers(*single(CREDIT, "borrow", "limit_left")), 0)
    assert not gold.denied
    assert named(SLOTS, gold.required) == {"rate", "limit_left"}
    assert named(DISCLOSURES, gold.must_say) == {"withdraw"}
    assert named(ACTIONS, gold.actions) == {"apply"}
    pending = CREDIT._replace(profile=CREDIT.profile._replace(kyc=1))
    assert named(ACTIONS, row(gold_answers(*single(pending, "borrow")), 0).actions) == set()
    missing = CREDIT._replace(profile=CREDIT.profile._replace(kyc=0))
    assert named(ACTIONS, row(gold_answers(*single(missing, "borrow")), 0).actions) == {"verify"}


def test_policy_text_names_the_rules_in_their_order():
    text = policy.policy_text(policy.VERSIONS["train"][1], ("borrow",))
    assert text.startswith("borrow no if overdue over 0 ; not verified over $0.00 ; age under 20 ;")
    assert "months not 3" in policy.policy_text(policy.VERSIONS["held_out"][0], ("promo",))
    assert "months not" not in policy.policy_text(policy.VERSIONS["train"][0], ("promo",))


def test_held_out_versions_are_new():
    train, held_out = policy.VERSIONS["train"], policy.VERSIONS["held_out"]
    assert {r.version for r in train}.isdisjoint(r.version for r in held_out)
    for new in held_out:
        assert all(new.min_score != old.min_score and new.promo_tenor != old.promo_tenor for old in train)


def test_the_device_gives_the_same_answers():
    cases = sample_cases(np.random.default_rng(9), 64, "train")
    asked = np.zeros((64, len(INTENTS)), bool)
    asked[np.arange(64), np.arange(64) % len(INTENTS)] = True
    host = gold_answers(cases, asked)
    device = jax.jit(lambda case, asked: gold_answers(case, asked, jnp))(
        map_leaves(jnp.asarray, cases), jnp.asarray(asked)
    )
    for name, here, there in zip(host._fields, host, device, strict=True):
        np.testing.assert_array_equal(here, there, err_msg=name)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'weekend'"):
        sample_cases(np.random.default_rng(0), 1, "weekend")
