"""Replies from a cache are those without one; what prompts share is read once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flax import nnx

from morejax.models import ActorCritic, DecoderConfig, split
from morejax.prefix_cache import PrefixCache
from morejax.rollout import SamplerConfig
from morejax.training.generate import Generator

GREEDY = SamplerConfig(max_new_tokens=5, temperature=0.0, eos_id=1)
FAMILIES = {
    "learned": DecoderConfig(vocab_size=64, max_length=64, layers=2, width=16, heads=2),
    "rotary, scanned": DecoderConfig(
        vocab_size=64, max_length=64, layers=2, width=16, heads=2, kv_heads=1, norm="rms", positions="rope", scan=True
    ),
    "shifted": DecoderConfig(
        vocab_size=64, max_length=64, layers=2, width=16, heads=2, positions="rope", shift=True, tied=False
    ),
    "window": DecoderConfig(vocab_size=64, max_length=64, layers=2, width=16, heads=2, positions="rope", window=4),
}


def build(core, family):
    """Random parameters, sharp enough that replies depend on their prompts."""
    graphdef, abstract = split(nnx.eval_shape(lambda: ActorCritic(FAMILIES[family], rngs=nnx.Rngs(0))))
    return graphdef, core.random_params(abstract, scale=0.5)


@pytest.fixture(scope="module")
def model(core):
    return build(core, "learned")


@pytest.fixture(scope="module")
def shared(model):
    """One cache, compiled once."""
    return PrefixCache(*model, room=128, step=8)


@pytest.fixture
def cache(shared):
    """The same, empty."""
    shared.clear()
    shared.read = shared.reused = 0
    return shared


def conversation(reply):
    """Prompts of five turns, each with all that was said before; then one that goes another way early on."""
    rng = np.random.default_rng(0)
    said = ()
    for length in (7, 1, 4, 18, 2):
        said = (*said, *map(int, rng.integers(2, 64, length)))
        answer = reply(said)
        yield said, answer
        said = (*said, *answer)
    yield (*said[:9], 5, 6), reply((*said[:9], 5, 6))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_reply_is_that_of_a_cold_start(core, family):
    model = build(core, family)
    cache = PrefixCache(*model, room=72, step=16)
    cold = Generator(model[0], GREEDY, batch=1, step=64)
    turns = list(conversation(lambda prompt: cache.reply(prompt, GREEDY)))
    assert [answer for _, answer in turns] == cold(model[1], [prompt for prompt, _ in turns])
    assert len({answer for _, answer in turns}) >= 4


def test_what_prompts_share_is_read_once(cache):
    turns = list(conversation(lambda prompt: cache.reply(prompt, GREEDY)))
    assert cache.read + cache.reused == sum(len(prompt) for prompt, _ in turns)
    # 32 tokens of the user's, the last token of each of five replies (drawn, not read) unless it ended the reply with
    # an end token, and three tokens where the last prompt leaves the others.
    assert 32 + 2 <= cache.read <= 32 + 5 + 3
    cache.clear()
    read = cache.read
    cache.reply(turns[0][0], GREEDY)
    assert cache.read == read + len(turns[0][0])


def test_the_same_prompt_twice_reads_one_token(cache):
    first = cache.reply((5, 6, 7), GREEDY)
    assert (cache.read, cache.reused) == (3, 0)
    assert cache.reply((5, 6, 7), GREEDY) == first
    assert (cache.read, cache.reused) == (4, 2)


def test_a_full_cache_starts_again(model):
    """Room for one prompt and a reply: padding of earlier blocks makes a longer one start over, with the same reply."""
    cache, cold = PrefixCache(*model, room=21, step=8), Generator(model[0], GREEDY, batch=1, step=64)
    prompt = (9, 8, 7, 6, 5)
    for _ in range(3):
        assert cache.reply(prompt, GREEDY) == cold(model[1], [prompt])[0]
        prompt = (*prompt, 11)
    assert cache.reused < cache.read


def test_settings_share_one_cache(cache):
    """A longer reply, or one drawn, continues from what another setting has read."""
    short = cache.reply((5, 6, 7), replace(GREEDY, max_new_tokens=2))
    assert cache.reply((5, 6, 7), GREEDY)[:2] == short
    drawn = replace(GREEDY, temperature=1.0)
    one, again, other = (cache.reply((5, 6, 7), drawn, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert cache.read == 3 + 1 + 3


def test_what_a_cache_refuses(model):
    cache = PrefixCache(*model, room=16, step=4)
    with pytest.raises(ValueError, match=r"prompt of 10 tokens \(filled up to 12\) and a reply of up to 5 .* 16 pos"):
        cache.reply(range(10), GREEDY)
    with pytest.raises(ValueError, match="at least one token, found none"):
        cache.reply((), GREEDY)
    with pytest.raises(ValueError, match=r"SamplerConfig\.samples is 2, expected 1"):
        cache.reply((5,), replace(GREEDY, samples=2))
    with pytest.raises(ValueError, match=r"SamplerConfig\.repetition_penalty is 1\.5, expected 1"):
        cache.reply((5,), replace(GREEDY, repetition_penalty=1.5))
