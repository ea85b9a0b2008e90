"""Several processes, one program: joining them, placing arrays on a mesh that spans them, reading back, agreeing.

On a pod of accelerators every host runs the same script. Each process sees its own devices as local and all devices
as one global mesh; an array on that mesh lies partly in other processes, so it is placed and read by the functions
here. What the processes must agree on (is a file there? has a signal come? did a reward fail?) goes through
`exchange` and `on_main`. With one process all of them still work, so a training loop needs no second form.

Source: https://docs.jax.dev/en/latest/multi_process.html
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

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


# Seconds that process 0 outlives the others after an error: their runtime ends them when its service is gone.
_LINGER = 3.0


class HostError(RuntimeError):
    """Another process failed; the message names it and repeats what it said."""


def initialise(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = 300,
    heartbeat: int = 100,
) -> None:
    """Join this process to the others; call it before anything else touches a device.

    Args:
      coordinator: `host:port` of process 0; `auto` asks the cluster (Slurm, Open MPI, Kubernetes, TPU pods); None
        reads JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, asks the cluster when its variables speak
        of more than one process, and otherwise leaves this process alone.
      processes: number of processes, needed with `host:port`.
      process: number of this process, from 0, needed with `host:port`.
      timeout: seconds to wait for the others; JAX aborts a process (status 134) that waits in vain.
      heartbeat: seconds of silence after which a process is taken for dead and all others are ended.

    Raises:
      ValueError: an incomplete or contradictory description of the processes.
      RuntimeError: a device was in use already.
    """
    if coordinator is None:
        coordinator, processes, process = _from_environment(processes, process, os.environ)
    if coordinator is None:
        return
    if coordinator == "auto":
        _ask_cluster(timeout, heartbeat)
        return
    if processes is None or process is None:
        raise ValueError(
            f"coordinator {coordinator} needs the number of processes and of this one, found processes={processes} "
            f"and process={process}; `auto` asks the cluster"
        )
    if not 0 <= process < processes:
        raise ValueError(f"process must lie between 0 and processes - 1 = {processes - 1}, not {process}")
    # What to look for, should it wait in vain.
    print(f"process {process} of {processes} joins at {coordinator}, within {timeout} s", file=sys.stderr, flush=True)
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        cluster_detection_method="deactivate",
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=heartbeat,
    )


def _ask_cluster(timeout: int, heartbeat: int) -> None:
    try:
        jax.distributed.initialize(initialization_timeout=timeout, heartbeat_timeout_seconds=heartbeat)
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
    return ("auto" if launched_together(environment) else None), None, None


def launched_together(environment: Mapping[str, str] = os.environ) -> bool:
    """Do JAX's variables or a launcher's (Slurm, Open MPI, Kubernetes, TPU pods) speak of several processes?"""
    if environment.get("JAX_COORDINATOR_ADDRESS"):
        return True
    return any(read(environment[name]) > 1 for name, read in _LAUNCHERS.items() if environment.get(name))


def _number(name: str, environment: Mapping[str, str]) -> int | None:
    value = environment.get(name)
    if value is not None and not value.isdecimal():
        raise ValueError(f"environment variable {name} must be a whole number, not {value!r}")
    return None if value is None else int(value)


def is_main() -> bool:
    """Is this the process that writes files and progress?"""
    return jax.process_index() == 0


def say(message: str) -> None:
    """Print a line on stderr, from the main process alone."""
    if is_main():
        print(message, file=sys.stderr, flush=True)


def exchange(work: Callable[[], Any]) -> list[Any]:
    """Let every process do its own work, and tell all of them what each one found.

    A process that fails would leave the others waiting at their next common computation; here all of them learn of it.

    Args:
      work: returns a JSON value; may differ from process to process, but must not itself wait for the others.

    Returns:
      The processes' values, in their order.

    Raises:
      HostError: another process failed and this one did not.
      Exception: what this process's own work raised.
    """
    if jax.process_count() == 1:
        return [work()]
    found, own = _attempt(work)
    outcomes = [json.loads(line) for line in _gather_bytes(json.dumps(found).encode())]
    if own is not None:
        raise own
    failed = [f"process {index}: {outcome['error']}" for index, outcome in enumerate(outcomes) if "error" in outcome]
    if failed:
        raise HostError("; ".join(failed))
    return [outcome["value"] for outcome in outcomes]


def _attempt(work: Callable[[], Any]) -> tuple[dict[str, Any], Exception | None]:
    try:
        return {"value": work()}, None
    except Exception as error:
        return {"error": str(error) or type(error).__name__}, error


def together(work: Callable[[], Any]) -> Any:
    """What this process's own work returns, whatever that is, once all have done theirs; fails as `exchange` does."""
    kept: list[Any] = []
    exchange(lambda: kept.append(work()))
    return kept[0]


def on_main(work: Callable[[], Any]) -> Any:
    """What the main process's work returns (a JSON value), in every process; its failure is everybody's.

    For whatever reads or changes files that the processes share: they all see one answer, and go on only when it is
    done.
    """
    return exchange(lambda: work() if is_main() else None)[0]


def leave(status: int) -> NoReturn:
    """End this process; after an error without waiting for the others, who may be waiting for this one.

    JAX ends a process by waiting until all have come to their end. When one fails alone, the others never do: its
    leaving at once closes its connections, and that ends their waiting (at the latest after `heartbeat` seconds).
    """
    alone = not jax.distributed.is_initialized()
    if alone or status == 0 or status >= 128:
        raise SystemExit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    if is_main():
        time.sleep(_LINGER)
    os._exit(status)


def finish(main: Callable[[], int]) -> NoReturn:
    """Run a program and `leave` with the status that it returns, or with 1 and the traceback when it raises."""
    try:
        status = main()
    except Exception:
        traceback.print_exc()
        status = 1
    leave(status)


def _gather_bytes(data: bytes) -> list[bytes]:
    """Every process's bytes, in every process."""
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    # Powers of two: few shapes, so few compilations.
    room = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
    room[: len(data)] = np.frombuffer(data, np.uint8)
    gathered = multihost_utils.process_allgather(room)
    return [bytes(row[:size]) for row, size in zip(gathered, sizes, strict=True)]


def own_share(count: int, process: int | None = None) -> range:
    """A process's part (this one's by default) of `count` things in a row: equal parts, the processes in order."""
    process = jax.process_index() if process is None else process
    return range(count * process // jax.process_count(), count * (process + 1) // jax.process_count())


def gather_rows(tree: Any, counts: Sequence[int]) -> Any:
    """The rows of all processes, those of process p before those of p + 1, in every process.

    Args:
      tree: numpy arrays `[counts[this process], ...]`.
      counts: rows of every process; all know all of them.

    Returns:
      numpy arrays `[sum(counts), ...]`.
    """
    if len(counts) == 1:
        return tree
    most = max(counts)

    def gather(own: np.ndarray) -> np.ndarray:
        padded = np.pad(own, [(0, most - len(own))] + [(0, 0)] * (own.ndim - 1))
        parts = multihost_utils.process_allgather(padded)
        return np.concatenate([part[:count] for part, count in zip(parts, counts, strict=True)])

    return jax.tree.map(gather, tree)


def place_global(tree: Any, sharding: Any) -> Any:
    """Place a tree that every process holds whole, and alike; each device takes its part.

    Args:
      tree: arrays, numpy's or of this process (a fresh state, a rollout drawn from one seed), or already cut over the
        processes. Nothing checks that they hold the same: a mesh of different copies trains on nonsense.
      sharding: one sharding for all leaves, or a tree of them (`state_shardings`).

    Returns:
      The tree as global arrays.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
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
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
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
