"""A whole PPO iteration: rollout, reference, rewards, one epoch; as one program, and as its parts called one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from morejax.bench.measure import Program, compile_program, interleaved, machine, matmul, ratio, utilisation
from morejax.bench.sizes import SIZES, Size, iteration_flops
from morejax.bench.workload import make_frozen, make_prompts, make_state, rewards, step_config
from morejax.compile import compile_step
from morejax.config import StepConfig
from morejax.iterate import build_rollout, compile_iteration, draw_replies
from morejax.rollout import SamplerConfig

CRITICS = ("own", "shared")
FORMS = ("program", "parts")


@dataclass(frozen=True)
class IterationBench:
    """What is measured, and how often. K = 4 objectives and M = 2 constraints, one epoch."""

    size: str = "S"
    critics: tuple[str, ...] = CRITICS
    forms: tuple[str, ...] = FORMS
    """program: `iterate`, one XLA program; parts: sampler, judges and step, three."""
    minibatches: int = 4
    kl: str = "k3"
    dtype: str = "float32"
    scan: bool = False
    rounds: int = 7


def run(bench: IterationBench) -> Iterator[dict[str, Any]]:
    """One record for each critic and form; `parts_ratio` is one program's time over that of its parts."""
    size = SIZES[bench.size]
    programs, calls = {}, {}
    for critic in bench.critics:
        for form in bench.forms:
            programs[critic, form], calls[f"{critic}/{form}"] = _prepare(bench, size, critic, form)
    product, product_flops = matmul(bench.dtype)
    timings = interleaved(calls | {"matmul": product}, bench.rounds)
    for (critic, form), parts in programs.items():
        timing, least = timings[f"{critic}/{form}"], iteration_flops(size, critic)
        compiled = sum(part.flops for part in parts)
        record = {
            "bench": "iteration",
            "size": bench.size,
            "variant": critic,
            "form": form,
            "minibatches": bench.minibatches,
            "kl": bench.kl,
            "dtype": bench.dtype,
            "tokens_per_s": round(1e3 * size.sequences * size.response / timing.milliseconds, 1),
            "flops": compiled,
            "temp_bytes": max(part.temp_bytes for part in parts),
            "model_flops": least,
            "compile_s": round(sum(part.compile_seconds for part in parts), 2),
            "rounds": bench.rounds,
        } | utilisation(timing, least, compiled, timings["matmul"], product_flops)
        if form == "program" and f"{critic}/parts" in timings:
            record["parts_ratio"] = round(ratio(timing, timings[f"{critic}/parts"]), 3)
        yield record | machine()


def _prepare(bench: IterationBench, size: Size, critic: str, form: str) -> tuple[list[Program], Callable[[], Any]]:
    config = step_config("more", minibatches=bench.minibatches, kl=bench.kl)
    # No token ends a reply: every iteration draws the same number of them.
    sampler = SamplerConfig(max_new_tokens=size.response, eos_id=-1)
    state = make_state(size, config, critic, dtype=bench.dtype, scan=bench.scan)
    frozen, prompts = make_frozen(size, dtype=bench.dtype, scan=bench.scan), make_prompts(size)
    build = _one_program if form == "program" else _parts
    programs, advance = build(config, sampler, state, prompts, frozen)
    held = [state]

    def call():
        held[0], metrics = advance(held[0])
        return metrics

    return programs, call


def _one_program(config: StepConfig, sampler: SamplerConfig, state, prompts, frozen):
    """`iterate`, and the function state -> (state, metrics) that runs it."""
    program = compile_program(
        compile_iteration(rewards, config, sampler), state, prompts, frozen, unknown_trips=sampler.max_new_tokens - 1
    )
    return [program], lambda state: program.run(state, prompts, frozen)


def _parts(config: StepConfig, sampler: SamplerConfig, state, prompts, frozen):
    """Sampler, judges and step, each a program of its own, with the arrays staying on the device."""
    judge = partial(build_rollout, reward_fn=rewards, config=config)
    draw = partial(draw_replies, config=sampler)
    drawn, _ = jax.eval_shape(draw, state, prompts)
    rollout = jax.eval_shape(judge, state, prompts, frozen, drawn)
    programs = [
        compile_program(jax.jit(draw), state, prompts, unknown_trips=sampler.max_new_tokens - 1),
        compile_program(jax.jit(judge), state, prompts, frozen, drawn),
        compile_program(compile_step(config), state, rollout),
    ]

    def advance(state):
        drawn, key = programs[0].run(state, prompts)
        rollout = programs[1].run(state, prompts, frozen, drawn)
        return programs[2].run(state.replace(key=key), rollout)

    return programs, advance
