"""The log of a loop that never waits for the device: numbers are read one iteration late."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from morejax import hosts
from morejax.training.language_model import NonFinite
from morejax.training.progress import Progress
from morejax.training.writers import Writer


@dataclass(frozen=True)
class _Pending:
    """Numbers of an iteration that are not read yet."""

    iteration: int
    metrics: Mapping[str, jax.Array]
    tokens: int | jax.Array
    began: float
    """Seconds of the clock."""


class LateLog:
    """Reads the numbers of an iteration while the next one is computed: the device is never waited for.

    An iteration lasts until the next one begins, or until its numbers are there when `flush` asks for them at once;
    what is done after a flush (evaluations, checkpoints) belongs to no iteration.

    Args:
        writer: takes the scalars.
        bar: shows some of them.
        progress: gets the numbers of the `first` and of the `last` iteration.
        clock: seconds, monotonic.
    """

    def __init__(
        self, writer: Writer, bar: Progress, progress: dict[str, Any], clock: Callable[[], float] = time.monotonic
    ):
        self._writer, self._bar, self._progress, self._clock = writer, bar, progress, clock
        self._iteration, self._began = 0, clock()
        self._pending: _Pending | None = None

    def begin(self, iteration: int) -> None:
        """An iteration begins."""
        self._iteration, self._began = iteration, self._clock()

    def add(self, metrics: Mapping[str, jax.Array], tokens: int | jax.Array) -> None:
        """Keep the numbers of the iteration that has begun, and write those of the one before."""
        before, self._pending = self._pending, _Pending(self._iteration, metrics, tokens, self._began)
        if before is not None:
            self._write(before, _fetch(before.metrics), self._began - before.began)

    def flush(self) -> None:
        """Wait for the numbers that are still kept and write them.

        Raises:
            NonFinite: one of them is NaN or infinite.
        """
        kept, self._pending = self._pending, None
        if kept is not None:
            numbers = _fetch(kept.metrics)
            self._write(kept, numbers, self._clock() - kept.began)

    def _write(self, kept: _Pending, numbers: dict[str, float], seconds: float) -> None:
        check_finite(kept.iteration, numbers)
        tokens = int(kept.tokens)
        numbers |= {"response_tokens": float(tokens), "tokens_per_s": tokens / seconds}
        self._writer.scalars(kept.iteration, numbers)
        shown = {name[2:]: value for name, value in numbers.items() if name.startswith("J/")}
        self._bar.update(kept.iteration, shown | {"kl": numbers["kl"]}, tokens=tokens)
        self._progress["last"] = numbers
        self._progress["first"] = self._progress["first"] or numbers


def _fetch(metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in hosts.to_host(dict(metrics)).items()}


def check_finite(iteration: int, numbers: dict[str, float]) -> None:
    """Stop when a metric is NaN or infinite.

    Raises:
        NonFinite: naming the streams first, since theirs is the cause and the sums only inherit it.
    """
    bad = [name for name, value in numbers.items() if not math.isfinite(value)]
    if bad:
        streams = sorted({name.split("/")[1] for name in bad if name.startswith(("J/", "stream_loss/", "grad_norm/"))})
        where = f"stream {', '.join(streams)}: " if streams else ""
        raise NonFinite(
            f"ppo, iteration {iteration}: {where}{', '.join(bad[:6])} is not finite; the checkpoint before it is kept "
            "(to try a lower --numbers.learning-rate, delete checkpoints/ppo and --resume)"
        )
