"""Compile the step: `jit` on a mesh, or `pmap` over devices, with equal results."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from morejax.config import StepConfig
from morejax.rollout import Rollout
from morejax.sharding import rollout_sharding, state_shardings
from morejax.state import TrainState
from morejax.step import train_step

Step = Callable[[TrainState, Rollout], tuple[TrainState, dict[str, jax.Array]]]


def compile_step(
    config: StepConfig,
    *,
    backend: str = "jit",
    mesh: Mesh | None = None,
    state: TrainState | None = None,
    donate: bool = True,
) -> Step:
    """`train_step` with the config bound, compiled once for each shape of rollout.

    Args:
      config: structure of the step.
      backend: `jit` (one device, or a mesh) or `pmap` (data-parallel over all local devices).
      mesh: for `jit`: a `(data, fsdp, tensor)` mesh; the rollout is cut along data and fsdp, parameters by the rules
        of `morejax.sharding`. None keeps everything on one device.
      state: needed with a mesh, to derive the state's shardings (an abstract state will do). Before the first step
        place the real one with `jax.device_put(state, state_shardings(mesh, state))`: one that lies elsewhere is
        taken, but the second step then compiles again.
      donate: give the old state's memory to the new one; the old state is then gone.

    Returns:
      A function (state, rollout) -> (state, metrics). Under `pmap` the state has a leading device axis (`replicate`)
      and the rollout is cut by the function itself.

    Raises:
      ValueError: unknown backend; a mesh with `pmap`; a mesh without a state.
    """
    donated = (0,) if donate else ()
    if backend == "pmap":
        if mesh is not None:
            raise ValueError("backend = pmap is data-parallel only: use backend = jit with a mesh for fsdp or tensor")
        return _pmap_step(config, donated)
    if backend != "jit":
        raise ValueError(f"backend must be jit or pmap, not {backend!r}")
    function = partial(_step, config=config)
    if mesh is None:
        return jax.jit(function, donate_argnums=donated)
    if state is None:
        raise ValueError("compile_step on a mesh needs the state (or jax.eval_shape of it) to lay it out")
    shardings = state_shardings(mesh, state)
    return jax.jit(
        function,
        in_shardings=(shardings, rollout_sharding(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=donated,
    )


def _step(state: TrainState, rollout: Rollout, *, config: StepConfig):
    return train_step(state, rollout, config)


def _pmap_step(config: StepConfig, donated: tuple[int, ...]) -> Step:
    mapped = jax.pmap(
        lambda state, rollout: train_step(state, rollout, config, axis_name="data"),
        axis_name="data",
        donate_argnums=donated,
    )

    def step(state: TrainState, rollout: Rollout):
        new, metrics = mapped(state, split_devices(rollout))
        # Every device holds the same numbers; indexing a pmapped array would gather it.
        return new, jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], metrics)

    return step


def replicate(state: TrainState, devices: int | None = None) -> TrainState:
    """One copy of the state on each local device, on a leading axis, as `pmap` wants it."""
    chosen = np.array(jax.local_devices()[:devices])
    # Placed as `pmap` places its own output: copies that lie elsewhere cost a second compilation at the second step.
    sharding = NamedSharding(Mesh(chosen, ("data",)), PartitionSpec("data"))

    def copy(tree):
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(chosen), *leaf.shape)), tree)

    return jax.jit(copy, out_shardings=sharding)(state)


def unreplicate(state: TrainState) -> TrainState:
    """The first device's copy, on that device."""
    first = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, state)
    return jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree))(first)


def split_devices(tree: Any, devices: int | None = None) -> Any:
    """Cut the leading axis S of every leaf into `[devices, S / devices]`.

    Raises:
      ValueError: S is not a multiple of the number of devices.
    """
    count = devices or jax.local_device_count()

    def cut(leaf):
        if leaf.shape[0] % count:
            raise ValueError(f"{leaf.shape[0]} sequences do not divide over {count} devices")
        return leaf.reshape(count, leaf.shape[0] // count, *leaf.shape[1:])

    return jax.tree.map(cut, tree)
