"""The shop: judged replies a second inside a compiled program; complete dialogues a second, with and without model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from morejax.bench.measure import compile_program, interleaved, machine
from morejax.bench.sizes import SIZES
from morejax.iterate import Prompts, RewardContext
from morejax.models import ActorCritic, split
from morejax.rollout import SamplerConfig
from morejax.tasks.shop.agents import Agent, model_agent, oracle_agent
from morejax.tasks.shop.contacts import make_contacts
from morejax.tasks.shop.context import ContextConfig, Serialiser
from morejax.tasks.shop.dialogues import generate
from morejax.tasks.shop.on_device import ShopFacts, shop_judges, shop_rewards, turn_facts
from morejax.tasks.shop.play import Outcomes, play
from morejax.tasks.shop.tokenizer import EOS, vocabulary
from morejax.tasks.shop.user_model import SETTINGS
from morejax.training.generate import Generator

PARTS = ("environment", "oracle", "model")
STEP = 64
"""Lengths of prompts are rounded up to it."""


@dataclass(frozen=True)
class ShopBench:
    """What is measured.

    Attributes:
        size: of the model that plays, with the shop's vocabulary and lengths.
        parts: out of `PARTS`.
        dialogues: played by each agent.
        sequences: replies that the environment judges at once.
        rounds: repeats of the environment.
        dtype, scan: of the model.
    """

    size: str = "S"
    parts: tuple[str, ...] = PARTS
    dialogues: int = 256
    sequences: int = 256
    rounds: int = 7
    dtype: str = "float32"
    scan: bool = False


def run(bench: ShopBench) -> Iterator[dict[str, Any]]:
    """One record for each part.

    environment: state, right answer, parsing, six constraints and three objectives of a batch of corpus replies;
    oracle: the simulator with an agent that costs nearly nothing; model: with a random one, all of whose replies are
    of full length, the dearest case.
    """
    parts: dict[str, Callable[[ShopBench], dict[str, Any]]] = {
        "environment": _environment,
        "oracle": _oracle,
        "model": _model,
    }
    for name in bench.parts:
        yield {"bench": "shop", "part": name} | parts[name](bench) | machine()


def _environment(bench: ShopBench) -> dict[str, Any]:
    length = ContextConfig().max_reply
    arguments = _judged_batch(bench.sequences, length)
    program = compile_program(jax.jit(shop_rewards()), *arguments)
    timing = interleaved({"environment": partial(program.run, *arguments)}, bench.rounds)["environment"]
    return {
        "sequences": bench.sequences,
        "length": length,
        "ms": round(timing.milliseconds, 2),
        "cpu_ms": round(timing.cpu_milliseconds, 2),
        "steps_per_s": round(1e3 * bench.sequences / timing.milliseconds),
        "temp_bytes": program.temp_bytes,
        "compile_s": round(program.compile_seconds, 2),
    }


def _judged_batch(count: int, length: int) -> tuple[jax.Array, jax.Array, RewardContext]:
    """Corpus replies with their facts, i32[S, T], bool[S, T]."""
    made = generate(0, count, "train")
    prompts = [turn for turns in Serialiser().prompts(made) for turn in turns][:count]
    facts = ShopFacts(*jax.tree.map(jnp.asarray, tuple(turn_facts(made, prompts, length))))
    # The reference is the very reply that is judged: padded alike.
    context = RewardContext(
        Prompts(jnp.zeros((count, 1), jnp.int32), jnp.ones((count, 1), bool), rewards=facts), shop_judges(), None
    )
    return facts.reference, facts.reference_mask, context


def _oracle(bench: ShopBench) -> dict[str, Any]:
    return _played(oracle_agent, bench.dialogues)


def _model(bench: ShopBench) -> dict[str, Any]:
    context, size = ContextConfig(), SIZES[bench.size]
    positions = -(-context.max_context // STEP) * STEP + context.max_reply
    decoder = replace(size.decoder(bench.dtype, bench.scan), vocab_size=len(vocabulary()), max_length=positions)
    graphdef, params = split(ActorCritic(decoder, rngs=nnx.Rngs(0)))
    sampler = SamplerConfig(max_new_tokens=context.max_reply, eos_id=vocabulary()[EOS], temperature=1.0)
    agent = model_agent(Generator(graphdef, sampler, batch=min(128, bench.dialogues), step=STEP), params)
    _play(agent, bench.dialogues)
    return {"size": bench.size, "dtype": bench.dtype} | _played(agent, bench.dialogues)


def _play(agent: Agent, dialogues: int) -> Outcomes:
    setting = SETTINGS["patient"]
    return play(agent, make_contacts(0, dialogues, setting, days=min(14, dialogues)), setting)


def _played(agent: Agent, dialogues: int) -> dict[str, Any]:
    began, cpu = time.perf_counter(), time.process_time()
    outcomes = _play(agent, dialogues)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    turns = int(outcomes.turns.sum())
    return {
        "dialogues": dialogues,
        "turns": turns,
        "dialogues_per_s": round(dialogues / seconds, 1),
        "turns_per_s": round(turns / seconds, 1),
        "cpu_s": round(cpu, 2),
        "agent_share": round(outcomes.agent_seconds / seconds, 3),
        "response_tokens": round(float(np.sum(outcomes.response_tokens)) / turns, 1),
        "ms_per_response": round(1e3 * outcomes.agent_seconds / turns, 2),
    }
