"""Several processes, one program: joining them, placing arrays on a mesh that spans them, and reading back.

On a pod of accelerators every host runs the same script. Each process sees its own devices as local and all devices
as one global mesh; an array on that mesh lies partly in other processes, so it is placed and read by the functions
here. With one process all of them still work, so a training loop needs no second form.

Source: https://docs.jax.dev/en/latest/multi_process.html
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

# Variables that a launcher sets, and how to read the number of its processes from them.
_LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": int,
    "OMPI_COMM_WORLD_SIZE": int,
    "TPU_WORKER_HOSTNAMES": lambda hosts: len(hosts.split(",")),
}


def initialise(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None, *, timeout: int = 300
) -> None:
    """Join this process to the others; call it before anything else touches a device.

    Args:
      coordinator: `host:port` of process 0; `auto` asks the cluster (Slurm, Open MPI, Kubernetes, TPU pods); None
        reads JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, asks the cluster when its variables speak
        of more than one process, and otherwise leaves this process alone.
      processes: number of processes, needed with `host:port`.
      process: number of this process, from 0, needed with `host:port`.
      timeout: seconds to wait for the others.

    Raises:
      ValueError: an incomplete or contradictory description of the processes.
      RuntimeError: the others did not come in time, or a device was in use already.
    """
    if coordinator is None:
        coordinator, processes, process = _from_environment(processes, process, os.environ)
    if coordinator is None:
        return
    if coordinator == "auto":
        _ask_cluster(timeout)
        return
    if processes is None or process is None:
        raise ValueError(
            f"coordinator {coordinator} needs the number of processes and of this one, found processes={processes} "
            f"and process={process}; `auto` asks the cluster"
        )
    if not 0 <= process < processes:
        raise ValueError(f"process must lie between 0 and processes - 1 = {processes - 1}, not {process}")
    jax.distributed.initialize(
        coordinator, processes, process, cluster_detection_method="deactivate", initialization_timeout=timeout
    )


def _ask_cluster(timeout: int) -> None:
    try:
        jax.distributed.initialize(initialization_timeout=timeout)
    except ValueError as error:
        raise ValueError(
            f"coordinator = auto: found no cluster that JAX knows ({error}); give host:port, processes and process"
        ) from error


def _from_environment(
    processes: int | None, process: int | None, environment: Mapping[str, str]
) -> tuple[str | None, int | None, int | None]:
    """Coordinator (`auto` under a launcher of several processes), number of processes and of this one."""
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if address is not None:
        processes = _number("JAX_NUM_PROCESSES", environment) if processes is None else processes
        process = _number("JAX_PROCESS_ID", environment) if process is None else process
        return address, processes, process
    if processes is not None or process is not None:
        raise ValueError(f"processes={processes} and process={process} were given without a coordinator (host:port)")
    several = any(read(environment[name]) > 1 for name, read in _LAUNCHERS.items() if environment.get(name))
    return ("auto" if several else None), None, None


def _number(name: str, environment: Mapping[str, str]) -> int | None:
    value = environment.get(name)
    if value is not None and not value.isdecimal():
        raise ValueError(f"environment variable {name} must be a whole number, not {value!r}")
    return None if value is None else int(value)


def is_main() -> bool:
    """Is this the process that writes files and progress?"""
    return jax.process_index() == 0


def place_global(tree: Any, sharding: Any) -> Any:
    """Place a tree that every process holds whole, and alike; each device takes its part.

    Args:
      tree: arrays, numpy's or of this process (a fresh state, a rollout drawn from one seed). Nothing checks that the
        processes hold the same: a mesh of different copies trains on nonsense.
      sharding: one sharding for all leaves, or a tree of them (`state_shardings`).

    Returns:
      The tree as global arrays.
    """
    return _map_shardings(_place_whole, tree, sharding)


def place_local(tree: Any, sharding: Any) -> Any:
    """Place a tree of which every process holds its own part: process p's rows, before those of p + 1.

    Args:
      tree: arrays `[S / processes, ...]` (sequences that this host has sampled).
      sharding: one sharding for all leaves, or a tree of them (`rollout_sharding`).

    Returns:
      The tree as global arrays `[S, ...]`.
    """
    return _map_shardings(jax.make_array_from_process_local_data, tree, sharding)


def to_host(tree: Any) -> Any:
    """The whole tree as numpy arrays, in every process; a PRNG key comes as its key data.

    Every process must call it: what is cut over processes is gathered. Replicated leaves are read from this
    process's own devices, without communication.
    """
    return jax.tree.map(_read, tree)


def _map_shardings(place, tree: Any, sharding: Any) -> Any:
    if isinstance(sharding, Sharding):
        return jax.tree.map(lambda leaf: place(sharding, leaf), tree)
    return jax.tree.map(lambda leaf, where: place(where, leaf), tree, sharding)


def _place_whole(sharding: Sharding, leaf: Any) -> jax.Array:
    if _is_key(leaf):
        data = _place_whole(sharding, jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _read(leaf: Any) -> np.ndarray:
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
