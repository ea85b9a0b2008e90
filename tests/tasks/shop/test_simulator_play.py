"""Complete dialogues: determinism, coupling, who converts, hand-offs, and why conversion alone is the wrong reward."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from morejax.models import ActorCritic, DecoderConfig, split
from morejax.rollout import SamplerConfig
from morejax.tasks.shop.agents import (
    LiveTurns,
    curt_agent,
    human_agent,
    model_agent,
    oracle_agent,
    random_agent,
    yes_agent,
)
from morejax.tasks.shop.claims import parse
from morejax.tasks.shop.contacts import AGENDA, chosen, make_contacts, other_users, spread
from morejax.tasks.shop.context import ContextConfig, Serialiser
from morejax.tasks.shop.dialogues import generate
from morejax.tasks.shop.ontology import DECISIONS, INTENTS, action_token, index
from morejax.tasks.shop.outcomes import conversion_reward
from morejax.tasks.shop.phrase_tables import build_tables
from morejax.tasks.shop.play import MOST_TURNS, play, split_replies
from morejax.tasks.shop.reasoning import judge
from morejax.tasks.shop.rewards import pad_replies
from morejax.tasks.shop.state import unpack
from morejax.tasks.shop.tokenizer import EOS, RESPONSE, USER, build_tokenizer, decode, encode_batch, vocabulary
from morejax.tasks.shop.user_model import PATIENT, SETTINGS
from morejax.training.generate import Generator

COUNT = 280
AGENTS = {
    "oracle": oracle_agent,
    "yes": yes_agent,
    "human": human_agent(),
    "curt": curt_agent,
    "random": random_agent(),
}


@cache
def contacts_of(setting="patient", count=COUNT, seed=0):
    return make_contacts(seed, count, SETTINGS[setting])


@cache
def outcomes_of(agent, setting="patient"):
    return play(AGENTS[agent], contacts_of(setting), SETTINGS[setting])


def says(text):
    """An agent with one reply to everything."""
    (ids,) = encode_batch(build_tokenizer(), [text])
    return lambda turns: [ids] * len(turns.prompts)


def assert_equal(one, other, rows: Any = slice(None)):
    for name, value in other.arrays().items():
        np.testing.assert_array_equal(getattr(one, name)[rows], value, err_msg=name)


# Contacts


def test_days_drift_from_credit_to_aftersales_and_have_busy_weekends():
    contacts = contacts_of(count=2_800)
    volume = np.bincount(contacts.day)
    weekend = np.arange(14) % 7 >= 5
    assert volume.sum() == len(contacts) == 2_800
    # 2800 / (10 + 4 * 1.4) = 179.5 on a weekday, 1.4 times that at weekends.
    assert set(volume[~weekend]) <= {179, 180}
    assert set(volume[weekend]) <= {251, 252}
    credit = [np.mean(contacts.case.domain[contacts.day == day] == 0) for day in (0, 13)]
    assert credit[0] == pytest.approx(0.65, abs=0.12)
    assert credit[1] == pytest.approx(0.35, abs=0.12)


def test_agendas_hold_the_goal_and_questions_that_go_together():
    contacts = contacts_of()
    decisions = [index(INTENTS, name) for name in DECISIONS]
    for row in range(len(contacts)):
        agenda = contacts.agenda[row]
        assert 1 <= contacts.questions[row] == agenda.any(axis=1).sum() <= AGENDA
        assert agenda.sum(axis=0).max() == 1, "nobody asks twice unprompted"
        assert agenda[:, decisions].sum(axis=1).max() <= 1
        if contacts.goal[row] >= 0:
            assert agenda[contacts.goal_place[row], contacts.goal[row]]
    # 70 % have a goal, where their case knows one; four standard errors of 280 draws are 11 %.
    assert np.mean(contacts.goal >= 0) == pytest.approx(0.68, abs=0.11)


def test_other_users_have_the_same_cases_and_other_questions():
    contacts = contacts_of()
    others = other_users(contacts, 1, PATIENT)
    assert unpack(others.case) == unpack(contacts.case)
    assert (others.keys != contacts.keys).all()
    assert (others.agenda != contacts.agenda).any()
    assert_equal(play(oracle_agent, other_users(contacts, 0, PATIENT), PATIENT), outcomes_of("oracle"))


def test_impossible_contacts_are_refused():
    with pytest.raises(ValueError, match="dialogues is 13 and days 14, expected at least one dialogue a day"):
        make_contacts(0, 13, PATIENT)
    with pytest.raises(ValueError, match="split is 'x'"):
        make_contacts(0, 14, PATIENT, split="x")
    assert len(make_contacts(0, 1, PATIENT, days=1)) == 1


# Determinism and coupling


def test_the_same_seed_gives_the_same_outcomes_and_another_does_not():
    again = play(human_agent(), make_contacts(0, COUNT, PATIENT), PATIENT)
    assert_equal(again, outcomes_of("human"))
    other = play(human_agent(), contacts_of(seed=1), PATIENT)
    assert (other.turns != again.turns).any()


def test_a_dialogue_does_not_depend_on_the_others():
    rows = spread(COUNT, 17)
    assert len(rows) == 17
    alone = play(human_agent(), chosen(contacts_of(), rows), PATIENT)
    assert_equal(outcomes_of("human"), alone, rows)


def test_arms_are_coupled_where_they_say_the_same():
    """An agent that errs in one dialogue changes the outcome of that one alone."""

    def errs_once(turns: LiveTurns):
        replies = list(oracle_agent(turns))
        if turns.turn == 0:
            replies[5] = ()
        return replies

    changed = play(errs_once, contacts_of(), PATIENT)
    oracle = outcomes_of("oracle")
    rows = np.arange(COUNT) != 5
    for name, value in changed.arrays().items():
        np.testing.assert_array_equal(value[rows], getattr(oracle, name)[rows], err_msg=name)
    assert changed.right[5].sum() < changed.judged[5].sum()


# What the agent sees and says


def test_first_prompts_are_those_of_the_corpus():
    """Facts and markers as the serialiser writes them for training."""
    seen = []

    def agent(turns):
        seen.extend(turns.prompts)
        return oracle_agent(turns)

    contacts = chosen(contacts_of(), np.arange(6))
    play(agent, contacts, PATIENT)
    serialiser, split_ = Serialiser(), generate(0, 4, "test")
    marker = serialiser.token(USER)
    for prompt in seen[:6]:
        assert prompt[-1] == serialiser.token(RESPONSE)
        assert len(prompt) <= serialiser.config.max_context
    corpus = serialiser.prompts(split_)[0][0].direct
    mine = decode(build_tokenizer(), seen[0][: seen[0].index(marker)])
    theirs = decode(build_tokenizer(), corpus[: corpus.index(marker)])
    # The same fields in the same order: only figures and names differ within a domain.
    start = {0: "borrow no if", 1: "return no if"}
    assert start[int(contacts.case.domain[0])] in mine
    assert any(text in theirs for text in start.values())


def test_a_change_of_mind_is_in_the_words_before_it_is_in_the_facts():
    changes = []

    def agent(turns):
        table = turns.table
        for row in np.flatnonzero(table.case.request.amount != table.earlier.amount):
            changes.append((table.earlier.amount[row], table.case.request.amount[row], turns.prompts[row]))
        return oracle_agent(turns)

    play(agent, contacts_of(), PATIENT)
    assert changes
    marker = Serialiser().token(USER)
    for before, after, prompt in changes:
        facts = decode(build_tokenizer(), prompt[: prompt.index(marker)])
        last = len(prompt) - 1 - prompt[::-1].index(marker)
        said = decode(build_tokenizer(), prompt[last:])
        assert f"wants ${before // 100}.{before % 100:02d}" in facts
        assert str(after // 100) in said
        assert after < before


def test_reasoning_is_counted_and_not_said():
    response = vocabulary()[RESPONSE]

    def thinks(turns):
        return [(20, 21, 22, response, *reply, vocabulary()[EOS], 7) for reply in oracle_agent(turns)]

    found = play(thinks, contacts_of(), PATIENT)
    assert (found.reasoning_tokens == 4 * found.turns).all()
    expected = outcomes_of("oracle")
    np.testing.assert_array_equal(found.response_tokens, expected.response_tokens)
    np.testing.assert_array_equal(found.converted, expected.converted)
    assert split_replies([(20, 21)]) == ([0], [(20, 21)])
    assert split_replies([(20, response)]) == ([2], [()])


def test_an_agent_must_answer_everybody():
    with pytest.raises(ValueError, match="gave 1 replies to 280 dialogues"):
        play(lambda turns: [()], contacts_of(), PATIENT)


def test_transcripts_alternate():
    found = play(oracle_agent, chosen(contacts_of(), np.arange(5)), PATIENT, keep=2)
    assert len(found.transcripts) == 2
    for transcript, turns in zip(found.transcripts, found.turns, strict=False):
        assert len(transcript) == 2 * turns
        assert [line.split(":")[0] for line in transcript] == ["user", "agent"] * turns


# Outcomes


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_the_oracle_beats_curt_and_random_agents(setting):
    oracle, curt, chance = (outcomes_of(name, setting) for name in ("oracle", "curt", "random"))
    for worse in (curt, chance):
        assert oracle.converted.mean() > worse.converted.mean() + 0.05
        assert oracle.reached.mean() > worse.reached.mean() + 0.03
        assert oracle.satisfaction[oracle.satisfaction > 0].mean() > worse.satisfaction[worse.satisfaction > 0].mean()
    assert oracle.passed.all()
    assert not oracle.regretted.any()
    assert not oracle.left.any()
    assert (oracle.right == oracle.judged).all()
    assert not (oracle.offered & ~oracle.eligible & ~_changed_request(setting)).any()
    assert chance.converted.sum() == 0


def _changed_request(setting):
    """bool[N]: borrowers, who may come down to an amount that the policy allows."""
    return contacts_of(setting).goal == index(INTENTS, "borrow")


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_saying_yes_to_everybody_sells_more_and_is_regretted_more(setting):
    oracle, yes = outcomes_of("oracle", setting), outcomes_of("yes", setting)
    assert yes.converted.mean() > oracle.converted.mean() + 0.1
    assert yes.regretted.mean() > oracle.regretted.mean() + 0.1
    assert (yes.converted & ~yes.regretted).mean() <= oracle.converted.mean()
    assert (yes.ineligible <= yes.regretted).all()
    assert (yes.over_limit <= yes.ineligible).all()
    assert yes.over_limit.any()


def test_regret_and_reach_are_parts_of_what_they_should_be():
    for name in AGENTS:
        found = outcomes_of(name)
        assert (found.regretted <= found.converted).all()
        assert (found.converted <= found.offered).all()
        assert (found.converted <= found.reached).all()
        ended = found.handoff_right.astype(int) + found.handoff_failed + found.left + found.converted
        assert ended.max() <= 1
        assert found.turns.max() <= MOST_TURNS
        assert (found.right <= found.judged).all()
        assert set(np.unique(found.satisfaction)) <= {0, 1, 2, 3, 4, 5}
    answered = np.mean(outcomes_of("human").satisfaction > 0)
    assert answered == pytest.approx(PATIENT.response, abs=0.1)


def test_humans_who_err_mislead():
    human = outcomes_of("human")
    assert human.misinformed.any()
    assert not human.passed.all()
    assert human.passed.mean() > outcomes_of("curt").passed.mean()


def test_handoffs_right_and_failed():
    oracle = outcomes_of("oracle")
    assert 0 < oracle.handoff_right.mean() < 3 * PATIENT.wants_human
    transfers = play(says(f"a colleague will take over now. {action_token('transfer')}"), contacts_of(), PATIENT)
    assert transfers.handoff_failed.all()
    assert (transfers.turns == 1).all()
    # Whoever is put off by silence asks for a human; an agent that then transfers has failed before.
    late = play(_silent_until_asked, contacts_of(), PATIENT)
    assert late.handoff_failed.mean() > 0.5
    assert late.handoff_right.mean() < 0.1


def _silent_until_asked(turns):
    human = turns.table.asked[:, index(INTENTS, "human")]
    (transfer,) = encode_batch(build_tokenizer(), [f"one moment. {action_token('transfer')}"])
    return [transfer if wants else () for wants in human]


def test_a_pushy_and_a_long_winded_oracle_convert_less():
    def adds(text):
        (ids,) = encode_batch(build_tokenizer(), [text])
        return play(lambda turns: [(*reply, *ids) for reply in oracle_agent(turns)], contacts_of(), PATIENT)

    oracle = outcomes_of("oracle")
    pushy = adds("you should hurry, this is your last chance.")
    long = adds("please take all the time that you need to think about this and to compare. " * 5)
    for worse in (pushy, long):
        assert worse.converted.mean() < oracle.converted.mean()
        assert worse.satisfaction.sum() < oracle.satisfaction.sum()


# Conversion as the only reward


def _candidates(turns: LiveTurns):
    """Replies to choose from: right ones, a yes to everything, and the latter at no cost at all."""
    yes = yes_agent(turns)
    cheap = encode_batch(build_tokenizer(), [decode(build_tokenizer(), reply) + " it is a free loan." for reply in yes])
    return [list(oracle_agent(turns)), list(yes), cheap]


def best_of(constrained: bool):
    """Picks the candidate of the largest expected conversion; with constraints only among those that keep them."""

    def agent(turns):
        scores, candidates = [], _candidates(turns)
        for replies in candidates:
            tokens, mask = pad_replies(replies)
            claims = parse(tokens, mask, build_tables())
            reward = conversion_reward(tokens, mask, claims, turns.gold, turns.table.asked, turns.table.upset, PATIENT)
            verdict = judge(claims, turns.gold)
            kept = (verdict.score == verdict.applies).all(axis=1)
            scores.append(np.where(kept | (not constrained), reward, -1.0))
        best = np.argmax(scores, axis=0)
        return [candidates[which][row] for row, which in enumerate(best)]

    return agent


def test_conversion_alone_is_regretted_and_constraints_hold_it():
    free, held = (play(best_of(constrained), contacts_of(), PATIENT) for constrained in (False, True))
    oracle = outcomes_of("oracle")
    assert free.converted.mean() > held.converted.mean() + 0.1
    assert free.regretted.mean() > 0.2
    assert held.regretted.sum() == 0
    assert held.converted.mean() >= oracle.converted.mean() - 0.02


# A model as agent


def test_a_model_plays_without_compiling_again(core, monkeypatch):
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=core.fast_compile()))
    vocab = len(vocabulary())
    context = ContextConfig(history=1, max_context=352, max_reply=8)
    decoder = DecoderConfig(vocab_size=vocab, max_length=400, layers=1, width=16, heads=2)
    graphdef, params = split(ActorCritic(decoder, rngs=nnx.Rngs(0)))
    sampler = SamplerConfig(max_new_tokens=8, eos_id=vocabulary()[EOS], temperature=0.0)
    generator = Generator(graphdef, sampler, batch=16, step=352)
    agent, contacts = model_agent(generator, params), chosen(contacts_of(), np.arange(20))
    one = play(agent, contacts, PATIENT, serialiser=Serialiser(context))
    program: Any = generator._sampler
    compiled = program._cache_size()
    other = play(agent, contacts, PATIENT, serialiser=Serialiser(context))
    assert program._cache_size() == compiled == 1
    assert_equal(one, other)
    assert one.agent_seconds > 0.0
    assert one.response_tokens.max() <= 8 * MOST_TURNS
