"""Time, memory and FLOPs of compiled programs, and what this machine can reach."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from morejax.bench.flops import count_flops


@dataclass
class Timing:
    """Repeats of one program: seconds on the clock, and of all the process's threads."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def milliseconds(self) -> float:
        """Median on the clock."""
        return 1e3 * statistics.median(self.wall)

    @property
    def cpu_milliseconds(self) -> float:
        """Median of CPU time: what other processes on the same cores disturb less."""
        return 1e3 * statistics.median(self.cpu)


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Timing]:
    """Time programs in turns, so that a slow minute of the machine hits all of them alike.

    Args:
      calls: programs by name; each does its work, and returns what to wait for.
      rounds: turns of each. A turn is two calls, of which the second counts: the first finds the caches full of others'
        data.

    Raises:
      ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"--rounds must be at least 1, not {rounds}")
    timings = {name: Timing() for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            jax.block_until_ready(call())
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            timings[name].wall.append(time.perf_counter() - wall)
            timings[name].cpu.append(time.process_time() - cpu)
    return timings


def ratio(timing: Timing, base: Timing) -> float:
    """Median over the rounds of one program's time over another's in the same round."""
    return statistics.median(mine / other for mine, other in zip(timing.wall, base.wall, strict=True))


@dataclass(frozen=True)
class Program:
    """A compiled function and what its compiler knows about it."""

    run: Any
    flops: float
    temp_bytes: int
    compile_seconds: float


def compile_program(function: Callable[..., Any], *arguments: Any, unknown_trips: float = 1.0) -> Program:
    """Compile a jitted function for these arguments.

    Args:
      function: from `jax.jit`.
      arguments: concrete or abstract.
      unknown_trips: turns of a loop whose number XLA does not know, for the FLOPs.

    Returns:
      The program; `flops` counts loops as often as they run, `temp_bytes` is what XLA plans for intermediate values.
    """
    began = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    seconds = time.perf_counter() - began
    return Program(
        run=compiled,
        flops=count_flops(compiled.as_text(), unknown_trips),
        temp_bytes=int(compiled.memory_analysis().temp_size_in_bytes),
        compile_seconds=seconds,
    )


def matmul(dtype: str) -> tuple[Callable[[], Any], float]:
    """A product of two square matrices as large as keeps this device busy, and its FLOPs."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    left, right = (jax.random.normal(jax.random.key(k), (size, size), jnp.dtype(dtype)) for k in (0, 1))
    return partial(jax.jit(jnp.matmul), left, right), 2.0 * size**3


def utilisation(
    timing: Timing, least: float, compiled: float, product: Timing, product_flops: float
) -> dict[str, float]:
    """Milliseconds of a program, and its FLOPs over what the device can do.

        mfu = model FLOPs / (time x peak),   hfu = compiled FLOPs / (time x peak)

    Args:
      timing: of the program.
      least: its model FLOPs.
      compiled: FLOPs of its matrix products as compiled.
      product, product_flops: timing and FLOPs of `matmul`, from the same process.

    Returns:
      `ms`, `mfu`, `hfu`, `peak_gflops` on the clock; on CPU also `cpu_ms` and `mfu_cpu`, in CPU seconds of all
      threads: what is left of a measurement while other processes share the cores.
    """
    peak = peak_gflops(product, product_flops)
    found = {
        "ms": round(timing.milliseconds, 2),
        "mfu": round(least / (timing.milliseconds * 1e6) / peak, 4),
        "hfu": round(compiled / (timing.milliseconds * 1e6) / peak, 4),
        "peak_gflops": round(peak, 1),
    }
    if jax.default_backend() == "cpu":
        found["cpu_ms"] = round(timing.cpu_milliseconds, 2)
        found["mfu_cpu"] = round(least / (timing.cpu_milliseconds * 1e-3) / (product_flops / min(product.cpu)), 4)
    return found


def peak_gflops(timing: Timing, flops: float) -> float:
    """The best repeat of `matmul` in GFLOP/s: the peak that utilisation is measured against."""
    return flops / min(timing.wall) / 1e9


def machine() -> dict[str, Any]:
    """Device, cores, versions, and how busy the machine is with other work."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "jax": jax.__version__,
    }
