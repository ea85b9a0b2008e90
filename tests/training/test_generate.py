"""Replies come in the order of the prompts and, greedily, do not depend on who shares the batch."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from morejax.models import ActorCritic, split
from morejax.models.decoder import DecoderConfig
from morejax.models.split import merge
from morejax.rollout import SamplerConfig
from morejax.training.generate import Generator

EOS = 1


@pytest.fixture(scope="module")
def model():
    graphdef, params = split(
        ActorCritic(DecoderConfig(vocab_size=64, max_length=48, layers=1, width=16, heads=2), rngs=nnx.Rngs(0))
    )
    # Larger embeddings make the greedy choices depend on the prompt.
    return graphdef, jax.tree.map(lambda leaf: leaf * 8, params)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [tuple(int(t) for t in rng.integers(2, 64, size)) for size in rng.integers(1, 24, 21)]


@pytest.fixture(scope="module")
def greedy(model):
    return Generator(model[0], SamplerConfig(max_new_tokens=6, temperature=0.0), batch=4, step=12)


def written_slowly(model, prompt, count, length=40):
    """Greedy decoding by a whole forward pass a token, without a cache."""

    @jax.jit
    def following(params, tokens, mask):
        network = merge(model[0], params)
        return network.logits(network.hidden(tokens, mask))[0].argmax(-1)

    ids = list(prompt)
    while len(ids) - len(prompt) < count:
        tokens = np.array([ids + [0] * (length - len(ids))])
        ids.append(int(following(model[1], tokens, np.arange(length)[None] < len(ids))[len(ids) - 1]))
        if ids[-1] == EOS:
            break
    return tuple(ids[len(prompt) :])


def test_replies_are_the_models_own_in_prompt_order(model, greedy, prompts):
    replies = greedy(model[1], prompts)
    assert len(set(replies)) > len(prompts) // 2
    for index in (0, 7, 20):
        assert replies[index] == written_slowly(model, prompts[index], 6)


def test_a_greedy_reply_does_not_depend_on_the_batch(model, greedy, prompts):
    replies = greedy(model[1], prompts)
    assert greedy(model[1], prompts[::-1]) == replies[::-1]
    assert greedy(model[1], prompts[3:5]) == replies[3:5]


def test_seed_matters_at_temperature_one_only(model, greedy, prompts):
    sampled = greedy.with_settings(temperature=1.0)
    assert sampled(model[1], prompts, seed=1) == sampled(model[1], prompts, seed=1)
    assert sampled(model[1], prompts, seed=1) != sampled(model[1], prompts, seed=2)
    assert greedy(model[1], prompts, seed=1) == greedy(model[1], prompts, seed=2)


def test_a_reply_ends_with_the_end_token_or_at_the_limit(model, prompts):
    sampled = Generator(model[0], SamplerConfig(max_new_tokens=6, temperature=4.0, eos_id=EOS), batch=8, step=32)
    replies = [reply for seed in range(20) for reply in sampled(model[1], prompts, seed=seed)]
    assert all(1 <= len(reply) <= 6 for reply in replies)
    assert all(EOS not in reply[:-1] for reply in replies)
    short = [reply for reply in replies if len(reply) < 6]
    assert short
    assert all(reply[-1] == EOS for reply in short)


def test_batches_are_counted_and_may_be_left(model, prompts):
    class Stop(Exception):
        pass

    class Bar:
        updates = ()

        def update(self, done, *, tokens):
            self.updates += ((done, tokens),)

    def leave():
        if bar.updates:
            raise Stop

    bar = Bar()
    config = SamplerConfig(max_new_tokens=3, temperature=0.0, eos_id=63)
    replies = Generator(model[0], config, batch=16, step=32)(model[1], prompts, progress=bar)
    assert [done for done, _ in bar.updates] == [16, 21]
    assert sum(tokens for _, tokens in bar.updates) == sum(map(len, replies))
    bar.updates = ()
    with pytest.raises(Stop):
        Generator(model[0], config, batch=16, step=32, between=leave)(model[1], prompts, progress=bar)
    assert len(bar.updates) == 1


def test_no_prompts_no_replies(model, greedy):
    assert greedy(model[1], []) == []


def test_prompts_of_any_length_are_served_by_a_few_compilations(model):
    """Lengths 1 to 24 in steps of 12 are two shapes, however often and in whatever number they come."""
    rng = np.random.default_rng(1)
    generator = Generator(model[0], SamplerConfig(max_new_tokens=2, temperature=0.0), batch=4, step=12)
    for _ in range(3):
        sizes = rng.integers(1, 25, rng.integers(1, 12))
        generator(model[1], [tuple(map(int, rng.integers(2, 64, size))) for size in [*sizes, 1, 24]])
    assert generator._sampler._cache_size() == 2


def test_several_replies_to_each_prompt(model, prompts):
    sampled = Generator(model[0], SamplerConfig(max_new_tokens=6, samples=3, eos_id=EOS), batch=4, step=24)
    replies = sampled(model[1], prompts[:5], seed=3)
    assert len(replies) == 15
    groups = [replies[3 * index : 3 * index + 3] for index in range(5)]
    assert all(len(set(group)) > 1 for group in groups)
    greedy = sampled.with_settings(temperature=0.0)(model[1], prompts[:5])
    single = Generator(model[0], SamplerConfig(max_new_tokens=6, temperature=0.0, eos_id=EOS), batch=4, step=24)
    assert greedy == [reply for reply in single(model[1], prompts[:5]) for _ in range(3)]
