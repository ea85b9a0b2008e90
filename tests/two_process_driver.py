"""One of several processes that train together on a mesh over the devices of all.

    two_process_driver.py ADDRESS PROCESSES PROCESS OUT

Five steps of the tiny config on 4 devices a process, in every layout; process 0 writes the final states and the
metrics of all steps to OUT (npz).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from morejax.compile import compile_step
from morejax.hosts import initialise, is_main, place_global, place_local, to_host
from morejax.rollout import Rollout
from morejax.sharding import make_mesh, path_name, rollout_sharding, state_shardings

STEPS = 5
# In the first, gradients are summed over both processes; in the second, parameters are cut over them as well.
LAYOUTS = {"shard_map": (8, 1, 1), "jit": (1, 4, 2)}
NUMBERS = {"warmup_steps": 1, "learning_rate": 1e-3, "stop_kl": 10.0}


def load_builders() -> ModuleType:
    """The suite's builders of tiny states and rollouts."""
    spec = importlib.util.spec_from_file_location("builders", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    builders = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builders)
    return builders


def place_rollout(rollout: Rollout, mesh: Mesh, backend: str) -> Rollout:
    """As a host that sampled its own part under `shard_map`, as one that holds the whole under `jit`."""
    if backend == "jit":
        return place_global(rollout, rollout_sharding(mesh))
    count, index = jax.process_count(), jax.process_index()
    own = jax.tree.map(lambda leaf: np.split(np.asarray(leaf), count)[index], rollout)
    return place_local(own, rollout_sharding(mesh))


def train(builders: ModuleType, backend: str = "jit", mesh: Mesh | None = None) -> dict[str, np.ndarray]:
    """Final state and the metrics of every step, by name; without a mesh on one device."""
    config = builders.step_config()
    state = builders.build_state(config, builders.step_numbers(**NUMBERS))
    options = builders.fast_compile()
    step = compile_step(config, backend=backend, mesh=mesh, state=state, compiler_options=options)
    state = state if mesh is None else place_global(state, state_shardings(mesh, state))
    results = {}
    for seed in range(STEPS):
        rollout = builders.build_rollout(seed)
        state, metrics = step(state, rollout if mesh is None else place_rollout(rollout, mesh, backend))
        results |= named(to_host(metrics), f"metrics {seed}")
    return results | named(to_host(state), "state")


def named(tree, prefix: str) -> dict[str, np.ndarray]:
    """`prefix path/to/leaf` -> array."""
    return {f"{prefix} {path_name(path)}": leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def main(address: str, processes: str, process: str, out: str) -> None:
    builders = load_builders()
    jax.config.update("jax_num_cpu_devices", 4)
    initialise(address, int(processes), int(process), timeout=60)
    assert (jax.local_device_count(), jax.device_count()) == (4, 8)
    runs = {backend: train(builders, backend, make_mesh(*shape)) for backend, shape in LAYOUTS.items()}
    if is_main():
        arrays: dict[str, Any] = {f"{b} {name}": leaf for b, run in runs.items() for name, leaf in run.items()}
        np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
