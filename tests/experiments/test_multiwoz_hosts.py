"""The main job in two processes of 4 devices: like one process, through a loss, and never silent about a failure."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from morejax.experiments.shared.branch import branch

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("driver.py")
MODULE = ("-m", "morejax.experiments.multiwoz")
# Quantities that divide by a variance near zero, and what the clock says.
NOISE = ("explained_variance/", "tokens_per_s")
SMALL = ("--eval-splits", "dev", "--ppo.iterations", "4", "--ppo.checkpoint-every", "2")
GLOO = re.compile(r"\[Gloo\] Rank|is connected to|Expected number of connected peer ranks is :|peer ranks\.")
BEFORE_PPO = ("supervised", "scaffold", "reward_heads")


class Job:
    """Processes of one run, their output in files beside its folder."""

    def __init__(self, tiny, out, commands, devices):
        environment = {name: value for name, value in tiny.environment.items() if "proxy" not in name.lower()}
        environment |= {"JAX_NUM_CPU_DEVICES": str(devices)}
        self.logs = [out.with_name(f"{out.name}.{index}.log") for index in range(len(commands))]
        self.processes = []
        for command, log in zip(commands, self.logs, strict=True):
            with log.open("w") as stream:
                started = subprocess.Popen([sys.executable, *command], env=environment, stdout=stream, stderr=stream)
            self.processes.append(started)

    def said(self, index=0):
        return self.logs[index].read_text()

    def finish(self, seconds=600):
        """Exit statuses, in a time after which none may be left."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds} s:\n{self.said()[-3000:]}\n---\n{self.said(-1)[-3000:]}")
        finally:
            self.kill()

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def started(tiny, out, *more, resume=False, count=2, devices=4, lead=((), ())):
    """A job; `lead[i]` stands in for the module in process i, with its arguments as JSON."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    commands = []
    for index in range(count):
        place = ["--coordinator", address, "--processes", str(count), "--process", str(index)] if count > 1 else []
        arguments = tiny.arguments(out, *SMALL, *more, *place, resume=resume)
        commands.append([*lead[index], json.dumps(arguments)] if lead[index] else [*MODULE, *arguments])
    job = Job(tiny, out, commands, devices)
    try:
        yield job
    finally:
        job.kill()


def run(tiny, out, *more, **options):
    with started(tiny, out, *more, **options) as job:
        statuses = job.finish()
    assert set(statuses) == {0}, job.said()[-3000:] + job.said(-1)[-3000:]
    return job


@pytest.fixture(scope="module")
def two(tiny, tmp_path_factory):
    """All stages in two processes, undisturbed."""
    out = tmp_path_factory.mktemp("two") / "run"
    return out, run(tiny, out)


@pytest.fixture
def before_ppo(two, tmp_path):
    """A run that has what the stages before PPO left of that one."""
    return branch(two[0], tmp_path / "run")


@pytest.fixture(scope="module")
def one(tiny, tmp_path_factory):
    """All stages in one process with 8 devices."""
    out = tmp_path_factory.mktemp("one") / "run"
    run(tiny, out, "--devices", "8", count=1, devices=8)
    return out


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def arrays(folder):
    """What Orbax wrote, on one device of this process."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree)
        restored = checkpointer.restore(folder, like)

    def plain(leaf):
        return np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    return jax.tree.map(plain, restored)


def assert_same_training(left, right, stages=("ppo",)):
    """Every line of the log, the state and what the stages leave to 1e-5."""
    names = ["checkpoints/ppo/4/state", *(f"checkpoints/{stage}-final/params" for stage in stages)]
    for name in names:
        pairs = zip(jax.tree.leaves(arrays(left / name)), jax.tree.leaves(arrays(right / name)), strict=True)
        for found, expected in pairs:
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=name)
    for found, expected in zip(records(left), records(right), strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, float) and not name.startswith(NOISE):
                assert math.isclose(found[name], value, rel_tol=1e-3, abs_tol=1e-5), (name, found, expected)


def test_two_processes_end_like_one(one, two):
    """The same training, the same replies, the same scores."""
    assert_same_training(two[0], one, stages=(*BEFORE_PPO, "ppo"))
    for name in ("predictions/dev.json", "samples.json"):
        assert (two[0] / name).read_bytes() == (one / name).read_bytes()
    found, expected = (json.loads((folder / "results.json").read_text()) for folder in (two[0], one))
    assert found["scores"] == expected["scores"]


