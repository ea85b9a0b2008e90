"""Runs the main job in a child process under conditions that a test chooses.

    driver.py each [[ARGUMENT, ...], ...]                       several runs after another; prints their exit statuses
    driver.py hold STAGE STEP FOLDER [ARGUMENT, ...]            holds back after a step, for a signal from outside
    driver.py poison STREAM CALL [ARGUMENT, ...]                with a stream of this name that is NaN at its n-th call

A process of several is given `--process` among its arguments, like any other.

Lists are JSON. `hold` makes FOLDER/held when it has come to the step and goes on once FOLDER/released is there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from morejax.experiments.multiwoz.__main__ import main
from morejax.hosts import finish
from morejax.tasks.streams import StreamValues, register_stream
from morejax.training.progress import Progress


def hold(stage: str, step: int, folder: Path) -> None:
    update = Progress.update

    def held(self, done, *arguments, **more):
        update(self, done, *arguments, **more)
        if self.stage == stage and done == step:
            (folder / "held").touch()
            while not (folder / "released").exists():
                time.sleep(0.02)

    Progress.update = held


def poison(name: str, call: int) -> None:
    calls = iter(range(1, 1000))

    @register_stream(name, kind="objective")
    def poisoned(batch, context):
        """Nothing, and at one call NaN."""
        values = np.zeros(len(batch.turns), np.float32)
        values[-1] = np.nan if next(calls) == call else 0.0
        return StreamValues(reward=values)


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "each":
        print(json.dumps([main(arguments) for arguments in json.loads(rest[0])]))
        raise SystemExit(0)
    if command == "hold":
        hold(rest[0], int(rest[1]), Path(rest[2]))
    else:
        poison(rest[0], int(rest[1]))
    finish(lambda: main(json.loads(rest[-1])))
