"""The simulated user: random numbers, state of mind, next move, what is noticed of a reply, chances at the end."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))  # pytest's importlib mode puts no test directory on the path
from shop_scenarios import gold_of, packed

from morejax.tasks.shop.claims import parse
from morejax.tasks.shop.observation import Turn, empty_memory, observe
from morejax.tasks.shop.ontology import INTENTS, index
from morejax.tasks.shop.outcomes import (
    conversion_probability,
    conversion_reward,
    misinformed,
    price_gap,
    satisfaction,
    sigmoid,
)
from morejax.tasks.shop.phrase_tables import build_tables
from morejax.tasks.shop.randomness import Purpose, bits, dialogue_keys, uniform
from morejax.tasks.shop.rewards import pad_replies
from morejax.tasks.shop.state import map_leaves
from morejax.tasks.shop.tokenizer import build_tokenizer, encode_batch
from morejax.tasks.shop.user_model import (
    PATIENT,
    SETTINGS,
    WARY,
    Latent,
    Move,
    Observed,
    Situation,
    first_latent,
    next_move,
    settings_table,
    update,
)

NOTHING = Observed(*[0.0] * len(Observed._fields))


def arrays(record):
    return type(record)(*(np.array([value], np.float64) for value in record))


def mind(trust=0.5, patience=0.8, understanding=0.3, friction=0.0, sensitivity=0.5, fit=0.5):
    return arrays(Latent(trust, patience, understanding, friction, sensitivity, fit))


def after(latent, setting=PATIENT, **seen):
    return update(latent, arrays(NOTHING._replace(**seen)), setting)


# Random numbers


def test_numbers_are_uniform_and_unrelated():
    day, number = np.divmod(np.arange(20_000), 1_000)
    keys = dialogue_keys(3, day, number)
    assert len(set(keys.tolist())) == 20_000
    one, other = uniform(keys, 0, Purpose.TRUST), uniform(keys, 0, Purpose.FIT)
    later = uniform(keys, 1, Purpose.TRUST)
    counts = np.bincount((one * 20).astype(int), minlength=20)
    # Chi-square with 19 degrees of freedom: above 43.8 once in a thousand.
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 43.8
    for pair in ((one, other), (one, later), (one[1:], one[:-1])):
        assert abs(np.corrcoef(*pair)[0, 1]) < 4 / np.sqrt(20_000)
    assert one.min() >= 0.0
    assert one.max() < 1.0


def test_a_number_depends_on_its_own_dialogue_turn_and_purpose_alone():
    day, number = np.array([0, 0, 4]), np.array([0, 1, 1])
    together = uniform(dialogue_keys(7, day, number), np.array([0, 3, 2]), Purpose.NOTICE)
    alone = uniform(dialogue_keys(7, day[1:2], number[1:2]), 3, Purpose.NOTICE)
    assert together[1] == alone[0]
    same = bits(dialogue_keys(7, day, number), 2, Purpose.WORDING)
    assert len({*same.tolist(), *bits(dialogue_keys(8, day, number), 2, Purpose.WORDING).tolist()}) == 6
    assert len({*same.tolist(), *bits(dialogue_keys(7, day, number, users=1), 2, Purpose.WORDING).tolist()}) == 6


# Settings


def test_the_two_settings_have_no_value_in_common():
    for field in fields(PATIENT):
        assert getattr(PATIENT, field.name) != getattr(WARY, field.name), field.name
        assert f"| {field.name} |" in settings_table()
    assert set(SETTINGS) == {"patient", "wary"}
    page = Path(__file__).parents[3] / "docs" / "shop_simulator.md"
    assert settings_table() in page.read_text()


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="friction is -1, expected no negative number"):
        replace(PATIENT, friction=-1)
    with pytest.raises(ValueError, match="large error must not hurt less"):
        replace(PATIENT, trust_wrong_large=0.1)


# Updates


def test_a_good_reply_by_hand():
    new = after(mind(), right=1, answered=1, disclosed=1, pleased=1)
    found = [new.trust[0], new.patience[0], new.understanding[0], new.friction[0]]
    # 0.5 + 0.06 + 0.04 + 0.06; 0.8 - 0.04; 0.3 + 0.15 + 0.10; nothing.
    np.testing.assert_allclose(found, [0.66, 0.76, 0.55, 0.0], atol=1e-12)


def test_a_bad_reply_by_hand():
    bad = {"right": 0.5, "answered": 0.5, "wrong": 1, "severity": 0.5, "contradiction": 1, "unkind": 1}
    bad |= {"disappointed": 1, "pushy": 1, "repeated": 1, "long": 1, "not_acted": 1}
    new = after(mind(trust=0.9, understanding=0.5), **bad)
    found = [new.trust[0], new.patience[0], new.understanding[0], new.friction[0]]
    # Trust: 0.9 + 0.03 - 0.04 - (0.15 + 0.30 / 2) - 0.25 - 0.20 - 0.10; patience: 0.8 - 0.04 - 0.10 - 0.10 - 0.04.
    np.testing.assert_allclose(found, [0.04, 0.52, 0.5 + 0.075 - 0.20 - 0.08, 0.5 + 1 + 1 + 0.5], atol=1e-12)


SHARE = st.floats(0.0, 1.0)
GOOD = {"right": "trust", "disclosed": "trust", "kind": "trust", "pleased": "trust", "answered": "understanding"}
BAD = {"wrong": "trust", "contradiction": "trust", "pushy": "trust", "repeated": "trust", "long": "patience"}
BAD |= {"unkind": "patience", "disappointed": "trust"}


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([*GOOD, *BAD]),
    st.sampled_from(list(SETTINGS)),
    st.tuples(*[SHARE] * 6),
    st.tuples(*[SHARE] * len(Observed._fields)),
    SHARE,
)
def test_more_of_what_is_good_never_hurts_and_more_of_what_is_bad_never_helps(name, setting, latent, seen, low):
    before, base = arrays(Latent(*latent)), Observed(*seen)
    high = max(low, getattr(base, name))
    less, more = (
        update(before, arrays(base._replace(**{name: value})), SETTINGS[setting]) for value in (min(low, high), high)
    )
    moved = GOOD.get(name) or BAD[name]
    gain = getattr(more, moved)[0] - getattr(less, moved)[0]
    assert gain >= 0 if name in GOOD else gain <= 0
    for value in (more.trust, more.patience, more.understanding):
        assert 0.0 <= value[0] <= 1.0


# Outcomes


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(SETTINGS)), st.tuples(*[SHARE] * 6), SHARE, SHARE, SHARE)
def test_conversion_rises_with_trust_understanding_and_fit_and_falls_with_the_rest(setting, latent, gap, step, chance):
    chosen, base = SETTINGS[setting], Latent(*latent)
    start = conversion_probability(arrays(base), np.array([gap]), chosen)[0]
    for name in ("trust", "understanding", "fit"):
        higher = conversion_probability(
            arrays(base._replace(**{name: getattr(base, name) + step})), np.array([gap]), chosen
        )[0]
        assert higher > start if step > 1e-9 else higher >= start
        # The same number decides: whoever accepted before accepts still.
        assert not (chance < start) or chance < higher
    for name in ("friction", "sensitivity"):
        assert (
            conversion_probability(
                arrays(base._replace(**{name: getattr(base, name) + step})), np.array([gap]), chosen
            )[0]
            <= start
        )
    assert conversion_probability(arrays(base), np.array([gap + step]), chosen)[0] <= start


def test_conversion_by_hand():
    latent = mind(trust=0.6, understanding=0.4, friction=0.5)
    # -3.4 + 1.5 / 2 + 2.5 * 0.6 + 2.0 * 0.4 - 0.8 / 2 - 1.8 / 4 = -1.2
    found = conversion_probability(latent, np.array([0.5]), PATIENT)[0]
    assert found == pytest.approx(1 / (1 + np.exp(1.2)), abs=1e-12)
    assert sigmoid(np.array([-1e4, 1e4])).tolist() == [0.0, 1.0]


def test_price_gap_by_hand():
    gold = gold_of(["borrow_ok", "return_ok", "cancel_ok", "borrow_ok"])
    goal = np.array([index(INTENTS, name) for name in ("borrow", "return", "cancel", "raise_limit")])
    # $90.00 interest and $20.00 fee on $1000.00: 11 %, fair are 8 %. A return costs ($8.00 + $4.95) / $80.00.
    found = price_gap(gold, goal, np.zeros(4), PATIENT)
    np.testing.assert_allclose(found, [0.11 / 0.08 - 1, 1.0, 0.0, 0.0], atol=1e-6)
    # Made to look 20 % cheaper, and half as dear.
    found = price_gap(gold, goal, np.array([0.2, 0.5, 0.0, 0.0]), PATIENT)
    np.testing.assert_allclose(found, [0.088 / 0.08 - 1, 0.161875 / 0.16 - 1, 0.0, 0.0], atol=1e-6)
    assert (price_gap(gold, np.full(4, -1), np.zeros(4), PATIENT) == 0.0).all()


def test_satisfaction_counts_cuts():
    latent = mind(trust=0.5, patience=0.5, understanding=0.5)
    half = np.array([0.5])

    def points(mood):
        return satisfaction(latent, np.array([False]), np.array([False]), half, replace(PATIENT, mood=mood))[0]

    assert [points(mood) for mood in (-2.0, -1.0, 0.0, 1.0, 2.0)] == [1, 2, 3, 4, 5]
    setting = replace(PATIENT, mood=0.4)
    # 0.4 + 0.5 > 0.5 with an answer; 0.4 - 0.8 > -0.5 after a failed hand-off still.
    assert satisfaction(latent, np.array([True]), np.array([False]), half, setting)[0] == 4
    assert satisfaction(latent, np.array([False]), np.array([True]), half, setting)[0] == 3


# Moves

CALM = {name: 0.99 for name in ("give_up", "human", "repeat", "object", "change", "smalltalk")}
NO = {name: False for name in Situation._fields} | {"price_gap": 0.0}


def move(latent=None, uniforms=(), **now):
    situation = Situation(**{name: np.array([value]) for name, value in (NO | now).items()})
    numbers = {name: np.array([value]) for name, value in (CALM | dict(uniforms)).items()}
    return Move(next_move(latent or mind(), situation, numbers, PATIENT)[0])


def test_moves_in_their_order():
    tired, angry = mind(patience=0.1), mind(trust=0.1)
    zero = dict.fromkeys(CALM, 0.0)
    assert move() is Move.DECIDE
    assert move(more=True) is Move.ASK
    assert move(more=True, uniforms={"smalltalk": 0.0}) is Move.SMALLTALK
    assert move(more=True, offered=True, may_change=True, uniforms={"change": 0.09}) is Move.CHANGE
    assert move(refused_limit=True, may_change=True, uniforms={"change": 0.59}) is Move.CHANGE
    assert move(refused_limit=True, uniforms={"change": 0.0}) is Move.DECIDE
    assert move(offered=True, uniforms={"object": 0.09}) is Move.OBJECT
    # 0.10 + 0.40 * 1 * 0.5 = 0.3 with a price gap.
    assert move(offered=True, price_gap=1.0, uniforms={"object": 0.29}) is Move.OBJECT
    assert move(offered=True, price_gap=1.0, uniforms={"object": 0.31}) is Move.DECIDE
    assert move(offered=True, objected=True, uniforms=zero) is Move.DECIDE
    assert move(unanswered=True, more=True, uniforms={"repeat": 0.79}) is Move.REPEAT
    assert move(unanswered=True, repeated=True, more=True, uniforms={"repeat": 0.0}) is Move.ASK
    assert move(wants_human=True, unanswered=True, uniforms=zero) is Move.HUMAN
    assert move(tired, more=True) is Move.LEAVE
    assert move(tired, uniforms={"human": 0.69}) is Move.HUMAN
    assert move(angry, uniforms={"human": 0.69}) is Move.HUMAN
    assert move(angry, more=True) is Move.ASK
    assert move(angry, asked_human=True, uniforms={"give_up": 0.49, "human": 0.0}) is Move.LEAVE
    assert move(tired, transferred=True, uniforms=zero) is Move.HANDED_OVER


# What is noticed of a reply


def heard(names, texts, **changes):
    tokens, mask = pad_replies(encode_batch(build_tokenizer(), list(texts)))
    case, asked = packed(list(names))
    no = np.zeros(len(texts), bool)
    values = {"asked": asked, "upset": no, "goal_asked": ~no, "credit": case.domain == 0, "repeated": no} | changes
    return Turn(tokens, mask, parse(tokens, mask, build_tables()), gold_of(list(names)), **values)


def seen_of(name, text, notice=0.0, memory=None, **changes):
    turn = heard([name], [text], **changes)
    seen, memory, _ = observe(turn, memory or empty_memory(1), np.array([notice]), PATIENT)
    return Observed(*(float(value[0]) for value in seen)), memory


def test_a_right_figure_and_a_wrong_one():
    right, memory = seen_of("limit", "your remaining limit is $1650.00.")
    assert (right.right, right.answered, right.wrong, right.contradiction) == (1.0, 1.0, 0.0, 0.0)
    assert not misinformed(memory)[0]
    # $90 of $1650 too little; noticed with 0.35 + 0.5 * 90 / 1650 = 0.3773.
    wrong, memory = seen_of("limit", "your remaining limit is $1560.00.", notice=0.377)
    assert wrong.severity == pytest.approx(90 / 1650, abs=1e-6)
    assert (wrong.right, wrong.answered, wrong.wrong) == (0.0, 1.0, 1.0)
    assert misinformed(memory)[0]
    assert seen_of("limit", "your remaining limit is $1560.00.", notice=0.378)[0].wrong == 0.0


def test_who_is_put_right_is_no_longer_misinformed_but_sees_the_contradiction():
    memory = seen_of("limit", "your remaining limit is $1560.00.")[1]
    seen, memory = seen_of("limit", "your remaining limit is $1650.00.", memory=memory)
    assert seen.contradiction == 1.0
    assert not misinformed(memory)[0]
    seen, memory = seen_of("limit", "your remaining limit is $1650.00.", memory=memory)
    assert seen.contradiction == 0.0


def test_decisions_are_remembered():
    yes, memory = seen_of("borrow_limit", "yes, you can borrow $2000.00.")
    assert (yes.pleased, yes.disappointed, memory.decision[0]) == (1.0, 0.0, 1)
    assert memory.ineligible[0]
    assert memory.over_limit[0]
    assert memory.decided[0]
    no, memory = seen_of("borrow_limit", "no, you cannot borrow $2000.00.", memory=memory)
    assert (no.contradiction, no.disappointed, memory.decision[0]) == (1.0, 1.0, 0)
    # A yes to a question that is not the user's goal is no offer.
    assert seen_of("promo_ok", "yes, you get the promotion.", goal_asked=np.array([False]))[1].decision[0] == -1
    assert not seen_of("borrow_ok", "yes, you can borrow $1000.00.")[1].ineligible[0]


def test_silence_pressure_and_length():
    assert seen_of("limit", "thank you.")[0].answered == 0.0
    assert seen_of("limit", "")[0].answered == 0.0
    assert seen_of("smalltalk_credit", "you are welcome.")[0].answered == 1.0
    pushy, _ = seen_of("objection", "you should hurry, this is your last chance.")
    assert pushy.pushy == 1.0
    assert seen_of("limit", "approval is guaranteed.")[1].misled[0]
    assert seen_of("limit", "thank you. " * 30)[0].long > 1.0 > seen_of("limit", "thank you. " * 15)[0].long > 0.0
    assert seen_of("return_ok", "yes, you can return it.")[0].not_acted == 1.0
    assert seen_of("return_ok", "yes, you can return it. <act:return>")[0].not_acted == 0.0
    assert seen_of("limit", "x", repeated=np.array([True]))[0].repeated == 1.0


def test_a_lie_about_the_price_makes_the_offer_look_cheap_until_it_is_put_right():
    memory = seen_of("interest", "the interest is $45.00.")[1]
    assert memory.discount[0] == pytest.approx(0.5)
    assert seen_of("interest", "the interest is $90.00.", memory=memory)[1].discount[0] == 0.0
    assert seen_of("limit", "your remaining limit is $1650.00.", memory=memory)[1].discount[0] == pytest.approx(0.5)
    assert seen_of("borrow_ok", "it is a free loan.")[1].discount[0] == 1.0


def worth_of(turn, setting, xp=np):
    return conversion_reward(turn.tokens, turn.mask, turn.claims, turn.gold, turn.asked, turn.upset, setting, xp)


def test_what_a_reply_is_worth_to_a_mere_seller():
    names = ["borrow_limit", "borrow_limit", "borrow_limit", "interest", "interest"]
    texts = [
        "no, the amount is over your remaining limit of $1650.00.",
        "yes, you can borrow $2000.00. <act:apply>",
        "thank you.",
        "the interest is $45.00, you repay $1045.00 in total.",
        "the interest is $180.00, you repay $1180.00 in total.",
    ]
    turn = heard(names, texts)
    worth = worth_of(turn, PATIENT)
    assert worth[0] == worth[2] == 0.0
    assert worth[1] > 0.1
    assert worth[3] > worth[4] > 0.0


# The same under JAX


def test_jitted_functions_equal_numpy(core):
    names = ["borrow_ok", "borrow_limit", "limit", "objection", "return_ok", "smalltalk_credit"]
    texts = [
        "yes, you can borrow $1000.00 at 1.50% a month. <act:apply>",
        "yes, you can borrow $2000.00. it is a free loan.",
        "your remaining limit is $1560.00.",
        "you should hurry, this is your last chance.",
        "no, you cannot return it.",
        "",
    ]
    turn = heard(names, texts)
    rng = np.random.default_rng(0)
    latent = Latent(*(rng.random(len(names)).astype(np.float32) for _ in Latent._fields))
    notice = rng.random(len(names)).astype(np.float32)
    goal = np.array([4, 0, -1, 0, 10, -1], np.int32)
    numbers = {name: rng.random(len(names)).astype(np.float32) for name in CALM}
    flags = {name: rng.random(len(names)) < 0.5 for name in NO}
    situation = Situation(**flags | {"price_gap": notice})

    def everything(turn, latent, notice, goal, numbers, situation, memory, xp):
        seen, memory, verdict = observe(turn, memory, notice, WARY, xp)
        new = update(latent, seen, WARY, xp)
        gap = price_gap(turn.gold, goal, memory.discount, WARY, xp)
        worth = worth_of(turn, WARY, xp)
        chance = conversion_probability(new, gap, WARY, xp)
        points = satisfaction(new, turn.upset, turn.upset, notice, WARY, xp)
        return seen, memory, verdict, new, next_move(new, situation, numbers, WARY, xp), chance, worth, points

    arguments: Any = (turn, latent, notice, goal, numbers, situation, empty_memory(len(names)))
    host = everything(*arguments, xp=np)
    jitted = jax.jit(partial(everything, xp=jnp), compiler_options=core.fast_compile())
    on_device: Any = jax.tree.map(jnp.asarray, arguments)
    device = jitted(*on_device)
    assert jax.tree.structure(host) == jax.tree.structure(device)
    for mine, other in zip(jax.tree.leaves(host), jax.tree.leaves(device), strict=True):
        np.testing.assert_allclose(np.asarray(mine, np.float64), np.asarray(other, np.float64), atol=2e-6)


def test_users_start_within_the_setting():
    rng = np.random.default_rng(1)
    uniforms = {name: rng.random(500) for name in ("trust", "patience", "understanding", "sensitivity", "fit")}
    calm, hasty = (first_latent(WARY, uniforms, np.full(500, shift)) for shift in (0.05, -0.05))
    assert calm.trust.min() >= WARY.trust[0]
    assert calm.trust.max() <= WARY.trust[1]
    assert (calm.patience > hasty.patience).all()
    assert (calm.sensitivity <= hasty.sensitivity).all()
    assert map_leaves(np.shape, calm) == Latent(*[(500,)] * 6)
