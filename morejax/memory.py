"""Bytes per device of a training step on a mesh that need not exist.

    python -m morejax.memory --size 7B --devices 64
    python -m morejax.memory --size 7B --devices 8 --fsdp 8 --tensor 1 --lora 16

State and rollout are shapes only, the devices are fake ones of the CPU: the step is lowered and compiled ahead of
time, and nothing of the model is ever allocated. The compiler is the CPU's, so temporary bytes are an estimate from
above of what an accelerator needs (bfloat16 is computed in float32 here, and nothing is fused as tightly); arguments,
results and what is donated are exact.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from jax.sharding import Mesh

from morejax.compile import compile_step
from morejax.config import StepConfig, StepNumbers
from morejax.models import ActorCritic, CriticConfig, DecoderConfig, LoraConfig
from morejax.optimizers import Name, optimizer
from morejax.rollout import Rollout
from morejax.sharding import abstract_mesh, describe_layout, make_mesh, rollout_sharding, state_shardings, tree_bytes
from morejax.state import TrainState, init_state

_LARGE = {"dtype": "bfloat16", "scan": True, "remat": "full"}
SIZES = {
    "124M": DecoderConfig(vocab_size=50304, max_length=1024, layers=12, width=768, heads=12, **_LARGE),
    "1.5B": DecoderConfig(vocab_size=50304, max_length=1024, layers=48, width=1600, heads=25, **_LARGE),
    "7B": DecoderConfig(vocab_size=32000, max_length=2048, layers=32, width=4096, heads=32, **_LARGE),
}
# fsdp and tensor of each size; the other devices go to data.
_MESHES = {"124M": (1, 1), "1.5B": (8, 1), "7B": (8, 4)}
# An estimator, not the exact KL: the reference's whole distribution would be the largest array of a rollout.
STEP = StepConfig(kl="k3", minibatches=4)
MIB = 2**20


@dataclass(frozen=True)
class Flags:
    """What to lay out, and on what."""

    size: Literal["124M", "1.5B", "7B"] = "124M"
    """Model: GPT-2's smallest or largest, or 32 layers of width 4096."""
    lora: int = 0
    """Rank of adapters on all matrices, trained instead of the weights: these are kept once, in bfloat16, for policy,
    reference and critic; 0: everything is trained, the reference is a second model and the critic a small one."""
    optimizer: Name = "adam"
    """Of `morejax.optimizers`."""
    devices: int = 8
    """Number of devices."""
    fsdp: int | None = None
    """Cut parameters and sequences this many times; default 1 for 124M, 8 for the others."""
    tensor: int | None = None
    """Cut matrices this many times; default 4 for 7B, 1 for the others."""
    sequences: int | None = None
    """Sequences of a rollout; default: one for each minibatch and each device that sequences are cut over."""
    context: int = 512
    """Context tokens of a sequence."""
    response: int = 512
    """Response tokens of a sequence."""
    layout: bool = False
    """Print where every parameter lies instead, without compiling."""
    json: bool = False
    """Print one line of JSON instead of the table."""


def mesh_shape(flags: Flags) -> tuple[int, int, int]:
    """(data, fsdp, tensor).

    Raises:
      ValueError: the devices do not divide.
    """
    fsdp = _MESHES[flags.size][0] if flags.fsdp is None else flags.fsdp
    tensor = _MESHES[flags.size][1] if flags.tensor is None else flags.tensor
    if flags.devices % (fsdp * tensor):
        raise ValueError(f"--devices {flags.devices} is not a multiple of --fsdp {fsdp} x --tensor {tensor}")
    return flags.devices // (fsdp * tensor), fsdp, tensor


def abstract_state(size: str, lora: int = 0, name: Name = "adam") -> TrainState:
    """A state of shapes."""
    numbers = StepNumbers(thresholds=dict.fromkeys(STEP.constraints, 0.5))
    config = replace(SIZES[size], lora=LoraConfig(rank=lora))
    critic = CriticConfig(kind="base" if lora else "own")

    def init() -> TrainState:
        model = ActorCritic(config, critic=critic, streams=len(STEP.streams), rngs=nnx.Rngs(0))
        state = init_state(model, STEP, numbers, tx=optimizer(name))
        # What is not trained needs no more precision than it is computed in.
        return state.replace(frozen=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.frozen))

    return jax.eval_shape(init)


