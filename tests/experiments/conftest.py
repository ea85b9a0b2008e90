"""One tiny corpus and one tiny configuration for all runs of the MultiWOZ experiment; they run in child processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from morejax.tasks.multiwoz.embedded import write_embedded

REPOSITORY = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("driver.py")
ITERATIONS = 5
FLAGS = (
    "--vocab-size 512 --model.layers 1 --model.width 16 --model.heads 2 --model.max-length 192 --context.history 1 "
    "--context.max-context 144 --context.max-reply 24 --supervised.epochs 0.3 --supervised.tokens-per-batch 1024 "
    "--supervised.checkpoint-every 4 --supervised.log-every 1 --scaffold.epochs 0.2 --scaffold.tokens-per-batch 1024 "
    "--reward.examples 32 --reward.held-out 16 --reward.steps 5 --reward.batch 16 --critic.hidden 16 "
    f"--ppo.iterations {ITERATIONS} --ppo.turns 32 --ppo.eval-every 2 --ppo.eval-dialogues 2 --ppo.checkpoint-every 3 "
    "--ppo.keep last --step.minibatches 2 --step.epochs 1 --numbers.learning-rate 0.01 --numbers.warmup-steps 1 "
    "--numbers.thresholds inform 0.93 success 0.9 "
    "--samples 2"
).split()
BEFORE_PPO = ("supervised", "scaffold", "reward_heads")


@dataclass(frozen=True)
class Tiny:
    """The corpus and how to run on it."""

    corpus: Path
    environment: dict[str, str]

    def arguments(self, out: Path, *more: str, resume: bool = False) -> list[str]:
        """Flags of a run in this folder."""
        basis = ["--data-dir", str(self.corpus), "--out", str(out), *FLAGS]
        return [*basis, *(["--resume"] if resume else []), *more]

    def run(self, out: Path, *more: str, resume: bool = False) -> subprocess.CompletedProcess[str]:
        """The command that users give, to its end."""
        return self._finish("-m", "morejax.experiments.multiwoz", *self.arguments(out, *more, resume=resume))

    def each(self, runs: Sequence[Sequence[str]], **environment: str) -> tuple[list[int], str]:
        """Several runs in one process: exit statuses and what they said."""
        done = self._finish(str(DRIVER), "each", json.dumps(runs), **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    def poisoned(self, stream: str, call: int, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """A run with a stream that is NaN at its n-th call."""
        return self._finish(str(DRIVER), "poison", stream, str(call), json.dumps(list(arguments)))

    def interrupted(
        self, number: signal.Signals, stage: str, step: int, arguments: Sequence[str], *, saved: Path | None = None
    ) -> tuple[int, str]:
        """Send a signal after a step of a stage, once `saved` exists: exit status and stderr."""
        out = Path(arguments[arguments.index("--out") + 1])
        folder = out.with_name(f"{out.name}-{number.name}-{stage}-{step}")
        folder.mkdir()
        command = [sys.executable, str(DRIVER), "hold", stage, str(step), str(folder), json.dumps(list(arguments))]
        with subprocess.Popen(
            command, cwd=REPOSITORY, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                for path in (folder / "held", saved or folder / "held"):
                    wait_for(path, process)
                process.send_signal(number)
                (folder / "released").touch()
                _, said = process.communicate(timeout=300)
            finally:
                process.kill()
        return process.returncode, said

    def _finish(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=1500,
        )


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 1500) -> None:
    """Wait until a path exists, or fail with what the process said."""
    end = time.monotonic() + seconds
    while not path.exists():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(f"{path} has not appeared; status {process.poll()}:\n{process.communicate()[1]}")
        time.sleep(0.02)


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], str]], tuple[Path, str]]:
    """`once(name, make)`: a new folder and what `make(folder)` said of it, from the first worker that comes; the others
    wait for it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def once(name: str, make: Callable[[Path], str]) -> tuple[Path, str]:
        folder, said = root / name, root / f"{name}.said"
        with FileLock(root / f"{name}.lock"):
            if not said.exists():
                assert not folder.exists(), f"{name} has failed before"
                folder.mkdir()
                said.write_text(make(folder))
        return folder, said.read_text()

    return once


@pytest.fixture(scope="session")
def tiny(once, core) -> Tiny:
    """40 generated dialogues; children share a cache of compiled programs, quickly compiled where XLA can."""
    folder, _ = once("tiny", lambda folder: str(write_embedded(folder / "corpus", dialogues=40)))
    options = core.fast_compile() or {}
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "MOREJAX_CACHE": str(folder / "cache"),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": " ".join(f"--{name}={str(value).lower()}" for name, value in options.items()),
    }
    return Tiny(folder / "corpus", environment)


@pytest.fixture(scope="session")
def prepared(tiny, once) -> Path:
    """A run with the stages before PPO done; tests work on copies."""

    def make(folder: Path) -> str:
        done = tiny.run(folder / "run", "--stages", *BEFORE_PPO)
        assert done.returncode == 0, done.stderr
        return done.stderr

    return once("prepared", make)[0] / "run"


@pytest.fixture(scope="session")
def beside() -> Iterator[ThreadPoolExecutor]:
    """A thread for children that run while tests wait for theirs: one of them keeps half of two cores idle."""
    pool = ThreadPoolExecutor(1)
    yield pool
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def finished(tiny, prepared, once) -> tuple[Path, str]:
    """The same run carried on to its end, undisturbed, and what it said."""

    def make(folder: Path) -> str:
        shutil.copytree(prepared, folder / "run")
        done = tiny.run(folder / "run", resume=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    folder, said = once("finished", make)
    return folder / "run", said


@pytest.fixture
def copy_of(tmp_path):
    """Copies a run's folder."""

    def copy(run: Path, name: str = "run") -> Path:
        return Path(shutil.copytree(run, tmp_path / name))

    return copy
