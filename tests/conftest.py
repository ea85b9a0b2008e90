"""Test-wide JAX settings, in force before any backend starts, and builders of a tiny step for the core's tests."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import settings

from morejax.config import StepConfig, StepNumbers
from morejax.models import ActorCritic, CriticConfig, DecoderConfig, merge, split
from morejax.rollout import Rollout
from morejax.state import init_state
from morejax.step import train_step

_FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
_FULL = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


def _compile_fast():
    """Most of the suite's time is compilation: a third of it so, here, in workers and in child processes.

    XLA reads the variable when its first backend starts, and ends a process that names a flag it does not know.
    `core.full_compile` has everything switched on again.
    """
    flags = " ".join(f"--{name}={str(value).lower()}" for name, value in _FAST.items())
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    known = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=environment, capture_output=True)
    os.environ["XLA_FLAGS"] = flags if known.returncode == 0 else ""


if "XLA_FLAGS" not in os.environ:
    _compile_fast()

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation makes the first example of every property slow, and CI must not depend on the draw.
settings.register_profile("morejax", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("morejax")

STREAMS = {"objectives": ("likeness", "fluency", "faithful"), "constraints": ("inform", "success")}
SEQUENCES, CONTEXT, RESPONSE, VOCAB = 16, 6, 5, 64


@cache
def fast_compile():
    """Options that make XLA compile three times faster, None where this jax does not know them."""
    return _known(_FAST)


@cache
def full_compile():
    """Options that switch all optimisations on, None where this jax does not know them."""
    return _known(_FULL)


def _known(options):
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(0)
    except Exception:
        return None
    return options


def step_config(**changes):
    return StepConfig(**({"minibatches": 2, "epochs": 1} | STREAMS | changes))


def step_numbers(**changes):
    defaults = {"warmup_steps": 0, "stop_kl": 1e9, "thresholds": {"inform": 0.9, "success": 0.6}}
    return StepNumbers(**(defaults | changes))


@cache
def model_structure(config, critic, streams):
    """Graph and shapes of a model: all that its constructor is needed for."""
    return split(nnx.eval_shape(lambda: ActorCritic(config, critic=critic, streams=streams, rngs=nnx.Rngs(0))))


def build_model(streams=5, critic=None, tied=True, **changes):
    """A module with random parameters (numpy's: module initialisation op by op takes seconds)."""
    shape = {"vocab_size": VOCAB, "max_length": 32, "layers": 2, "width": 16, "heads": 2, "tied": tied, "scan": True}
    config = DecoderConfig(**(shape | changes))
    critic = CriticConfig(layers=1, width=8, heads=2, hidden=8) if critic is None else critic
    graphdef, params = model_structure(config, critic, streams)
    return merge(graphdef, random_params(params))


def random_params(abstract, seed=0, scale=0.1):
    """Noise, and noise around 1 for the scales of norms: a fresh model's logits and values are too close to 0."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + scale * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, abstract)


def build_state(config, numbers=None, *, tx=None, model=None):
    return init_state(model or build_model(len(config.streams)), config, numbers or step_numbers(), tx=tx)


def build_rollout(seed=0, sequences=SEQUENCES, streams=STREAMS):
    """Random everything: left-padded contexts, replies of all lengths, streams that apply here and there."""
    rng = np.random.default_rng(seed)
    objectives, constraints = len(streams["objectives"]), len(streams["constraints"])
    positions, count = (sequences, RESPONSE), objectives + constraints
    contexts, replies = rng.integers(2, CONTEXT + 1, sequences), rng.integers(1, RESPONSE + 1, sequences)
    tokens = rng.integers(2, VOCAB, (sequences, CONTEXT + RESPONSE)).astype(np.int32)
    ref_logps = np.asarray(jax.nn.log_softmax(0.5 * rng.normal(size=(*positions, VOCAB)).astype(np.float32)))
    applies = rng.random((sequences, count)) < 0.7
    applies[:4] = True  # somewhere in every minibatch

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return Rollout(
        tokens=tokens,
        context_mask=np.arange(CONTEXT)[None] >= CONTEXT - contexts[:, None],
        resp_mask=np.arange(RESPONSE)[None] < replies[:, None],
        logp_old=-4.2 + 0.3 * normal(*positions),
        values_old=0.3 * normal(*positions, count),
        objectives=normal(*positions, objectives),
        constraints=normal(*positions, constraints),
        applies=applies,
        logp_ref=np.take_along_axis(ref_logps, tokens[:, CONTEXT:, None], -1)[..., 0],
        ref_logps=ref_logps,
        scores=rng.random((sequences, count)).astype(np.float32),
        score_weights=(0.5 + rng.random((sequences, count))).astype(np.float32),
    )


def policy_logp(state, rollout):
    """f32[S, T]: log-probability of the response under the state's policy."""
    context = rollout.context_mask.shape[1]

    @jax.jit
    def forward(params):
        model = merge(state.graphdef, params)
        logps = jax.nn.log_softmax(model.logits(model.hidden(rollout.tokens, rollout.mask)[:, context - 1 : -1]))
        return jnp.take_along_axis(logps, rollout.tokens[:, context:, None], -1)[..., 0]

    return np.asarray(forward(state.params))


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory():
    """Compiled programs are kept until the process ends: some 6 GiB after all tests of one worker."""
    yield
    statm = Path("/proc/self/statm")
    if statm.exists() and int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > 2 * 2**30:
        jitted_step.cache_clear()
        jax.clear_caches()
        gc.collect()


KEEP_GRADIENT = optax.trace(decay=0.0)  # its state is the last gradient that it saw


@cache
def jitted_step(config):
    """`train_step` compiled once per config for all tests."""
    return jax.jit(partial(train_step, config=config), compiler_options=fast_compile())


@pytest.fixture(scope="session")
def core():
    """Builders of a tiny step: streams, config, numbers, model, state, rollout and the compiled step."""
    return SimpleNamespace(
        streams=STREAMS,
        shape=(SEQUENCES, CONTEXT, RESPONSE, VOCAB),
        config=step_config,
        numbers=step_numbers,
        model=build_model,
        random_params=random_params,
        state=build_state,
        rollout=build_rollout,
        logp=policy_logp,
        step=jitted_step,
        keep_gradient=KEEP_GRADIENT,
        fast_compile=fast_compile,
        full_compile=full_compile,
    )
