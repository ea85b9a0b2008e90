"""The checker: single readings, hand-labelled replies, paraphrases it has to see through, and the device."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))  # pytest's importlib mode puts no test directory on the path
from shop_scenarios import gold_of

from morejax.tasks.shop.claims import parse
from morejax.tasks.shop.ontology import ACTIONS, DISCLOSURES, FORBIDDEN, FUNCTIONS, REASONS, SLOTS, money_text
from morejax.tasks.shop.phrase_tables import build_tables
from morejax.tasks.shop.reasoning import judge
from morejax.tasks.shop.rewards import judge_texts, pad_replies
from morejax.tasks.shop.state import map_leaves
from morejax.tasks.shop.tokenizer import build_tokenizer, decode, encode_batch, vocabulary

FOLDER = Path(__file__).parent


def read(text):
    tokens, mask = pad_replies(encode_batch(build_tokenizer(), [text]))
    return parse(tokens, mask, build_tables())


def stated(text):
    """Slot -> value of the claims in a text that are not negated."""
    claims = read(text)
    rows = zip(claims.slot[0].tolist(), claims.value[0].tolist(), claims.negated[0].tolist(), strict=True)
    return {SLOTS[slot]: value for slot, value, negated in rows if slot >= 0 and not negated}


def lines(name):
    return [json.loads(line) for line in (FOLDER / name).read_text().splitlines()]


def verdicts(rows):
    return judge_texts([row["text"] for row in rows], gold_of([row["scenario"] for row in rows]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Your remaining limit is $1,650.00.", {"limit_left": 165_000}),
        ("You have $1650 left of your limit.", {"limit_left": 165_000}),
        (
            "The instalment for $1000.00 over 6 months is $181.67.",
            {"amount": 100_000, "tenor": 6, "instalment": 18_167},
        ),
        ("You pay $9.00 in interest, $109.00 in total.", {"interest": 900, "total_repay": 10_900}),
        ("The interest is $9.00 in total and you repay $109.00.", {"interest": 900, "total_repay": 10_900}),
        ("Your rate is 1.25% a month.", {"rate": 125}),
        ("You are 9 days late, the late fee is $0.72.", {"overdue_days": 9, "late_fee": 72}),
        ("Pay by the 21st of April.", {"due_date": 110}),
        ("It should arrive on March 1.", {"eta": 59}),
        ("You have 14 days to withdraw.", {}),
        ("Your refund is about $50.", {"refund": -1}),
        ("Your refund is $50.123.", {"refund": -1}),
        ("Return it by 31 april.", {"return_deadline": -1}),
        ("Your refund is $12345678901.", {"refund": -1}),
        ("It costs $50.", {}),
    ],
)
def test_numbers_find_their_slots(text, expected):
    assert stated(text) == expected


@pytest.mark.parametrize(
    ("text", "approves", "denies"),
    [
        ("You are approved.", True, False),
        ("You are not approved.", False, True),
        ("You are not declined.", True, False),
        ("You might be approved.", False, False),
        ("If you pay, you are approved.", False, False),
        ("Are you approved?", False, False),
        ("No, you are approved.", True, False),
        ("It could not be approved.", False, True),
        ("You can borrow up to $50.", False, False),
        ("You are approved. You are declined.", True, True),
        ("I answer as soon as possible.", False, False),
    ],
)
def test_decisions(text, approves, denies):
    claims = read(text)
    assert (claims.approves[0], claims.denies[0]) == (approves, denies)


def test_negation_ends_with_the_clause():
    assert stated("Your parcel was not sent back, it was delivered.") == {"status": 2}
    assert read("Do not worry, you are approved.").approves[0]


def test_disclosures_forbidden_statements_reasons_and_actions():
    claims = read("Nothing is guaranteed. You can withdraw within 14 days. <act:apply>")
    assert not claims.forbidden.any()
    assert [name for name, said in zip(DISCLOSURES, claims.disclosed[0], strict=True) if said] == ["withdraw"]
    assert [name for name, done in zip(ACTIONS, claims.actions[0], strict=True) if done] == ["apply"]
    claims = read("It is guaranteed, not because of your credit score but because of an overdue payment.")
    assert [name for name, said in zip(FORBIDDEN, claims.forbidden[0], strict=True) if said] == ["guarantee"]
    assert [name for name, said in zip(REASONS, claims.reasons[0], strict=True) if said] == ["overdue"]


def test_words_in_letters_cost_the_disclosure():
    right = "There is no obligation."
    gold = gold_of(["objection"] * 2)
    score = judge_texts([right, right + " Zyxgrblt."], gold).score[:, FUNCTIONS.index("disclosure")]
    assert score.tolist() == [1.0, 0.0]


@given(value=st.integers(0, 9_999_999), wrong=st.integers(0, 9_999_999))
def test_every_amount_is_read_to_the_cent(value, wrong):
    assert stated(f"your remaining limit is {money_text(value)}.") == {"limit_left": value}
    gold = gold_of(["limit"])._replace(values=np.full((1, len(SLOTS)), value, np.int32))
    verdict = judge_texts([f"you have {money_text(wrong)} left."], gold)
    assert verdict.score[0, FUNCTIONS.index("credit_limit")] == (value == wrong)


@given(st.lists(st.sampled_from(sorted(set(vocabulary()) - {"<eos>"})), min_size=1, max_size=40))
def test_any_tokens_can_be_read(words):
    tokens = np.array([[vocabulary()[word] for word in words]], np.int32)
    claims = parse(tokens, np.ones_like(tokens, bool), build_tables())
    assert claims.slot.shape == tokens.shape
    assert (claims.slot < len(SLOTS)).all()


def test_padding_changes_nothing():
    rows = lines("labelled_replies.jsonl")[:20]
    gold = gold_of([row["scenario"] for row in rows])
    tokens, mask = pad_replies(encode_batch(build_tokenizer(), [row["text"] for row in rows]))
    wide = [np.pad(array, ((0, 0), (0, 23)), constant_values=fill) for array, fill in ((tokens, 7), (mask, False))]
    for here, there in zip(
        judge(parse(tokens, mask, build_tables()), gold), judge(parse(*wide, build_tables()), gold), strict=True
    ):
        np.testing.assert_array_equal(here, there)


def test_hand_labelled_replies():
    rows = lines("labelled_replies.jsonl")
    assert len(rows) >= 200
    verdict = verdicts(rows)
    wrong = []
    for row, score, applies in zip(rows, verdict.score, verdict.applies, strict=True):
        found = {name: int(s) for name, s, a in zip(FUNCTIONS, score, applies, strict=True) if a}
        if found != row["labels"]:
            wrong.append((row, found))
    assert len(wrong) / len(rows) < 0.02, wrong


def test_labels_hold_both_verdicts_of_every_function():
    counts = {name: [0, 0] for name in FUNCTIONS}
    for row in lines("labelled_replies.jsonl"):
        for name, label in row["labels"].items():
            counts[name][label] += 1
    assert min(min(pair) for pair in counts.values()) >= 7, counts


def test_paraphrases():
    rows = lines("paraphrases.jsonl")
    assert len(rows) >= 100
    verdict = verdicts(rows)
    accepted = ((verdict.score == 1) | ~verdict.applies).all(axis=1)
    correct = np.array([row["correct"] for row in rows])
    missed = [row for row, yes in zip(rows, correct & ~accepted, strict=True) if yes]
    let_through = [row for row, yes in zip(rows, ~correct & accepted, strict=True) if yes]
    assert len(missed) / correct.sum() < 0.02, missed
    assert not let_through


def test_the_device_reads_the_same(core):
    texts = [row["text"] for row in lines("paraphrases.jsonl")[:64]]
    tokens, mask = pad_replies(encode_batch(build_tokenizer(), texts))
    host = parse(tokens, mask, build_tables())
    tables = map_leaves(jnp.asarray, build_tables())
    read_all = jax.jit(lambda *arrays: parse(*arrays, jnp), compiler_options=core.fast_compile())
    device = read_all(tokens, mask, tables)
    for name, here, there in zip(host._fields, host, device, strict=True):
        np.testing.assert_array_equal(here, there, err_msg=name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I can't pay $1,234.50 on the 3rd of May.", "i cannot pay $1234.50 on 3 may."),
        ("instalmnet for $5, ok?", "instalmnet for $5, ok?"),
    ],
)
def test_tokenizer_keeps_the_meaning(text, expected):
    tokenizer = build_tokenizer()
    ids = encode_batch(tokenizer, [text])[0]
    assert decode(tokenizer, ids) in (expected, expected.replace("on 3", "on the 3"))


def test_digits_are_single_tokens_and_the_vocabulary_is_small():
    tokenizer = build_tokenizer()
    assert tokenizer.convert_ids_to_tokens(encode_batch(tokenizer, ["$12.50"])[0]) == ["$", "1", "2", "·", "5", "0"]
    assert len(tokenizer) == len(vocabulary()) <= 1500
    assert len(tokenizer) % 64 == 0
