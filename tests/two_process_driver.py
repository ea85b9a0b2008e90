"""One of several processes that train together on a mesh over the devices of all.

    two_process_driver.py ADDRESS PROCESSES PROCESS OUT

Five steps of the tiny config on 4 devices a process, in every layout; process 0 writes the final states and the
metrics of all steps to OUT (npz). Before that the processes exchange what they find (OUT.exchange.json), and carry a
checkpoint in OUT.checkpoints/from over to a mesh of their own in OUT.checkpoints/to.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from morejax.compile import compile_step
from morejax.hosts import (
    HostError,
    exchange,
    gather_rows,
    initialise,
    is_main,
    on_main,
    place_global,
    place_local,
    to_host,
    together,
)
from morejax.rollout import Rollout
from morejax.sharding import make_mesh, path_name, rollout_sharding, state_shardings
from morejax.state import TrainState
from morejax.training.checkpoint import Checkpoints

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


def exchanges() -> dict[str, Any]:
    """What the processes learn from each other; only process 1 fails."""

    def fail_in_one() -> None:
        if not is_main():
            raise OSError("disk full")

    index = jax.process_index()
    found: dict[str, Any] = {"each": exchange(lambda: "x" * 10**index), "main": on_main(lambda: 7 + index)}
    # A program that both must take part in, and a failure in between.
    found["rows"] = gather_rows(np.full((index + 1, 2), index), [1, 2]).tolist()
    try:
        together(fail_in_one)
    except (HostError, OSError) as error:
        found["failure"] = f"{type(error).__name__}: {error}"
    return {"found": exchange(lambda: found), "devices": jax.device_count()}


def carry_over(folder: Path, state: TrainState) -> None:
    """Restore onto a mesh over both processes, and save from there."""
    placed = place_global(state, state_shardings(make_mesh(1, 4, 2), state))
    source, target = Checkpoints(folder / "from"), Checkpoints(folder / "to")
    restored, meta = source.restore(placed)
    assert not restored.params["trunk"]["embedding"].is_fully_addressable
    target.save(meta["step"] + 1, restored, {"step": meta["step"] + 1})
    source.close()
    target.close()


def main(address: str, processes: str, process: str, out: str) -> None:
    builders = load_builders()
    jax.config.update("jax_num_cpu_devices", 4)
    initialise(address, int(processes), int(process), timeout=60)
    assert (jax.local_device_count(), jax.device_count()) == (4, 8)
    (told := Path(f"{out}.exchange.json")).unlink(missing_ok=True)
    found = exchanges()
    if is_main():
        told.write_text(json.dumps(found))
    carry_over(Path(f"{out}.checkpoints"), builders.build_state(builders.step_config()))
    runs = {backend: train(builders, backend, make_mesh(*shape)) for backend, shape in LAYOUTS.items()}
    if is_main():
        arrays: dict[str, Any] = {f"{b} {name}": leaf for b, run in runs.items() for name, leaf in run.items()}
        np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
