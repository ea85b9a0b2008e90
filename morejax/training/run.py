"""A run's folder: its configuration, which stages are done, what the code was.

Of several processes the main one reads and writes these files, and tells the others what they have to know.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from morejax import hosts

_PACKAGES = ("morejax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "sacrebleu")
# What may differ between a run and its continuation: it decides how far and where to run, not what comes out.
_FREE = (
    *("stages", "resume", "out", "data_dir", "eval_splits", "split", "samples", "compare", "score"),
    *("devices", "mesh", "coordinator", "processes", "process", "heartbeat"),
)
# Seconds in which a file that one machine has written must appear on the others.
_SHARED_SECONDS = 60.0


class RunError(ValueError):
    """A run's folder that cannot be used as asked; the message says what to do."""


class Run:
    """The folder of one run, which all processes make together.

    Args:
        directory: where everything goes; made when missing.
        config: resolved configuration, a JSON-able mapping.
        resume: continue what is there.
        first_read: configuration entry -> first stage that reads it; such an entry may change until that stage begins.
        defaults: configuration of today's defaults: a field that the folder's run did not know yet had its default.
        read_only: look at a run that is there, and leave its config.json as it is.

    Raises:
        RunError: the folder is not empty and `resume` is off, it holds a run with another configuration, another
            process does not see it, or there is no run to be read.
    """

    def __init__(
        self,
        directory: Path | str,
        config: Mapping[str, Any],
        *,
        resume: bool,
        first_read: Mapping[str, str] | None = None,
        defaults: Mapping[str, Any] | None = None,
        read_only: bool = False,
    ):
        self.directory = Path(directory)
        self._read_only = read_only
        self._defaults = dict(defaults or {})
        self._first_read = dict(first_read or {})
        self._config = dict(config)
        sitting = hosts.on_main(lambda: self._open(resume))
        hosts.together(lambda: self._check_shared(sitting))
        self._records: dict[str, Any] = hosts.on_main(self._stages)

    def _open(self, resume: bool) -> str:
        """Check the folder and write the configuration; a word by which other processes know it."""
        if self._read_only:
            path = self.directory / "config.json"
            if not path.is_file():
                raise RunError(f"--out {self.directory}: there is no run ({path} is not there)")
            self._check_same(self._config)
            return json.loads(path.read_text()).get("sitting", "")
        if self.directory.exists() and any(self.directory.iterdir()):
            if not resume:
                raise RunError(
                    f"--out {self.directory} is not empty: pass --resume to continue that run, or name another folder"
                )
            self._check_same(self._config)
        self.directory.mkdir(parents=True, exist_ok=True)
        return self._write_config()

    def _check_shared(self, sitting: str) -> None:
        """Checkpoints are written by all processes: they must see one folder."""
        path, end = self.directory / "config.json", time.monotonic() + _SHARED_SECONDS
        while not (path.is_file() and json.loads(path.read_text()).get("sitting", "") == sitting):
            if time.monotonic() > end:
                raise RunError(
                    f"--out {self.directory} is not the folder that the main process writes: name one on a file "
                    "system that all hosts share"
                )
            time.sleep(0.5)

    def _check_same(self, config: Mapping[str, Any]) -> None:
        path = self.directory / "config.json"
        if not path.is_file():
            return
        before = json.loads(path.read_text())["config"]
        now, defaults = (json.loads(json.dumps(x, default=_plain)) for x in (config, self._defaults))
        before = _filled(before, defaults)
        changed = [
            f"{name}: {left!r} then, {right!r} now"
            for name, left, right in _differences(before, now)
            if not self._may_change(name.split(".")[0])
        ]
        if changed:
            raise RunError(f"--resume: {path} was written with another configuration ({'; '.join(changed[:5])})")

    def _may_change(self, entry: str) -> bool:
        return entry in _FREE or (entry in self._first_read and not self._begun(self._first_read[entry]))

    def _begun(self, stage: str) -> bool:
        return stage in self._stages() or (self.directory / "checkpoints" / stage).exists()

    def _write_config(self) -> str:
        document = {
            "config": self._config,
            "command": command_line(),
            "sitting": secrets.token_hex(8),
            "versions": versions(),
            "commit": git_commit(),
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "processes": jax.process_count(),
        }
        # `corpus` and the like are known only once the corpus is read: `describe` adds them.
        path = self.directory / "config.json"
        if path.is_file():
            before = json.loads(path.read_text())
            earlier = [*before.get("earlier_commands", []), before.get("command", "")]
            document = before | document | {"earlier_commands": earlier}
        write_json(path, document)
        return document["sitting"]

    def describe(self, **facts: Any) -> None:
        """Add top-level entries to config.json (corpus, splits, thresholds, ...)."""
        if self._read_only:
            return
        path = self.directory / "config.json"
        hosts.on_main(lambda: write_json(path, json.loads(path.read_text()) | facts))

    def stage_record(self, stage: str) -> dict[str, Any] | None:
        """What `stage` recorded when it was finished, or None."""
        return self._known().get(stage)

    def timings(self) -> dict[str, float]:
        """Seconds of every finished stage, all sittings together."""
        return {name: record["seconds"] for name, record in self._known().items()}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a stage; the dict it yields is recorded when the block ends without an exception.

        A stage that is interrupted adds its time to its next sitting.
        """
        spent_path = self.directory / f".{name}.seconds"
        before = float(spent_path.read_text()) if spent_path.is_file() else 0.0
        record: dict[str, Any] = {}
        began = time.monotonic()
        try:
            yield record
        except BaseException:
            if hosts.is_main():
                spent_path.write_text(str(before + time.monotonic() - began))
            raise
        record["seconds"] = round(before + time.monotonic() - began, 2)
        self._records[name] = hosts.on_main(lambda: self._record(name, record))

    def _record(self, name: str, record: dict[str, Any]) -> dict[str, Any]:
        (self.directory / f".{name}.seconds").unlink(missing_ok=True)
        write_json(self.directory / "stages.json", self._stages() | {name: record})
        return self._stages()[name]

    def _known(self) -> dict[str, Any]:
        """Finished stages: from the file in the process that writes it, as it told them in the others."""
        return self._stages() if hosts.is_main() else self._records

    def _stages(self) -> dict[str, Any]:
        path = self.directory / "stages.json"
        return json.loads(path.read_text()) if path.is_file() else {}


def write_json(path: Path, document: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document, indent=1, ensure_ascii=False, default=_plain) + "\n")
    part.replace(path)


def command_line() -> str:
    """The command that started this process, as a shell takes it; the interpreter is `python`, wherever it lies."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def versions() -> dict[str, str]:
    """Python's and the main packages' versions."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_commit() -> str | None:
    """Commit of the checkout that the package runs from, with `+` when it has changes; None outside one."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        )
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=folder, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (np.generic, np.ndarray, jax.Array)) and value.size == 1:
        return value.item()
    raise TypeError(f"{type(value).__name__} does not go into JSON: {value!r}")


def _filled(before: Any, defaults: Any) -> Any:
    """`before`, with what it lacks at any depth taken from `defaults`."""
    if not isinstance(before, dict) or not isinstance(defaults, dict):
        return before
    return defaults | {key: _filled(value, defaults.get(key)) for key, value in before.items()}


def _differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield name, before, now
