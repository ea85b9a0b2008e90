"""The streams on the host and inside a compiled iteration give the same numbers."""

from __future__ import annotations

import random
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from morejax.iterate import Frozen, Prompts, RewardContext, compile_iteration
from morejax.rollout import SamplerConfig
from morejax.tasks.shop import rewards
from morejax.tasks.shop.context import Serialiser
from morejax.tasks.shop.dialogues import generate
from morejax.tasks.shop.language import concision, token_budget
from morejax.tasks.shop.on_device import ShopFacts, shop_judges, shop_rewards, turn_facts
from morejax.tasks.shop.oracle import oracle_reply
from morejax.tasks.shop.state import take
from morejax.tasks.shop.tokenizer import EOS, decode, encode_batch, vocabulary
from morejax.tasks.streams import SampledBatch, SampledTurn, StreamContext, compute_streams, get_stream
from morejax.training.batching import left_pad

STREAMS = ("concision", "empathy", "overlap", "conversion", *rewards.CONSTRAINTS)
LENGTH = 96


@cache
def sampled():
    """Half oracle replies, half replies of human agents, of twelve dialogues."""
    made, serialiser = generate(11, 12, "train"), Serialiser()
    prompts = [turn for turns in serialiser.prompts(made) for turn in turns]
    rng = random.Random(0)
    oracle = [oracle_reply(question, rng) for question in made.questions()]
    replies = [
        (*encode_batch(serialiser.tokenizer, [oracle[p.row]])[0], vocabulary()[EOS]) if p.row % 2 else p.reference
        for p in prompts
    ]
    return made, serialiser, prompts, replies


def host_streams():
    made, serialiser, prompts, replies = sampled()
    turns = [
        SampledTurn(p.dialogue, p.dialogue.turns[p.turn], decode(serialiser.tokenizer, r), r, {})  # type: ignore[arg-type]
        for p, r in zip(prompts, replies, strict=True)
    ]
    batch = SampledBatch((tuple(turns),))
    rows = [turn.turn.row for turn in batch.turns]  # type: ignore[attr-defined]
    assert rows == [p.row for p in prompts]
    return compute_streams(STREAMS, batch, StreamContext(extra={"shop": made}), LENGTH)


def device_streams(core):
    made, _, prompts, replies = sampled()
    tokens = np.zeros((len(replies), LENGTH), np.int32)
    for number, reply in enumerate(replies):
        tokens[number, : len(reply)] = reply
    mask = np.arange(LENGTH)[None, :] < np.array([len(reply) for reply in replies])[:, None]
    facts = turn_facts(made, prompts, LENGTH)
    facts = ShopFacts(*jax.tree.map(jnp.asarray, tuple(facts)))
    context = RewardContext(
        Prompts(jnp.zeros((len(replies), 1), jnp.int32), jnp.ones((len(replies), 1), bool), rewards=facts),
        shop_judges(),
        None,
    )
    reward_fn = shop_rewards(STREAMS[:4])
    return jax.jit(reward_fn, compiler_options=core.fast_compile())(jnp.asarray(tokens), jnp.asarray(mask), context)


def test_host_and_device_agree(core):
    host, device = host_streams(), device_streams(core)
    values = np.concatenate([device.objectives, device.constraints], axis=-1).sum(axis=1)
    for column, name in enumerate(STREAMS):
        applies = host[name].applies
        np.testing.assert_array_equal(device.applies[:, column], applies, err_msg=name)
        np.testing.assert_allclose(values[applies, column], host[name].score[applies], atol=1e-5, err_msg=name)
    oracle = np.arange(len(values)) % 2 == 1
    for name in rewards.CONSTRAINTS:
        assert host[name].score[oracle & host[name].applies].min(initial=1.0) == 1.0


def test_streams_are_registered_with_their_kind():
    assert {get_stream(name).kind for name in rewards.CONSTRAINTS} == {"constraint"}
    assert {get_stream(name).kind for name in STREAMS[:4]} == {"objective"}


def test_concision_falls_with_the_length():
    made = generate(12, 5, "train")
    gold = take(made.gold, [0])
    budget = int(token_budget(gold)[0])
    assert concision(np.array([budget]), gold)[0] == 1.0
    assert concision(np.array([2 * budget]), gold)[0] == pytest.approx(0.5)


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match="objectives has wit"):
        shop_rewards(objectives=("wit",))
    with pytest.raises(ValueError, match="fluency need graphdef"):
        shop_rewards(objectives=("fluency",))
    made, _, prompts, _ = sampled()
    with pytest.raises(ValueError, match="expected at most length = 3"):
        turn_facts(made, prompts, 3)
    with pytest.raises(ValueError, match="extra\\['shop'\\] is NoneType"):
        get_stream("action").function(SampledBatch(((_turn(prompts[0]),),)), StreamContext())


def test_an_iteration_samples_judges_and_trains_on_the_device(core):
    made, serialiser, prompts, _ = sampled()
    prompts, length = prompts[:8], 12
    chosen = {"objectives": ("concision", "empathy", "overlap"), "constraints": rewards.CONSTRAINTS}
    tokens, mask = left_pad([p.direct for p in prompts], 352, 0)
    facts = jax.tree.map(jnp.asarray, turn_facts(made, prompts, LENGTH))
    config = core.config(**chosen, kl="none")
    numbers = core.numbers(thresholds=dict.fromkeys(rewards.CONSTRAINTS, 0.5))
    vocab = len(serialiser.tokenizer)
    state = core.state(config, numbers, model=core.model(9, vocab_size=vocab, max_length=384))
    run = compile_iteration(
        shop_rewards(),
        config,
        SamplerConfig(max_new_tokens=length, eos_id=vocabulary()[EOS]),
        compiler_options=core.fast_compile(),
    )
    before = int(state.step)
    state, metrics = run(
        state, Prompts(jnp.asarray(tokens), jnp.asarray(mask), rewards=facts), Frozen(None, None, rewards=shop_judges())
    )
    assert int(state.step) > before
    assert all(np.isfinite(value).all() for value in metrics.values())


def _turn(prompt):
    return SampledTurn(prompt.dialogue, prompt.dialogue.turns[0], "", prompt.reference, {})  # type: ignore[arg-type]
