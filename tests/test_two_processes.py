"""Two processes of 4 devices train like one device; arrays are placed over them and read back whole."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from morejax.hosts import to_host
from morejax.sharding import make_mesh, state_shardings
from morejax.training.checkpoint import Checkpoints

DRIVER = Path(__file__).with_name("two_process_driver.py")
TIMEOUT = 300  # seconds for both processes together; they take about 30 on two cores


@pytest.fixture(scope="module")
def driver():
    spec = importlib.util.spec_from_file_location("two_process_driver", DRIVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def wait_for_all(started):
    """Their exit statuses, as soon as all have ended, one has failed (the others would wait for it) or time is up."""
    end = time.monotonic() + TIMEOUT
    while True:
        statuses = [process.poll() for process in started]
        if None not in statuses or any(statuses) or time.monotonic() > end:
            return statuses
        time.sleep(0.1)


def run_processes(out, count=2):
    """Start the processes, wait for all of them, leave none behind; their output when one fails."""
    # A proxy for the outside world must not stand between the two.
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment["PYTHONPATH"] = str(DRIVER.parent.parent)
    address = free_address()
    logs = [out.with_suffix(f".{index}.log") for index in range(count)]
    started = []
    try:
        for index, log in enumerate(logs):
            command = [sys.executable, str(DRIVER), address, str(count), str(index), str(out)]
            with log.open("w") as stream:
                started.append(subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT))
        statuses = wait_for_all(started)
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert statuses == [0] * count, "\n".join(log.read_text()[-3000:] for log in logs)


@pytest.fixture(scope="module")
def result(core, tmp_path_factory):
    """What both processes leave, started beside a checkpoint that one process with 8 devices has saved."""
    out = tmp_path_factory.mktemp("two") / "result.npz"
    checkpoints = Checkpoints(Path(f"{out}.checkpoints") / "from")
    state = core.state(core.config())
    checkpoints.save(3, jax.device_put(state, state_shardings(make_mesh(2, 4, 1), state)), {"step": 3})
    checkpoints.close()
    run_processes(out)
    return out


@pytest.mark.slow
def test_processes_learn_what_the_others_found(result):
    """Everybody's values in order, the main one's decision, rows of different numbers, and the failure of one."""
    told = json.loads(Path(f"{result}.exchange.json").read_text())
    assert told["devices"] == 8
    for index, found in enumerate(told["found"]):
        assert found["each"] == ["x", "x" * 10]
        assert found["main"] == 7
        assert found["rows"] == [[0, 0], [1, 1], [1, 1]]
        assert found["failure"] == ("HostError: process 1: disk full", "OSError: disk full")[index]


@pytest.mark.slow
def test_a_checkpoint_goes_from_8_devices_to_two_processes_to_one_device(core, result):
    """Saved from a mesh (2, 4, 1), restored and saved by two processes on (1, 4, 2), restored on one: the same."""
    state = core.state(core.config())
    zeros = jax.tree.map(lambda leaf: leaf if is_key(leaf) else jnp.zeros_like(leaf), state)
    checkpoints = Checkpoints(Path(f"{result}.checkpoints") / "to")
    restored, meta = checkpoints.restore(jax.device_put(zeros, jax.devices()[3]))
    checkpoints.close()
    assert meta == {"step": 4}
    assert restored.params["trunk"]["embedding"].devices() == {jax.devices()[3]}
    for found, expected in zip(jax.tree.leaves(to_host(restored)), jax.tree.leaves(to_host(state)), strict=True):
        np.testing.assert_array_equal(found, expected)


def is_key(leaf):
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@pytest.mark.slow
def test_two_processes_train_like_one_device(core, driver, result):
    """To 1e-5: gradients are summed per device first, then over devices, so the last bits differ."""
    expected = driver.train(driver.load_builders())
    assert not np.array_equal(
        expected["state params/trunk/embedding"], core.state(core.config()).params["trunk"]["embedding"]
    )
    with np.load(result) as found:
        assert set(found) == {f"{backend} {name}" for backend in driver.LAYOUTS for name in expected}
        for name in found:
            np.testing.assert_allclose(
                found[name], expected[name.partition(" ")[2]], rtol=1e-5, atol=1e-5, err_msg=name
            )
