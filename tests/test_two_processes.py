"""Two processes of 4 devices train like one device; arrays are placed over them and read back whole."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

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


@pytest.mark.slow
def test_two_processes_train_like_one_device(core, driver, tmp_path):
    """To 1e-5: gradients are summed per device first, then over devices, so the last bits differ."""
    run_processes(tmp_path / "result.npz")
    expected = driver.train(driver.load_builders())
    assert not np.array_equal(
        expected["state params/trunk/embedding"], core.state(core.config()).params["trunk"]["embedding"]
    )
    with np.load(tmp_path / "result.npz") as found:
        assert set(found) == {f"{backend} {name}" for backend in driver.LAYOUTS for name in expected}
        for name in found:
            np.testing.assert_allclose(
                found[name], expected[name.partition(" ")[2]], rtol=1e-5, atol=1e-5, err_msg=name
            )
