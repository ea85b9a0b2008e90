"""The MultiWOZ streams on dialogues small enough to score by hand, and against the scorer on whole corpora."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from morejax.tasks.multiwoz import rewards
from morejax.tasks.multiwoz.canonical import UNIFIED_PLACEHOLDER
from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.embedded import write_embedded
from morejax.tasks.multiwoz.reader import read_corpus
from morejax.tasks.multiwoz.records import Dialogue, Turn
from morejax.tasks.multiwoz.scorer import derive_scoring_data, score
from morejax.tasks.streams import SampledBatch, SampledTurn, StreamContext, compute_streams, get_stream

DATABASE = Database(
    {
        "restaurant": [
            {"id": "1", "name": "blue fig", "area": "north"},
            {"id": "2", "name": "red plum", "area": "south"},
        ],
        "hotel": [{"id": "3", "name": "the heron", "stars": "4"}, {"id": "4", "name": "mill rest", "stars": "3"}],
        "attraction": [{"id": "5", "name": "clock museum", "area": "north"}],
        "train": [{"trainID": "TX1", "leaveAt": "09:10", "arriveBy": "10:00", "day": "monday"}],
    }
)
GOAL = {
    "restaurant": {"informable": {"area": "north"}, "requestable": ["PHONE"]},
    "hotel": {"informable": {"stars": "4"}, "requestable": ["REFERENCE"]},
}
NORTH = {"restaurant": {"area": "north"}}
BOTH = {**NORTH, "hotel": {"stars": "4"}}
BOOKED = {**NORTH, "hotel": {"stars": "4", "bookday": "monday", "bookpeople": "2", "bookstay": "1"}}
REFERENCES = ("[name] is nice.", "the phone is [phone].", "[name] has rooms.", "booked: [reference].")
STATES = (NORTH, NORTH, BOTH, BOOKED)
PLACEHOLDERS = {10: "NAME", 11: "PHONE", 12: "REFERENCE", 13: "TRAINID"}
TOKENS = {"[name]": 10, "[phone]": 11, "[reference]": 12, "[trainid]": 13}
CONTEXT = StreamContext(database=DATABASE, fluency_range=(-4.0, -2.0), placeholders=PLACEHOLDERS)


def dialogue(references=REFERENCES, requested=((), ("restaurant-phone",), (), ()), goal=GOAL, name="one"):
    booked = ((), (), (), ("hotel",))
    turns = [
        Turn(t, "user", references[t], references[t], STATES[t], requested[t], (), booked[t])
        for t in range(len(references))
    ]
    return Dialogue(name, "dev", tuple(turns), goal)


def sampled(d, replies):
    """Replies as sampled turns; one token per word (7 for a word without meaning here) and <eos> = 1."""
    return tuple(
        SampledTurn(d, turn, reply, (*(TOKENS.get(word.strip(".,:"), 7) for word in reply.split()), 1), turn.state)
        for turn, reply in zip(d.turns, replies, strict=True)
    )


def values(name, replies, d=None, context=CONTEXT):
    batch = SampledBatch((sampled(d or dialogue(), replies),))
    return compute_streams([name], batch, context, 16)[name]


def replaced(**changes):
    return tuple(changes.get(f"t{t}", REFERENCES[t]) for t in range(4))


# Inform and Success


@pytest.mark.parametrize("name", ["inform", "success"])
def test_corpus_replies_have_no_difference_to_themselves(name):
    v = values(name, REFERENCES)
    np.testing.assert_array_equal(v.reward, 0.0)
    assert v.mean == 1.0


def test_a_missing_phone_number_costs_success_at_its_turn_only():
    replies = replaced(t1="anything else?")
    success = values("success", replies)
    # Two domains match and one of two requestables is provided: 3/4 against 4/4.
    np.testing.assert_allclose(success.reward, [0, -0.25, 0, 0])
    np.testing.assert_array_equal(success.applies, [True] * 4)
    np.testing.assert_array_equal(success.score, 0.0)
    np.testing.assert_allclose(success.weight, 0.25)
    inform = values("inform", replies)
    np.testing.assert_array_equal(inform.reward, 0.0)
    np.testing.assert_array_equal(inform.applies, [True, False, True, False])
    assert (inform.mean, success.mean) == (1.0, 0.0)


def test_a_missing_offer_costs_inform_at_its_turn_only():
    v = values("inform", replaced(t2="call [phone]."))
    np.testing.assert_allclose(v.reward, [0, 0, -0.5, 0])
    np.testing.assert_allclose(v.weight, 0.5)
    assert v.mean == 0.0


def test_empty_replies_are_blamed_for_what_each_of_them_leaves_out():
    np.testing.assert_allclose(values("inform", [""] * 4).reward, [-0.5, 0, -0.5, 0])
    np.testing.assert_allclose(values("success", [""] * 4).reward, [-0.25] * 4)
    hard = StreamContext(database=DATABASE, graded=False)
    # No single corpus reply would make the dialogue a success.
    np.testing.assert_allclose(values("success", [""] * 4, context=hard).reward, [0.0] * 4)
    np.testing.assert_allclose(values("success", replaced(t1=""), context=hard).reward, [0, -1, 0, 0])


TURN_BY_TURN = StreamContext(database=DATABASE, turn_by_turn=True)


@pytest.mark.parametrize(
    ("replies", "success"),
    [
        (REFERENCES, [0, 0, 0, 0]),
        # Left out where it was asked for: the phone number is blamed there and nowhere else.
        (replaced(t1=""), [0, -0.25, 0, 0]),
        # Given before anybody asked, and not again: people would have given it too, so it is worth nothing.
        (replaced(t0="[name], call [phone].", t1="anything else?"), [0, 0, 0, 0]),
        ([""] * 4, [-0.25] * 4),
    ],
)
def test_turn_by_turn_people_go_on_where_the_model_is_left(replies, success):
    v = values("success", replies, context=TURN_BY_TURN)
    np.testing.assert_allclose(v.reward, success)
    # Together the rewards are what the whole dialogue is above people's.
    whole = rewards.graded_success(
        rewards.judge_dialogue(sampled(dialogue(), replies), DATABASE).sampled,
        GOAL,
        [turn.booked for turn in dialogue().turns],
    )
    assert v.reward.sum() == pytest.approx(whole - 1)


def test_turn_by_turn_what_is_made_up_for_later_is_paid_where_it_is():
    """In the domain's own turn: a phone number that was left out when asked for, one turn later."""
    states = (NORTH, NORTH, NORTH, BOOKED)
    d = dialogue(("[name] is nice.", "the phone is [phone].", "anything else?", "[name]: [reference]."))
    turns = tuple(replace(turn, state=state) for turn, state in zip(d.turns, states, strict=True))
    d = replace(d, turns=turns)
    late = ("[name] is nice.", "sure.", "by the way, [phone].", "[name]: [reference].")
    np.testing.assert_allclose(values("success", late, d, TURN_BY_TURN).reward, [0, -0.25, 0.25, 0])
    early = ("[name], [phone].", "sure.", "anything else?", "[name]: [reference].")
    np.testing.assert_allclose(values("success", early, d, TURN_BY_TURN).reward, [0, 0, 0, 0])
    # Were the later replies sampled without knowing of the earlier, the early one would have saved the dialogue.
    np.testing.assert_allclose(values("success", early, d).reward, [0.25, 0, 0, 0])


