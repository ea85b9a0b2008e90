"""Sampling beside torch `transformers.generate`: the same weights, prompts and lengths, in turns in one process."""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from morejax.bench.measure import Timing, compile_program, interleaved, machine, matmul, peak_gflops, ratio
from morejax.bench.sizes import SIZES, Size, head_flops, trunk_flops
from morejax.bench.workload import make_prompts
from morejax.models import ActorCritic, hf, split
from morejax.models.split import Params
from morejax.rollout import SamplerConfig, compile_sampler

ENGINES = ("morejax", "transformers")


@dataclass(frozen=True)
class SamplerBench:
    """What is measured, and how often: replies of full length at temperature 1, without filters."""

    size: str = "S"
    engines: tuple[str, ...] = ENGINES
    dtype: str = "float32"
    scan: bool = False
    rounds: int = 7


def run(bench: SamplerBench) -> Iterator[dict[str, Any]]:
    """One record for each engine; `ratio` is its tokens a second over those of `transformers` in the same rounds,
    `cpu_ratio` the same in CPU seconds: what is left of a measurement, on one core, while others share the machine."""
    size = SIZES[bench.size]
    graphdef, params = _model(size, bench)
    prompts = make_prompts(size)
    calls: dict[str, Callable[[], Any]] = {}
    facts: dict[str, Any] = {}
    if "morejax" in bench.engines:
        calls["morejax"], facts = _ours(size, graphdef, params, prompts)
    if "transformers" in bench.engines and _has_torch():
        calls["transformers"] = _theirs(size, bench, params, np.asarray(prompts.tokens))
    product, product_flops = matmul(bench.dtype)
    timings = interleaved(calls | {"matmul": product, "stream": _stream()}, bench.rounds)
    machine_rates = peak_gflops(timings["matmul"], product_flops) * 1e9, _STREAM_BYTES / min(timings["stream"].wall)
    for engine in calls:
        timing = timings[engine]
        record = {
            "bench": "sampler",
            "size": bench.size,
            "engine": engine,
            "dtype": bench.dtype,
            "tokens_per_s": round(1e3 * size.sequences * size.response / timing.milliseconds, 1),
            "ms": round(timing.milliseconds, 3),
            "cpu_ms": round(timing.cpu_milliseconds, 2),
            "rounds": bench.rounds,
        } | _against_floor(size, bench.dtype, timing.milliseconds, *machine_rates)
        if "transformers" in timings:
            record |= _against(timing, timings["transformers"])
        yield record | (facts if engine == "morejax" else {}) | machine() | {"cores": _cores()}


