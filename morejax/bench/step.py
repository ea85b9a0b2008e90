"""What constraints, objectives and weights cost on top of plain PPO: `train_step` on one rollout, variants in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax

from morejax.bench.measure import Program, compile_program, interleaved, machine, matmul, ratio, utilisation
from morejax.bench.profile import profile
from morejax.bench.sizes import SIZES, Size, update_flops
from morejax.bench.workload import make_rollout, make_state, step_config
from morejax.config import StepConfig
from morejax.step import train_step

VARIANTS = ("plain", "more", "exact", "exact_streams")

_OF_GRADIENTS = ("grad_norm/", "share/", "alignment/", "cosine/", "gram")


@dataclass(frozen=True)
class StepBench:
    """What is measured, and how often."""

    size: str = "S"
    variants: tuple[str, ...] = VARIANTS
    critic: str = "shared"
    """shared, or own: a trunk of the policy's size."""
    minibatches: int = 4
    kl: str = "k3"
    norm_at: str = "virtual"
    accumulation_steps: int = 1
    dtype: str = "float32"
    scan: bool = False
    """Layers by `lax.scan`."""
    rounds: int = 7


def compile_variant(config: StepConfig, state: Any, rollout: Any, *, streams: bool) -> Program:
    """`train_step` under jit with a donated state.

    Args:
      config: structure of the step.
      state, rollout: its arguments, abstract ones will do.
      streams: return the metrics of gradients by stream. Plain PPO has none, and must not be charged for them: what is
        not returned is not computed.
    """

    def step(state, rollout):
        state, metrics = train_step(state, rollout, config)
        if not streams:
            metrics = {name: value for name, value in metrics.items() if not name.startswith(_OF_GRADIENTS)}
        return state, metrics

    return compile_program(jax.jit(step, donate_argnums=0), state, rollout)


def run(bench: StepBench) -> Iterator[dict[str, Any]]:
    """One record a variant; ratios are to `plain` where it is among them."""
    size = SIZES[bench.size]
    programs, calls = {}, {}
    for variant in bench.variants:
        programs[variant], calls[variant] = _prepare(bench, size, variant)
    product, product_flops = matmul(bench.dtype)
    timings = interleaved(calls | {"matmul": product}, bench.rounds)
    least = update_flops(size, bench.critic)
    for variant in bench.variants:
        timing, program = timings[variant], programs[variant]
        record = _record(bench, variant, program) | {"model_flops": least, "rounds": bench.rounds}
        record |= utilisation(timing, least, program.flops, timings["matmul"], product_flops)
        if "plain" in programs:
            base = programs["plain"]
            record |= {
                "ms_ratio": round(ratio(timing, timings["plain"]), 3),
                "flops_ratio": round(program.flops / base.flops, 4),
                "temp_ratio": round(program.temp_bytes / base.temp_bytes, 4),
            }
        yield record | machine()


def _prepare(bench: StepBench, size: Size, variant: str) -> tuple[Program, Callable[[], Any]]:
    config = step_config(
        variant,
        minibatches=bench.minibatches,
        kl=bench.kl,
        norm_at=bench.norm_at,
        accumulation_steps=bench.accumulation_steps,
    )
    state = make_state(size, config, bench.critic, dtype=bench.dtype, scan=bench.scan)
    rollout = make_rollout(size, config)
    program = compile_variant(config, state, rollout, streams=variant != "plain")
    held = [state]

    def call():
        held[0], metrics = program.run(held[0], rollout)
        return metrics

    return program, call


def _record(bench: StepBench, variant: str, program: Program) -> dict[str, Any]:
    return {
        "bench": "step",
        "size": bench.size,
        "variant": variant,
        "critic": bench.critic,
        "minibatches": bench.minibatches,
        "accumulation_steps": bench.accumulation_steps,
        "kl": bench.kl,
        "dtype": bench.dtype,
        "layers_by": "scan" if bench.scan else "unrolled",
        "flops": program.flops,
        "temp_bytes": program.temp_bytes,
        "compile_s": round(program.compile_seconds, 2),
    }


def profiles(bench: StepBench) -> Iterator[dict[str, Any]]:
    """One record an operation of each variant, the dearest first."""
    for variant in bench.variants:
        program, call = _prepare(bench, SIZES[bench.size], variant)
        jax.block_until_ready(call())
        head = {"bench": "profile", "size": bench.size, "variant": variant, "critic": bench.critic}
        for record in profile(call, program.run.as_text()):
            yield head | record | machine()


def sweep(bench: StepBench, batches: tuple[int, ...], depths: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Time, memory and compile time of `more` against the batch and against the depth, layers unrolled and scanned.

    Args:
      bench: size, critic and rounds.
      batches: sequences, multiples of `bench.minibatches`.
      depths: layers.
    """
    base = SIZES[bench.size]
    points = [(replace(base, sequences=count), bench.scan, "batch") for count in batches]
    points += [(replace(base, layers=depth), scan, "depth") for scan in (True, False) for depth in depths]
    for size, scan, axis in points:
        program, call = _prepare(replace(bench, scan=scan), size, "more")
        timing = interleaved({"more": call}, bench.rounds)["more"]
        yield (
            _record(replace(bench, scan=scan), "more", program)
            | {
                "bench": "sweep",
                "axis": axis,
                "sequences": size.sequences,
                "layers": size.layers,
                "ms": round(timing.milliseconds, 2),
                "rounds": bench.rounds,
            }
            | machine()
        )