def test_a_reply_better_than_the_corpus_reply_is_paid():
    d = dialogue(("[name] is nice.", "it is open.", *REFERENCES[2:]))
    v = values("success", REFERENCES, d)
    np.testing.assert_allclose(v.reward, [0, 0.25, 0, 0])
    assert v.mean == 1.0


def test_offering_in_the_wrong_state_is_seen():
    d = dialogue()
    batch = sampled(d, REFERENCES)
    wrong = SampledTurn(d, d.turns[0], REFERENCES[0], (10, 1), {"restaurant": {"area": "south"}})
    v = compute_streams(["inform"], SampledBatch(((wrong, *batch[1:]),)), CONTEXT, 8)["inform"]
    assert v.mean == 0.0
    # The corpus reply in the same wrong state fares no better: the state is not the reply's doing.
    np.testing.assert_array_equal(v.reward, 0.0)


def test_a_dialogue_without_a_deciding_turn_still_counts_once():
    goal = {"taxi": {"informable": {}, "requestable": []}}
    undecided = dialogue(("ok.",) * 4, ((),) * 4, goal, "taxi")
    batch = SampledBatch((sampled(undecided, ("fine",) * 4), sampled(dialogue(), [""] * 4)))
    for name, v in compute_streams(["inform", "success"], batch, CONTEXT, 8).items():
        np.testing.assert_array_equal(v.applies[:4], True)
        assert v.mean == 0.5, name


