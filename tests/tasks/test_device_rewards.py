"""Device rewards equal their host forms: on random tokens, against sacrebleu, and against the streams on a corpus."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from morejax.iterate import Prompts, RewardContext
from morejax.models import ActorCritic, DecoderConfig, RewardHead, split
from morejax.tasks.device_rewards import (
    clipped_likelihood,
    licensed_share,
    on_last_token,
    overlap,
    overlap_on_host,
    placeholder_table,
    slot_recall,
)
from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.context import ContextConfig
from morejax.tasks.multiwoz.embedded import write_embedded
from morejax.tasks.multiwoz.examples import Serialiser
from morejax.tasks.multiwoz.on_device import OBJECTIVES, Judges, multiwoz_rewards, turn_facts
from morejax.tasks.multiwoz.reader import read_corpus
from morejax.tasks.multiwoz.task import MultiwozTask
from morejax.tasks.streams import StreamContext
from morejax.training.reward_heads import judge, pack

LENGTH = 9
_OVERLAP = jax.jit(overlap)
_SENTENCE_BLEU = BLEU(effective_order=True, tokenize="none")
ids = st.lists(st.integers(2, 5), max_size=LENGTH)  # few tokens, so that n-grams repeat


def padded(rows, length=LENGTH, fill=7):
    tokens, mask = np.full((len(rows), length), fill, np.int32), np.zeros((len(rows), length), bool)
    for row, line in enumerate(rows):
        tokens[row, : len(line)], mask[row, : len(line)] = line, True
    return tokens, mask


# N-gram overlap


def test_overlap_by_hand():
    replies = [[2, 3, 4, 5], [2, 3, 4, 5], [2, 2, 2], [2, 3], [6, 6], []]
    references = [[2, 3, 4, 5], [2, 3, 4, 5, 6], [2, 5, 5], [2, 3, 4, 5], [2, 3], [2]]
    found = _OVERLAP(*padded(replies), *padded(references))
    # The third: one of three unigrams (clipped), then no bigram and no trigram: 1/2 of 2 and 1/4 of 1.
    clipped = (1 / 3 * (0.5 / 2) * (0.25 / 1)) ** (1 / 3)
    np.testing.assert_allclose(found, [1.0, np.exp(-0.25), clipped, np.exp(-1.0), 0.0, 0.0], rtol=1e-6)


@given(ids, ids)
def test_overlap_equals_its_host_form_and_sacrebleu(reply, reference):
    host = overlap_on_host(reply, reference)
    assert float(_OVERLAP(*padded([reply]), *padded([reference]))[0]) == pytest.approx(host, abs=1e-5)
    texts = " ".join(map(str, reply)), " ".join(map(str, reference))
    if reference:  # sacrebleu takes an empty reference for one empty word
        assert host == pytest.approx(_SENTENCE_BLEU.sentence_score(texts[0], [texts[1]]).score / 100, abs=1e-9)


def test_padding_never_matches():
    tokens, mask = padded([[2, 3]])
    other = np.where(mask, tokens, 4)
    reference = padded([[2, 3, 4, 4, 4, 4]])
    np.testing.assert_array_equal(_OVERLAP(tokens, mask, *reference), _OVERLAP(other, mask, *reference))


# Placeholders


def test_licensed_share_by_hand():
    table = placeholder_table({10: "NAME", 11: "PHONE", 12: "UNKNOWN"}, ("NAME", "PHONE"), 16)
    assert table[10:13].tolist() == [0, 1, 2]
    assert set(table[:10]) == {-1}
    tokens, mask = padded([[10, 3, 11, 10], [12, 10], [3, 4], [10]], fill=11)
    licensed = np.array([[True, False], [True, True], [False, False], [False, True]])
    share = licensed_share(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(table), jnp.asarray(licensed))
    np.testing.assert_allclose(share, [2 / 3, 1 / 2, 1.0, 0.0], rtol=1e-6)


def test_slot_recall_pays_the_first_mention():
    table = placeholder_table({10: "NAME", 11: "PHONE"}, ("NAME", "PHONE"), 16)
    tokens, mask = padded([[10, 3, 10, 11], [10, 11], [10]])
    due = np.array([[True, True], [False, True], [False, False]])
    paid = slot_recall(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(table), jnp.asarray(due))
    wanted = np.zeros((3, LENGTH))
    wanted[0, 0] = wanted[0, 3] = 0.5
    wanted[1, 1] = 1.0
    np.testing.assert_array_equal(paid, wanted)


def test_sequence_rewards_stand_on_the_last_token():
    _, mask = padded([[2, 3], [2]], length=3)
    placed = on_last_token(jnp.array([1.0, 2.0]), jnp.asarray(mask))
    np.testing.assert_array_equal(placed, [[0, 1, 0], [2, 0, 0]])
    both = on_last_token(jnp.array([[1.0, 3.0], [2.0, 4.0]]), jnp.asarray(mask))
    np.testing.assert_array_equal(both[..., 0], placed)
    assert float(both[..., 1].sum()) == 7.0


def test_likelihood_is_clipped_to_its_range():
    scaled = clipped_likelihood(jnp.array([-9.0, -4.0, -3.0, -1.0, jnp.nan]), -4.0, -2.0)
    np.testing.assert_allclose(scaled, [0.0, 0.0, 0.5, 1.0, np.nan])


# Against the streams, on dialogues of the embedded corpus


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    corpus = read_corpus(write_embedded(tmp_path_factory.mktemp("corpus") / "data", dialogues=20))
    turns = [turn for dialogue in corpus.dialogues("train") for turn in dialogue.turns]
    tokenizer = vocabulary.train_tokenizer((text for t in turns for text in (t.user, t.delex)), 800)
    serialiser = Serialiser(tokenizer, ContextConfig("policy", 3, 320, 80, 100))
    context = StreamContext(corpus.database, (-6.0, -1.0), vocabulary.placeholder_ids(tokenizer))
    return MultiwozTask(corpus, serialiser, (*OBJECTIVES, "slots"), context)


def noisy(reply, placeholders, rng):
    """A corpus reply with some words and placeholders turned into other placeholders."""
    share = {token: 0.5 for token in placeholders}
    drawn = [int(rng.choice(placeholders)) if rng.random() < share.get(token, 0.1) else token for token in reply[:-1]]
    return (*drawn, reply[-1])


@pytest.fixture(scope="module")
def judged(task):
    """Rewards of the same noisy replies from the streams on the host and from the device."""
    rng = np.random.default_rng(0)
    placeholders = task.context.placeholders
    names = sorted(set(placeholders.values()))
    dialogues = [task.prompts(dialogue) for dialogue in task.corpus.dialogues("dev")[:3]]
    prompts = [prompt for dialogue in dialogues for prompt in dialogue]
    replies = [noisy(prompt.reference, list(placeholders), rng) for prompt in prompts]
    context, reply, rows = max(len(p.direct) for p in prompts), 80, len(prompts)
    config = DecoderConfig(vocab_size=832, max_length=512, layers=1, width=8, heads=2, scan=True)
    graphdef, params = split(ActorCritic(config, rngs=nnx.Rngs(0)))
    # A fresh model finds every reply about equally likely.
    params = jax.tree.map(lambda leaf: 20.0 * leaf, params)
    head_graphdef, head = split(RewardHead(8, hidden=8, rngs=nnx.Rngs(1)))
    tokens, mask = pack([p.direct for p in prompts], replies, context, reply, task.pad_id, rows)
    logp, natural = judge(graphdef, head_graphdef, params, head, jnp.asarray(tokens), jnp.asarray(mask), context)
    low, high = (float(edge) for edge in np.percentile(logp, (20, 80)))
    batch = task.sampled(prompts, replies, np.asarray(logp), np.asarray(natural))
    host = task.rewards(batch, reply, replace(task.context, fluency_range=(low, high)))
    facts = turn_facts(dialogues, task.corpus.database, names, reply)
    judges = Judges(placeholder_table(placeholders, names, 832), np.float32([low, high]), params, head)
    reward = jax.jit(multiwoz_rewards(graphdef, head_graphdef))
    asked = Prompts(tokens[:, :context], mask[:, :context], rewards=facts)
    device = reward(tokens[:, context:], mask[:, context:], RewardContext(asked, judges, None))
    own = [overlap_on_host(said, prompt.reference) for said, prompt in zip(replies, prompts, strict=True)]
    return host, device, np.array(own)


@pytest.mark.parametrize("name", ["fluency", "faithfulness", "naturalness", "slots"])
def test_a_stream_is_the_same_on_device_and_host(judged, name):
    host, device, _ = judged
    column = host.names.index(name)
    rewards = np.concatenate([device.objectives, device.constraints], axis=-1)[..., column]
    np.testing.assert_array_equal(device.applies[:, column], host.applies[:, column])
    applies = host.applies[:, column]
    np.testing.assert_allclose(rewards[applies], host.rewards[applies][..., column], atol=1e-5)
    assert np.ptp(rewards[applies].sum(-1)) > 0.01  # the replies differ, so equality says something


def test_likeness_on_the_device_is_token_bleu(judged):
    _, device, own = judged
    np.testing.assert_allclose(device.objectives[..., 0].sum(-1), own, atol=1e-5)
    assert 0.05 < own.mean() < 0.95


def test_streams_without_a_device_form_are_refused():
    with pytest.raises(ValueError, match=r"constraints has inform, expected .* slots"):
        multiwoz_rewards(None, None, constraints=("inform",))  # type: ignore[arg-type]


def test_a_corpus_reply_that_does_not_fit_is_refused(task):
    dialogue = task.prompts(task.corpus.dialogues("dev")[0])
    with pytest.raises(ValueError, match=r"tokens, expected at most length = 2"):
        turn_facts([dialogue], task.corpus.database, ("NAME",), 2)
