"""Turns answered aloud: acts are written and not said."""

from __future__ import annotations

import numpy as np
import pytest

from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.aloud import AloudTask
from morejax.tasks.multiwoz.context import ContextConfig
from morejax.tasks.multiwoz.embedded import write_embedded
from morejax.tasks.multiwoz.examples import Serialiser
from morejax.tasks.multiwoz.reader import read_corpus
from morejax.tasks.multiwoz.task import MultiwozTask
from morejax.tasks.streams import StreamContext

STREAMS = ("corpus_bleu", "fluency", "faithfulness", "naturalness", "inform", "success", "slots")
WRITTEN = 100
WORD = "here"


@pytest.fixture(scope="module", params=[False, True], ids=["all at once", "turn by turn"])
def tasks(request, tmp_path_factory):
    """The same turns answered directly and aloud."""
    corpus = read_corpus(write_embedded(tmp_path_factory.mktemp("corpus") / "data", dialogues=12))
    turns = [turn for dialogue in corpus.dialogues("train") for turn in dialogue.turns]
    tokenizer = vocabulary.train_tokenizer((text for t in turns for text in (t.user, t.delex)), 800)
    serialiser = Serialiser(tokenizer, ContextConfig("policy", 3, 320, 80, 100, given=request.param))
    context = StreamContext(corpus.database, (-6.0, -1.0), vocabulary.placeholder_ids(tokenizer))
    direct = MultiwozTask(corpus, serialiser, STREAMS, context)
    return direct, AloudTask(direct)


def written(direct, prompt, reply):
    """Gold acts and a word that is no part of them, the marker and a reply: none of it but the reply is to be heard."""
    acts = direct.serialiser.acts_ids(prompt.dialogue.turns[prompt.turn].acts)
    return (*acts, *direct.serialiser.text_ids(WORD), direct.serialiser.token(vocabulary.RESPONSE), *reply)


def test_the_policy_is_asked_for_acts_and_judges_for_replies(tasks):
    direct, aloud = tasks
    acts = direct.serialiser.token(vocabulary.ACTS)
    for dialogue in direct.corpus.dialogues("dev"):
        for plain, opened in zip(direct.prompts(dialogue), aloud.prompts(dialogue), strict=True):
            assert opened.direct == (*plain.direct[:-1], acts)
            # With the acts behind it the prompt becomes the one that the scaffold has learnt to answer.
            own = direct.serialiser.acts_ids(dialogue.turns[plain.turn].acts)
            assert (*opened.direct, *own, direct.serialiser.token(vocabulary.RESPONSE)) == plain.reasoned
            said = aloud.spoken(opened, written(direct, plain, plain.reference))
            assert said == (plain.direct, plain.reference)


def test_streams_hear_the_reply_and_pay_at_the_end_of_what_is_written(tasks):
    direct, aloud = tasks
    assert aloud.streams == STREAMS
    prompts = [prompt for dialogue in direct.corpus.dialogues("dev") for prompt in direct.prompts(dialogue)]
    judged = np.linspace(-4, -2, len(prompts)), np.linspace(0.2, 0.8, len(prompts))
    replies = [prompt.reference for prompt in prompts]
    said = direct.rewards(direct.sampled(prompts, replies, *judged), WRITTEN)
    texts = [written(direct, prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
    heard = aloud.rewards(aloud.sampled(list(map(aloud.opened, prompts)), texts, *judged), WRITTEN)
    for name in ("applies", "scores", "weights"):
        np.testing.assert_array_equal(getattr(heard, name), getattr(said, name))
    # Every reward has moved by as many tokens as the acts and the marker take.
    for row, (text, reply) in enumerate(zip(texts, replies, strict=True)):
        moved = len(text) - len(reply)
        assert moved > 0
        np.testing.assert_array_equal(heard.rewards[row, moved : len(text)], said.rewards[row, : len(reply)])
        assert not heard.rewards[row, :moved].any()
        assert not heard.rewards[row, len(text) :].any()
    assert said.rewards[..., STREAMS.index("slots")].any()


def test_no_more_is_heard_than_a_reply_may_have(tasks):
    direct, aloud = tasks
    prompt = direct.prompts(direct.corpus.dialogues("dev")[0])[0]
    endless = direct.serialiser.text_ids("here") * 90
    _, heard = aloud.spoken(aloud.opened(prompt), written(direct, prompt, endless))
    assert heard == endless[:80]


def test_acts_that_never_end_say_nothing(tasks):
    direct, aloud = tasks
    prompts = direct.prompts(direct.corpus.dialogues("dev")[0])
    endless = direct.serialiser.text_ids(WORD) * 3
    batch = aloud.sampled(prompts, [endless] * len(prompts))
    assert {turn.text for turn in batch.turns} == {""}
    assert {turn.tokens for turn in batch.turns} == {endless}


def test_what_was_given_before_is_what_was_said(tasks):
    direct, aloud = tasks
    for dialogue in direct.corpus.dialogues("dev"):
        plain = direct.prompts(dialogue)
        said = [written(direct, prompt, prompt.reference) for prompt in plain]
        after = [aloud.prompts_after(plain, said[:index]) for index in range(len(plain))]
        assert after == aloud.prompts(dialogue)