def test_graded_forms_are_one_exactly_when_the_scorer_says_so():
    rng = random.Random(1)
    options = ["", "[name].", "[phone].", "[reference].", "[name] [phone] [reference]."]
    booked = [turn.booked for turn in dialogue().turns]
    for _ in range(200):
        turns = sampled(dialogue(), [rng.choice(options) for _ in range(4)])
        judged = rewards.judge_dialogue(turns, DATABASE).sampled
        assert (rewards.graded_inform(judged, GOAL) == 1.0) == judged.inform
        assert (rewards.graded_success(judged, GOAL, booked) == 1.0) == judged.success


def test_baseline_does_not_depend_on_the_reply_it_judges():
    rng = random.Random(2)
    options = ["", "[name].", "[phone].", "[reference] [name]."]
    for _ in range(50):
        replies = [rng.choice(options) for _ in range(4)]
        for t in range(4):
            baselines = set()
            for reply in options:
                turns = sampled(dialogue(), [*replies[:t], reply, *replies[t + 1 :]])
                judged = rewards.judge_dialogue(turns, DATABASE)
                baselines.add(rewards.graded_success(judged.without[t], GOAL, [x.turn.booked for x in turns]))
            assert len(baselines) == 1


# Slots


def test_slots_due_are_paid_at_the_first_token_that_says_them():
    v = values("slots", ["it is [name] or [name].", "ask [name].", "[name].", "ref [reference]."])
    np.testing.assert_array_equal(v.applies, True)
    np.testing.assert_allclose(v.score, [1, 0, 1, 1])
    np.testing.assert_allclose(v.token_reward[0], [0, 0, 1, 0, 0, 0])
    np.testing.assert_allclose(v.token_reward[3], [0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(v.reward, 0.0)


def test_half_of_two_due_slots_is_half():
    d = dialogue(("[name], call [phone].", *REFERENCES[1:]))
    v = values("slots", ["[phone] [phone].", *REFERENCES[1:]], d)
    np.testing.assert_allclose(v.score, [0.5, 1, 1, 1])
    np.testing.assert_allclose(v.token_reward[0, :2], [0.5, 0])


def test_requested_slots_are_due_although_the_corpus_reply_forgets_them():
    d = dialogue(("[name].", "sure.", *REFERENCES[2:]))
    np.testing.assert_allclose(values("slots", replaced(t1="no."), d).score, [1, 0, 1, 1])
    quiet = dialogue(("[name].", "sure.", *REFERENCES[2:]), ((), (), (), ()))
    np.testing.assert_array_equal(values("slots", replaced(t1="no."), quiet).applies, [True, False, True, True])


def test_a_reference_number_is_due_only_once_booked():
    d = dialogue((*REFERENCES[:2], "[name] [reference].", REFERENCES[3]))
    np.testing.assert_allclose(values("slots", REFERENCES, d).score, 1.0)


def test_a_placeholder_in_word_pieces_is_paid_at_the_end():
    d = dialogue()
    turns = list(sampled(d, REFERENCES))
    turns[0] = SampledTurn(d, d.turns[0], "[name].", (7, 7, 7, 1), NORTH)
    v = compute_streams(["slots"], SampledBatch((tuple(turns),)), CONTEXT, 8)["slots"]
    np.testing.assert_allclose(v.score, 1.0)
    np.testing.assert_allclose(v.reward, [1, 0, 0, 0])


def test_restraint_is_the_precision_of_what_is_given():
    replies = ["[name] at [phone].", "the phone is [phone].", "[restaurant_name] has rooms.", "anything else?"]
    v = values("restraint", replies)
    # The corpus gives the name only; the phone; the name, in another spelling; a reference, of which nothing is said.
    np.testing.assert_allclose(v.reward, [0.5, 1, 1, 0])
    np.testing.assert_array_equal(v.applies, [True, True, True, False])
    assert get_stream("restraint").kind == "constraint"


# Objectives


def test_likeness_is_sentence_bleu_on_unified_placeholders():
    replies = ["[restaurant_name] is nice.", "", "[name] has big rooms.", "zzz"]
    v = values("likeness", replies)
    assert v.score[0] == pytest.approx(1.0)
    assert v.score[1] == 0.0
    # NAME has big rooms . | NAME has rooms . -> n-gram matches 4/5, 2/4, 0/3, 0/2, smoothed 1/(2*3), 1/(4*2).
    assert v.score[2] == pytest.approx((0.8 * 0.5 * (1 / 6) * (1 / 8)) ** 0.25, abs=1e-4)
    assert v.score[3] < 0.1


def test_corpus_bleu_of_a_batch_is_sacrebleus():
    replies = ["[restaurant_name] is nice.", "the phone is [phone] today.", "[name] has rooms.", "[reference]"]
    v = values("corpus_bleu", replies)
    said, wanted = ([rewards.unified(text) for text in texts] for texts in (replies, REFERENCES))
    expected = BLEU(smooth_method="none").corpus_score(said, [wanted]).score / 100
    assert 0 < expected < 1
    assert v.score.mean() == pytest.approx(expected, rel=1e-5)
    # The exact ones are worth more than the one with a word too many.
    assert min(v.score[0], v.score[2]) > v.score[1]
    np.testing.assert_array_equal(v.reward, v.score)


def test_fluency_is_clipped_to_the_corpus_range():
    batch = SampledBatch((sampled(dialogue(), REFERENCES),), lm_logp=np.array([-9.0, -4.0, -3.0, -1.0]))
    v = compute_streams(["fluency"], batch, CONTEXT, 8)["fluency"]
    np.testing.assert_allclose(v.reward, [0, 0, 0.5, 1])


def test_fluency_reports_what_is_missing_or_wrong():
    batch = SampledBatch((sampled(dialogue(), REFERENCES),), lm_logp=np.zeros(4))
    with pytest.raises(ValueError, match=r"SampledBatch.lm_logp is missing"):
        values("fluency", REFERENCES)
    with pytest.raises(ValueError, match=r"StreamContext.fluency_range is missing"):
        compute_streams(["fluency"], batch, StreamContext(), 8)
    with pytest.raises(ValueError, match=r"fluency_range is \(1, 1\), expected lo < hi"):
        compute_streams(["fluency"], batch, StreamContext(fluency_range=(1, 1)), 8)
    broken = SampledBatch((sampled(dialogue(), REFERENCES),), lm_logp=np.array([-3.0, np.nan, -3.0, -3.0]))
    with pytest.raises(ValueError, match=r"'fluency': reward is nan for dialogue one, turn 1"):
        compute_streams(["fluency"], broken, CONTEXT, 8)


def test_naturalness_passes_the_reward_head_on():
    batch = SampledBatch((sampled(dialogue(), REFERENCES),), natural=np.array([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_allclose(compute_streams(["naturalness"], batch, CONTEXT, 8)["naturalness"].score, batch.natural)
    with pytest.raises(ValueError, match=r"SampledBatch.natural is missing"):
        values("naturalness", REFERENCES)


@pytest.mark.parametrize(
    ("turn", "reply", "share"),
    [
        (0, "how can i help?", 1.0),
        (0, "[name] in the [area].", 1.0),
        (0, "[name] leaves at [trainid].", 0.5),  # no train in the state
        (0, "[food] [food] [value_place] [stars]", 0.75),  # a place needs a train or a taxi
        (0, "[reference]", 0.0),  # nothing to book yet
        (2, "[reference]", 0.0),
        (3, "[reference] [hotel_parking]", 1.0),
        (0, "[nonsense]", 0.0),
    ],
)
def test_faithfulness_counts_licensed_placeholders(turn, reply, share):
    assert values("faithfulness", replaced(**{f"t{turn}": reply})).score[turn] == pytest.approx(share)


def test_what_the_database_does_not_find_licenses_no_name():
    d = dialogue()
    nowhere = SampledTurn(d, d.turns[0], "no [food] in the [area], so no [name] and no [phone].", (7,), {})
    state = {"restaurant": {"area": "west"}}
    turn = SampledTurn(d, d.turns[0], nowhere.text, (7,), state)
    assert rewards.licensed_share(turn, DATABASE) == 0.5
    assert rewards.licensed_share(nowhere, DATABASE) == 0.0


def test_institutions_and_booking_slots_license():
    police = dialogue(("x",) * 4, goal={"police": {"informable": {}, "requestable": ["PHONE"]}})
    assert rewards.licensed_share(SampledTurn(police, police.turns[0], "[name]: [phone]", (7,), {}), DATABASE) == 1.0
    known = {"train": {"day": "monday", "bookpeople": "2"}}
    turn = SampledTurn(police, police.turns[0], "[trainid], [reference]", (7,), known)
    assert rewards.licensed_share(turn, DATABASE) == 1.0
    unknown = SampledTurn(police, police.turns[0], "[trainid], [reference]", (7,), {"train": {"day": "monday"}})
    assert rewards.licensed_share(unknown, DATABASE) == 0.5


def test_every_placeholder_of_the_standard_has_a_licence():
    assert set(UNIFIED_PLACEHOLDER.values()) == {*rewards.LICENCES, "REFERENCE"}


def test_all_streams_are_registered_with_their_kind_and_a_description():
    for names, kind in ((rewards.CONSTRAINTS, "constraint"), (rewards.OBJECTIVES, "objective")):
        for name in names:
            assert get_stream(name).kind == kind
            assert get_stream(name).description.endswith(".")


# Whole corpora


def check_against_scorer(corpus, split):
    """J of inform and success on half wrong replies equals the scorer's rates; returns a batch of about 256 turns."""
    dialogues, rng = corpus.dialogues(split), random.Random(0)
    replies = [turn.delex for d in dialogues for turn in d.turns]
    said = {d.id: [t.delex if rng.random() < 0.6 else rng.choice(replies) for t in d.turns] for d in dialogues}
    context = StreamContext(database=corpus.database)
    batch = SampledBatch(
        tuple(
            tuple(SampledTurn(d, t, r, (7,) * 4, t.state) for t, r in zip(d.turns, said[d.id], strict=True))
            for d in dialogues
        )
    )
    streams = compute_streams(["inform", "success", "slots", "faithfulness"], batch, context, 8)
    predictions = {i: [{"response": reply} for reply in turns] for i, turns in said.items()}
    rates = score(predictions, derive_scoring_data(corpus, split), corpus.database)
    for name in ("inform", "success"):
        assert 100 * streams[name].mean == pytest.approx(rates[name], abs=0.051)  # the scorer rounds to one decimal
    assert 0 < streams["slots"].mean < 1
    return SampledBatch(batch.dialogues[:36])


def test_streams_agree_with_the_scorer_on_the_embedded_corpus(tmp_path):
    corpus = read_corpus(write_embedded(tmp_path / "corpus", dialogues=200))
    check_against_scorer(corpus, "train")


def test_streams_agree_with_the_scorer_on_real_dev_and_are_fast(real_root):
    corpus = read_corpus(real_root, "dev")
    batch = check_against_scorer(corpus, "dev")
    start = time.perf_counter()
    compute_streams(["inform", "success", "slots"], batch, StreamContext(database=corpus.database), 8)
    assert time.perf_counter() - start < 0.15
    rewards.unified.cache_clear()
    start = time.perf_counter()
    compute_streams(["likeness"], batch, StreamContext(), 8)
    assert time.perf_counter() - start < 0.15