def _cores() -> int | None:
    """Cores that this process may use: `taskset` gives it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _against(timing: Timing, theirs: Timing) -> dict[str, float]:
    """How many times faster than the other engine, on the clock and in CPU seconds of all threads."""
    seconds = zip(theirs.cpu, timing.cpu, strict=True)
    return {
        "ratio": round(ratio(theirs, timing), 3),
        "cpu_ratio": round(statistics.median(other / mine for other, mine in seconds), 3),
    }


# ---- the floor -----------------------------------------------------------------------------------------------------


def prefill_flops(size: Size) -> float:
    """Least FLOPs of reading the prompts and of the first token's logits.

    Of the last block only keys and values are needed before the last position: 20 D^2 of its 24 D^2 FLOPs a position
    and its attention fall away.
    """
    before = size.context - 1
    unread = size.sequences * (20 * before * size.width**2 + 2 * before**2 * size.width)
    return trunk_flops(size, size.context) - unread + head_flops(size) / size.response


def decode_flops(size: Size) -> float:
    """Least FLOPs of the tokens after the first; the last one drawn is not read."""
    trunk = trunk_flops(size, size.length - 1) - trunk_flops(size, size.context)
    return trunk + head_flops(size) * (size.response - 1) / size.response


def decode_bytes(size: Size, dtype: str) -> float:
    """Least bytes that decoding reads: in every step all weights once, and the keys and values that are there.

        (T - 1) (12 L D^2 + V D) b + 2 S L D b sum_{p = C+1}^{C+T-1} p

    with b bytes a number.
    """
    steps, width = size.response - 1, jnp.dtype(dtype).itemsize
    weights = steps * (12 * size.layers * size.width**2 + size.vocab * size.width)
    filled = sum(range(size.context + 1, size.length))
    return float(width * (weights + 2 * size.sequences * size.layers * size.width * filled))


def floor_seconds(size: Size, dtype: str, flops: float, bandwidth: float) -> tuple[float, float, float]:
    """Least time on a machine of so many FLOP/s and bytes/s.

    Returns:
      seconds of the prefill (arithmetic), and of decoding by arithmetic and by memory: the larger of the two binds.
    """
    return prefill_flops(size) / flops, decode_flops(size) / flops, decode_bytes(size, dtype) / bandwidth


def _against_floor(size: Size, dtype: str, milliseconds: float, flops: float, bandwidth: float) -> dict[str, Any]:
    prefill, arithmetic, memory = floor_seconds(size, dtype, flops, bandwidth)
    floor = 1e3 * (prefill + max(arithmetic, memory))
    found = {
        "mfu": (prefill_flops(size) + decode_flops(size)) / (milliseconds * 1e-3 * flops),
        "peak_gflops": flops / 1e9,
        "stream_gb_per_s": bandwidth / 1e9,
        "floor_ms": floor,
        "floor_share": floor / milliseconds,
    }
    binds = "memory" if memory > arithmetic else "arithmetic"
    return {name: float(f"{value:.4g}") for name, value in found.items()} | {"decode_bound": binds}


_STREAM_BYTES = 2**28


def _stream() -> Callable[[], Any]:
    """A sum over more memory than any cache holds."""
    return partial(jax.jit(jnp.sum), jnp.ones(_STREAM_BYTES // 4, jnp.float32))


# ---- the engines ---------------------------------------------------------------------------------------------------


def _model(size: Size, bench: SamplerBench) -> tuple[nnx.GraphDef, Params]:
    decoder = size.decoder(bench.dtype, bench.scan)
    graphdef, params = jax.jit(lambda: split(ActorCritic(decoder, rngs=nnx.Rngs(0))))()
    return graphdef, jax.device_put(params, jax.devices()[0])


def _ours(size: Size, graphdef: nnx.GraphDef, params: Params, prompts: Any) -> tuple[Callable, dict[str, Any]]:
    # No token ends a reply: both engines draw the same number of them.
    sampler = compile_sampler(graphdef, SamplerConfig(max_new_tokens=size.response, eos_id=-1))
    arguments = (params, prompts.tokens, prompts.mask, jax.random.key(0))
    program = compile_program(sampler, *arguments, unknown_trips=size.response - 1)
    facts = {
        "flops": program.flops,
        "temp_bytes": program.temp_bytes,
        "compile_s": round(program.compile_seconds, 2),
    }
    return partial(program.run, *arguments), facts


def _has_torch() -> bool:
    if importlib.util.find_spec("torch") is not None:
        return True
    print("engine transformers left out: torch is not installed (pip install 'morejax[parity]')", file=sys.stderr)
    return False


def _theirs(size: Size, bench: SamplerBench, params: Params, prompts: np.ndarray) -> Callable[[], Any]:
    """`generate` with its defaults, on the weights as our export writes them."""
    import torch
    import transformers

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        hf.save_pretrained(folder, size.decoder(), params)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, bench.dtype))
    model.to(device).eval()
    tokens = torch.from_numpy(prompts.astype(np.int64)).to(device)
    lengths = {"max_new_tokens": size.response, "min_new_tokens": size.response}
    settings = lengths | {"do_sample": True, "top_k": 0, "pad_token_id": 0}

    def generate() -> np.ndarray:
        with torch.inference_mode():
            drawn = model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)
        found = drawn.cpu().numpy()
        assert found.shape == (size.sequences, size.length), found.shape
        return found

    return generate
