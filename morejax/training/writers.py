"""Where a run's numbers go: JSON lines, TensorBoard events and the terminal.

A run writes one ``metrics.jsonl`` for all its stages and one TensorBoard run per stage.
``metrics.jsonl`` holds one flat JSON object a line::

    {"stage": "ppo", "step": 12, "J/success": 0.71, "kl": 0.013}

JSON has no NaN and no infinity: they are written as the strings ``"NaN"``, ``"Infinity"`` and
``"-Infinity"``, so that a diverging run stays visible in its log and every line stays valid JSON.
:func:`read_metrics` turns them back into floats.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from morejax import hosts
from morejax.training.progress import Progress

__all__ = [
    "JsonlWriter",
    "MultiWriter",
    "Progress",
    "TensorBoardWriter",
    "Writer",
    "encode_scalars",
    "open_writers",
    "read_metrics",
    "read_stages",
]

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIR = "tensorboard"
_RESERVED = ("stage", "step")


class Writer(Protocol):
    """Anything that takes the scalars of a stage, step by step."""

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the scalars of one step."""

    def text(self, name: str, value: str) -> None:
        """Record a piece of text, for example the resolved configuration."""

    def close(self) -> None:
        """Flush and release what is held."""


class JsonlWriter:
    """Appends one JSON object a line to ``metrics.jsonl`` and flushes each line.

    Args:
        path: file to append to; its folder is made.
        stage: name written into every line, for example ``"ppo"``.
    """

    def __init__(self, path: Path | str, stage: str):
        self.path = Path(path)
        self.stage = stage
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_unfinished_line(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Write ``{"stage": ..., "step": step, **values}`` as one line.

        Args:
            step: number of the step within the stage.
            values: flat name -> scalar (Python, NumPy or JAX); float32 is written in its shortest exact form.

        Raises:
            ValueError: a value is not a scalar, or a name is ``stage`` or ``step``.
        """
        record = {"stage": self.stage, "step": int(step), **encode_scalars(values)}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def text(self, name: str, value: str) -> None:
        """Do nothing: the log is a table of numbers; text goes to TensorBoard and to the report."""

    def truncate_after(self, stage: str, step: int) -> int:
        """Drop the lines of a stage past a restored step, so that the log equals an undisturbed run's.

        Args:
            stage: stage that was restored.
            step: last step to keep; ``-1`` drops the whole stage.

        Returns:
            Number of lines dropped.
        """
        self._file.close()
        kept, dropped = [], 0
        for line, record in _lines(self.path):
            past = record.get("stage") == stage and record["step"] > step
            dropped += past
            if not past:
                kept.append(line)
        if dropped:
            _replace_text(self.path, "".join(kept))
        self._file = self.path.open("a", encoding="utf-8")
        return dropped

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardWriter:
    """Writes TensorBoard events with tensorboardX; each stage is a run of its own.

    Args:
        logdir: folder of the events; the stage's go to ``logdir/stage``.
        stage: name of the stage.
        purge_step: on resume, first step to be written again; TensorBoard hides earlier events from it on.
    """

    def __init__(self, logdir: Path | str, stage: str, purge_step: int | None = None):
        from tensorboardX import SummaryWriter

        self.logdir = Path(logdir) / stage
        self._writer = SummaryWriter(str(self.logdir), purge_step=purge_step)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Add every scalar at ``step``."""
        for name, value in values.items():
            self._writer.add_scalar(name, _as_number(name, value), step)

    def text(self, name: str, value: str) -> None:
        """Add a piece of text."""
        self._writer.add_text(name, value)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class MultiWriter:
    """Passes everything on to several writers; also a context manager that closes them."""

    def __init__(self, *writers: Writer):
        self.writers = writers

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the scalars of one step in every writer."""
        for writer in self.writers:
            writer.scalars(step, values)

    def text(self, name: str, value: str) -> None:
        """Record a piece of text in every writer."""
        for writer in self.writers:
            writer.text(name, value)

    def close(self) -> None:
        """Close every writer."""
        for writer in self.writers:
            writer.close()

    def __enter__(self) -> MultiWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_writers(run_dir: Path | str, stage: str, *, restored_step: int | None = None) -> MultiWriter:
    """Open the JSON lines and TensorBoard writers of one stage of a run.

    Args:
        run_dir: the run's folder.
        stage: name of the stage.
        restored_step: last step that the restored checkpoint has finished; later lines are dropped.
            ``None`` starts the stage afresh, which drops what an earlier attempt at it has logged.

    Returns:
        A writer for both; close it at the end of the stage. Of several processes only the main one's writes anything.
    """
    if not hosts.is_main():
        return MultiWriter()
    run_dir = Path(run_dir)
    last = -1 if restored_step is None else restored_step
    lines = JsonlWriter(run_dir / METRICS_FILE, stage)
    lines.truncate_after(stage, last)
    return MultiWriter(lines, TensorBoardWriter(run_dir / TENSORBOARD_DIR, stage, purge_step=last + 1))


def encode_scalars(values: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Turn scalars into JSON values; NaN and infinities become strings.

    Args:
        values: flat name -> scalar.

    Returns:
        Name -> int, float or one of ``"NaN"``, ``"Infinity"``, ``"-Infinity"``.

    Raises:
        ValueError: a name is reserved or a value is not a scalar.
    """
    for name in _RESERVED:
        if name in values:
            raise ValueError(f"metric name {name!r} is reserved for the log itself; rename the metric")
    return {name: _json_number(_as_number(name, value)) for name, value in values.items()}


def read_metrics(path: Path | str, stage: str | None = None) -> dict[str, np.ndarray]:
    """Read ``metrics.jsonl`` into columns.

    Args:
        path: the file, or the run's folder.
        stage: keep the lines of this stage only; ``None`` keeps all and adds a ``"stage"`` column of strings.

    Returns:
        Name -> array over the lines in file order: ``"step"`` is i64[n], every metric is f64[n] with NaN
        where a line does not have it. A stage without lines gives ``{"step": empty}``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line other than the last is not valid JSON; the message names file and line.
    """
    path = Path(path)
    path = path / METRICS_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the metrics.jsonl that a run writes")
    records = [record for _, record in _lines(path) if stage is None or record["stage"] == stage]
    names = dict.fromkeys(name for record in records for name in record if name not in _RESERVED)
    columns: dict[str, np.ndarray] = {"step": np.array([record["step"] for record in records], dtype=np.int64)}
    if stage is None:
        columns["stage"] = np.array([record["stage"] for record in records], dtype=str)
    for name in names:
        columns[name] = np.array([float(record.get(name, math.nan)) for record in records], dtype=np.float64)
    return columns


def read_stages(path: Path | str) -> dict[str, dict[str, np.ndarray]]:
    """Read ``metrics.jsonl`` stage by stage, without the columns that a stage never wrote.

    Args:
        path: the file, or the run's folder.

    Returns:
        Stage -> columns as :func:`read_metrics` gives them, in order of first appearance.
    """
    everything = read_metrics(path)
    stages = everything.pop("stage")
    table = {}
    for stage in dict.fromkeys(stages.tolist()):
        rows = stages == stage
        columns = {name: column[rows] for name, column in everything.items()}
        table[stage] = {name: column for name, column in columns.items() if not _all_nan(column)}
    return table


def _all_nan(column: np.ndarray) -> bool:
    return column.dtype.kind == "f" and bool(np.isnan(column).all())


def _as_number(name: str, value: Any) -> int | float:
    array = np.asarray(value)
    if array.size != 1 or (array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16"):
        raise ValueError(f"metric {name!r}: found {array.dtype} of shape {array.shape}, expected one number")
    if array.dtype.kind in "biu":
        return int(array.item())
    # str(float32) is the shortest decimal that reads back as the same float32: 0.1 and not
    # 0.10000000149011612.
    return float(str(array.item())) if array.dtype == np.float64 else float(str(array.reshape(()).astype(np.float32)))


def _json_number(value: int | float) -> int | float | str:
    if isinstance(value, int) or math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Complete lines with their parsed records; an unfinished last line (killed in writing) is left out."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            return
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not valid JSON ({error}); expected one object a line") from error
        if not isinstance(record, dict) or not all(name in record for name in _RESERVED):
            raise ValueError(
                f"{path}:{number}: found {line.strip()[:80]!r}, expected an object with 'stage' and 'step'"
            )
        yield line, record


def _drop_unfinished_line(path: Path) -> None:
    if not path.is_file():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end != len(content):
        _replace_text(path, content[:end].decode("utf-8"))


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