def test_only_the_main_process_speaks_and_writes(two):
    run_dir, job = two
    assert "on 8 of 2 processes x cpu" in job.said()
    # Gloo's threads write their one sentence piece by piece, so pieces of two may stand in one line.
    shown = [line for line in GLOO.sub("", job.said(1)).splitlines() if line.strip(" 0123456789")]
    assert [line.partition(" at ")[0] for line in shown] == ["process 1 of 2 joins"], shown
    # One line a step, not two.
    steps = [record["step"] for record in records(run_dir) if record["stage"] == "ppo" and "kl" in record]
    assert steps == [1, 2, 3, 4]
    for stage in ("supervised", "ppo"):
        assert len(list((run_dir / "tensorboard" / stage).glob("events*"))) == 1
    assert json.loads((run_dir / "config.json").read_text())["processes"] == 2


def test_one_killed_in_ppo_both_restarted(tiny, before_ppo, two, tmp_path):
    """The other ends by itself and says why; restarted, both come to the end of the undisturbed run, and so does one
    process with one device that takes over."""
    out, held = before_ppo, tmp_path / "held"
    held.mkdir()
    lead = ((), (str(DRIVER), "hold", "ppo", "3", str(held)))
    with started(tiny, out, "--heartbeat", "20", resume=True, lead=lead) as job:
        for path in (held / "held", out / "checkpoints" / "ppo" / "2"):
            wait_for(path, job)
        job.processes[1].send_signal(signal.SIGKILL)
        statuses = job.finish(180)
    # Whoever sees first that a process is gone ends this one: our check, which says what to do, or JAX's runtime.
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] in (4, -signal.SIGABRT)
    if statuses[0] == 4:
        assert "process 0: error: no answer from another process; start all again with --resume" in job.said()
        assert "Traceback" not in job.said()
    alone = Path(shutil.copytree(out, tmp_path / "alone"))
    run(tiny, out, "--stages", "ppo", resume=True)
    assert_same_training(out, two[0])
    run(tiny, alone, "--stages", "ppo", resume=True, count=1, devices=1)
    assert_same_training(alone, two[0])


def test_a_signal_to_one_stops_both_after_saving(tiny, before_ppo, tmp_path):
    out, held = before_ppo, tmp_path / "held"
    held.mkdir()
    lead = ((), (str(DRIVER), "hold", "ppo", "1", str(held)))
    with started(tiny, out, "--stages", "ppo", resume=True, lead=lead) as job:
        wait_for(held / "held", job)
        job.processes[1].send_signal(signal.SIGTERM)
        (held / "released").touch()
        assert job.finish(120) == [143, 143], job.said()
    assert job.said().splitlines()[-1] == "stopped by SIGTERM; continue with --resume"
    assert [path.name for path in (out / "checkpoints" / "ppo").glob("[0-9]*")] == ["2"]


def test_a_reward_that_fails_in_one_stops_both(tiny, before_ppo, tmp_path):
    """Each scores its own dialogues, so only one sees the NaN; both name it and end."""
    out = before_ppo
    changes = ("--stages", "ppo", "--step.objectives", "likeness", "poison", "--ppo.eval-every", "0")
    lead = [(str(DRIVER), "poison", "poison", call) for call in ("999", "3")]
    with started(tiny, out, *changes, resume=True, lead=lead) as job:
        assert job.finish(180) == [4, 3], job.said() + job.said(1)
    assert re.search(r"^process 0: error in process 1: stream 'poison': reward is nan", job.said(), re.MULTILINE)
    assert re.search(r"^process 1: error: ppo, iteration 1: stream 'poison'", job.said(1), re.MULTILINE)
    assert "Traceback" not in job.said() + job.said(1)


def test_processes_with_other_flags_refuse_to_begin(tiny, tmp_path):
    """One has another seed: they would train on nonsense, or wait for ever."""
    out = tmp_path / "run"
    arguments = [tiny.arguments(out, *SMALL, "--seed", seed) for seed in ("0", "1")]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    place = [("--coordinator", address, "--processes", "2", "--process", index) for index in "01"]
    job = Job(tiny, out, [[*MODULE, *own, *more] for own, more in zip(arguments, place, strict=True)], 4)
    assert job.finish(120) == [4, 2], job.said() + job.said(1)
    assert "process 1: started with something else than the main process (seed: 0 there, 1 here)" in job.said()
    assert not out.exists()


def wait_for(path, job, seconds=300):
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end or any(process.poll() is not None for process in job.processes):
            pytest.fail(f"{path} has not appeared:\n{job.said()[-3000:]}\n---\n{job.said(1)[-3000:]}")
        time.sleep(0.02)
