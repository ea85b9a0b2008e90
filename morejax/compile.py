"""Compile the step: `jit` on a mesh, `shard_map` over its data axis, or `pmap` over devices, with equal results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from morejax.config import StepConfig
from morejax.rollout import Rollout
from morejax.sharding import make_mesh, rollout_sharding, state_shardings
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
    compiler_options: Mapping[str, Any] | None = None,
) -> Step:
    """`train_step` with the config bound, compiled once for each shape of rollout.

    All backends train alike. `jit` leaves the cut of the work to the compiler and takes any mesh; `shard_map` and
    `pmap` are data-parallel only and sum over devices where `train_step` says so.

    Args:
      config: structure of the step.
      backend: `jit` (one device, or a mesh), `shard_map` (every device keeps the whole state and its part of the
        sequences) or `pmap` (the same over the devices of one process, in the older form with a device axis).
      mesh: a `(data, fsdp, tensor)` mesh. `jit` cuts the rollout along data and fsdp and the parameters by the rules
        of `morejax.sharding`, None keeps everything on one device. `shard_map` needs fsdp = tensor = 1, None takes
        all devices.
      state: needed by `jit` with a mesh, to derive the state's shardings, and for adapters on frozen weights (LoRA),
        which are then neither donated nor returned: others may share them. An abstract state will do. Before the first
        step place the real one with `jax.device_put(state, state_shardings(mesh, state))`: one that lies
        elsewhere is taken, but the second step then compiles again.
      donate: give the old state's memory to the new one; the old state is then gone.
      compiler_options: XLA options of this compilation, for `jit` and `shard_map`.

    Returns:
      A function (state, rollout) -> (state, metrics). Under `pmap` the state has a leading device axis (`replicate`)
      and the rollout is cut by the function itself.

    Raises:
      ValueError: an unknown backend; a mesh, options or several processes with `pmap`; `shard_map` on a mesh with
        fsdp or tensor above 1; `jit` on a mesh without a state.
    """
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be {', '.join(_BACKENDS)}, not {backend!r}")
    donated = (0,) if donate else ()
    if backend == "pmap":
        return _pmap_step(config, mesh, donated, compiler_options)
    options = None if compiler_options is None else dict(compiler_options)

    def compiled(function: Step, **layout) -> Step:
        return jax.jit(function, donate_argnums=donated, compiler_options=options, **layout)

    if state is not None and state.frozen is not None:
        if backend != "jit":
            raise ValueError(
                f"backend = {backend} takes no model with adapters: use backend = jit, which takes any mesh"
            )
        return SharedBase(partial(_step, config=config), (rollout_sharding,), mesh, state, donate, options)
    if backend == "shard_map":
        return _shard_map_step(config, mesh or make_mesh(jax.device_count()), compiled)
    function = partial(_step, config=config)
    if mesh is None:
        return compiled(function)
    if state is None:
        raise ValueError("compile_step on a mesh needs the state (or jax.eval_shape of it) to lay it out")
    shardings = state_shardings(mesh, state)
    return compiled(
        function,
        in_shardings=(shardings, rollout_sharding(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
    )


_BACKENDS = ("jit", "shard_map", "pmap")


class SharedBase:
    """A jitted `(state, *others) -> (state, metrics)` that leaves the state's frozen weights where they are.

    They go in as an argument of their own, which is not donated, and never come out: one set of arrays serves the
    policy, its reference and its critic, whatever becomes of the state.

    Args:
      function: takes and returns a whole state.
      others: shardings of the other arguments, each a function of the mesh or a sharding; without a mesh not read.
      mesh: None keeps everything on one device.
      state: real or abstract, for its shardings.
      donate: give the old state's memory (but for the frozen weights) to the new one.
      options: of the compiler.
    """

    def __init__(
        self,
        function: Callable[..., tuple[TrainState, Any]],
        others: Sequence[Any],
        mesh: Mesh | None,
        state: TrainState,
        donate: bool,
        options: dict[str, Any] | None,
    ):
        layout: dict[str, Any] = {}
        if mesh is not None:
            shardings = state_shardings(mesh, state)
            own = shardings.replace(frozen=None)
            placed = [place(mesh) if callable(place) else place for place in others]
            layout["in_shardings"] = (own, shardings.frozen, *placed)
            layout["out_shardings"] = (own, NamedSharding(mesh, PartitionSpec()))

        def apart(state: TrainState, frozen: Any, *rest: Any):
            new, metrics = function(state.replace(frozen=frozen), *rest)
            return new.replace(frozen=None), metrics

        donated = (0,) if donate else ()
        self._jitted = jax.jit(apart, donate_argnums=donated, compiler_options=options, **layout)

    def __call__(self, state: TrainState, *others: Any):
        new, metrics = self._jitted(state.replace(frozen=None), state.frozen, *others)
        return new.replace(frozen=state.frozen), metrics

    def lower(self, state: TrainState, *others: Any):
        """As of a jitted function."""
        return self._jitted.lower(state.replace(frozen=None), state.frozen, *others)


def _step(state: TrainState, rollout: Rollout, *, config: StepConfig, axis_name: str | None = None):
    return train_step(state, rollout, config, axis_name)


def _shard_map_step(config: StepConfig, mesh: Mesh, compiled: Callable[..., Step]) -> Step:
    if mesh.shape["fsdp"] > 1 or mesh.shape["tensor"] > 1:
        raise ValueError(
            f"backend = shard_map is data-parallel only, found a mesh with fsdp={mesh.shape['fsdp']} and "
            f"tensor={mesh.shape['tensor']}: use backend = jit for fsdp or tensor"
        )
    whole, cut = PartitionSpec(), PartitionSpec("data")
    mapped = jax.shard_map(
        partial(_step, config=config, axis_name="data"),
        mesh=mesh,
        in_specs=(whole, cut),
        out_specs=whole,
        # Checked, a gradient of replicated parameters would come summed over the devices already; the step sums it
        # itself, as it must under `pmap`.
        check_vma=False,
    )
    replicated = NamedSharding(mesh, whole)
    return compiled(mapped, in_shardings=(replicated, rollout_sharding(mesh)), out_shardings=replicated)


def _pmap_step(
    config: StepConfig, mesh: Mesh | None, donated: tuple[int, ...], compiler_options: Mapping[str, Any] | None
) -> Step:
    if mesh is not None:
        raise ValueError("backend = pmap is data-parallel only: use backend = jit with a mesh for fsdp or tensor")
    if compiler_options:
        raise ValueError("backend = pmap takes no compiler_options: use backend = shard_map, which does the same")
    if jax.process_count() > 1:
        raise ValueError(
            f"backend = pmap drives the devices of one process, found {jax.process_count()} processes: use backend = "
            "shard_map or jit with a mesh over all devices"
        )
    mapped = jax.pmap(partial(_step, config=config, axis_name="data"), axis_name="data", donate_argnums=donated)

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