def abstract_rollout(sequences: int, context: int, response: int) -> Rollout:
    """A rollout of shapes."""
    objectives, constraints = len(STEP.objectives), len(STEP.constraints)

    def array(*shape: int, dtype=jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((sequences, *shape), dtype)

    return Rollout(
        tokens=array(context + response, dtype=jnp.int32),
        context_mask=array(context, dtype=bool),
        resp_mask=array(response, dtype=bool),
        logp_old=array(response),
        logp_ref=array(response),
        values_old=array(response, objectives + constraints),
        objectives=array(response, objectives),
        constraints=array(response, constraints),
        applies=array(objectives + constraints, dtype=bool),
    )


@dataclass(frozen=True)
class Account:
    """Bytes on each device, and what it took to find them."""

    size: str
    parameters: int
    """Number of them, on all devices together."""
    mesh: tuple[int, int, int]
    """(data, fsdp, tensor)."""
    sequences: int
    tokens: int
    """Of a sequence."""
    params: int
    """That are trained."""
    frozen: int
    """Weights under the adapters."""
    optimizer: int
    rollout: int
    donated: int
    """Of the old state, taken over by the new one."""
    temporary: int
    """Activations, gradients, logits: the most at one time, by the CPU's compiler."""
    total: int
    """Arguments, results that are not donated, and temporary."""
    reference: int
    """The reference's own parameters in bfloat16, which the step does not read; 0 where it is the frozen weights."""
    compile_seconds: float


def account(flags: Flags, mesh: Mesh, compiler_options: Mapping[str, Any] | None = None) -> Account:
    """Compile the step for a mesh of `mesh_shape(flags)` and read off its memory."""
    state = abstract_state(flags.size, flags.lora, flags.optimizer)
    shape = mesh_shape(flags)
    sequences = flags.sequences or shape[0] * shape[1] * STEP.minibatches
    rollout = abstract_rollout(sequences, flags.context, flags.response)
    step = compile_step(STEP, mesh=mesh, state=state, compiler_options=compiler_options)
    start = time.perf_counter()
    compiled = step.lower(state, rollout).compile()
    seconds = time.perf_counter() - start
    memory, shardings = compiled.memory_analysis(), state_shardings(mesh, state)
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Account(
        size=flags.size,
        parameters=sum(leaf.size for leaf in jax.tree.leaves((state.params, state.frozen))),
        mesh=shape,
        sequences=sequences,
        tokens=flags.context + flags.response,
        params=tree_bytes(state.params, shardings.params),
        frozen=tree_bytes(state.frozen, shardings.frozen),
        optimizer=tree_bytes(state.opt_state, shardings.opt_state),
        rollout=tree_bytes(rollout, jax.tree.map(lambda _: rollout_sharding(mesh), rollout)),
        donated=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        total=memory.argument_size_in_bytes + kept + memory.temp_size_in_bytes,
        reference=0 if flags.lora else tree_bytes(state.params["trunk"], shardings.params["trunk"]) // 2,
        compile_seconds=round(seconds, 1),
    )


def table(found: Account) -> str:
    """The account as a text."""
    mesh = " x ".join(f"{axis}={size}" for axis, size in zip(("data", "fsdp", "tensor"), found.mesh, strict=True))
    lines = [
        f"{found.size}: {found.parameters / 1e9:.2f} billion parameters on {mesh}, "
        f"{found.sequences} sequences of {found.tokens} tokens in {STEP.minibatches} minibatches",
        f"{'on each device':24}{'MiB':>10}",
    ]
    for name in ("params", "frozen", "optimizer", "rollout", "temporary", "total", "donated", "reference"):
        lines.append(f"{name:24}{getattr(found, name) / MIB:10.1f}")
    return "\n".join([*lines, f"compiled in {found.compile_seconds} s, nothing allocated"]) + "\n"


def main(arguments: list[str] | None = None) -> None:
    flags = tyro.cli(Flags, args=arguments, prog="python -m morejax.memory", description=__doc__)
    shape = mesh_shape(flags)
    if flags.layout:
        sys.stdout.write(
            describe_layout(abstract_mesh(*shape), abstract_state(flags.size, flags.lora, flags.optimizer))
        )
        return
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", flags.devices)
    found = account(flags, make_mesh(*shape))
    sys.stdout.write(json.dumps(asdict(found)) + "\n" if flags.json else table(found))


if __name__ == "__main__":
    main()
