"""A stage's progress on stderr: a bar in a terminal, one plain line now and then in a log file."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from morejax import hosts

_WINDOW = 64


class Progress:
    """Shows stage, step, tokens/s, estimated time left and chosen scalars; also a context manager.

    Rates are taken over the last 64 updates, and never over the first one, which compiles. Of several processes only
    the main one shows anything.

    Args:
        stage: name of the stage.
        total: number of steps of the stage.
        start: steps done before (on resume).
        every_seconds: without a terminal, seconds between two lines.
        every_steps: without a terminal, print every so many steps instead.
        stream: where to write (default: stderr).
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        *,
        start: int = 0,
        every_seconds: float = 10.0,
        every_steps: int | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.stage, self.total, self.step = stage, total, start
        self._every_seconds, self._every_steps, self._clock = every_seconds, every_steps, clock
        self._stream = sys.stderr if stream is None else stream
        self._window: deque[tuple[float, int, int]] = deque(maxlen=_WINDOW)
        self._tokens = 0
        self._printed: tuple[float, int] | None = None
        self._shown = hosts.is_main()
        self._bar = self._open_bar(start) if self._shown and self._stream.isatty() else None

    def _open_bar(self, start: int) -> tqdm:
        layout = "{desc} {n_fmt}/{total_fmt} |{bar:24}| {postfix}"
        return tqdm(
            total=self.total,
            initial=start,
            desc=self.stage,
            file=self._stream,
            bar_format=layout,
            dynamic_ncols=True,
        )

    def update(self, step: int, scalars: Mapping[str, Any] | None = None, *, tokens: int = 0) -> None:
        """Show that ``step`` steps are done.

        Args:
            step: steps done so far, of ``total``.
            scalars: chosen numbers to show, name -> value.
            tokens: tokens processed since the last update.
        """
        now = self._clock()
        self.step, self._tokens = step, self._tokens + tokens
        self._window.append((now, step, self._tokens))
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_postfix_str(self._details(scalars or {}))
        elif self._shown and self._is_due(now, step):
            self._printed = (now, step)
            share = f"{100 * step // self.total:3d}%" if self.total else "100%"
            line = f"{self.stage} {step}/{self.total} {share}  {self._details(scalars or {})}".rstrip()
            print(line, file=self._stream, flush=True)

    def _is_due(self, now: float, step: int) -> bool:
        if self._printed is None or step >= self.total:
            return True
        then, before = self._printed
        if self._every_steps is not None:
            return step - before >= self._every_steps
        return now - then >= self._every_seconds

    def _details(self, scalars: Mapping[str, Any]) -> str:
        parts = []
        if self.tokens_per_s:
            parts.append(f"{format_count(self.tokens_per_s)} tokens/s")
        if self.seconds_left is not None:
            parts.append(f"{format_duration(self.seconds_left)} left")
        parts += [f"{name} {format_scalar(value)}" for name, value in scalars.items()]
        return "  ".join(parts)

    def _span(self) -> tuple[float, int, int]:
        """Seconds, steps and tokens between the oldest and the newest update in the window."""
        if len(self._window) < 2:
            return 0.0, 0, 0
        (begin, first, before), (end, last, after) = self._window[0], self._window[-1]
        return end - begin, last - first, after - before

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second over the window; 0 before the second update."""
        seconds, _, tokens = self._span()
        return tokens / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds to the end of the stage; ``None`` before the second update."""
        seconds, steps, _ = self._span()
        return seconds / steps * max(self.total - self.step, 0) if steps > 0 else None

    def write(self, message: str) -> None:
        """Print a message without breaking the bar."""
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        elif self._shown:
            print(message, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it is and go to the next line."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def format_duration(seconds: float) -> str:
    """Write a duration the short way: ``41s``, ``3m05s``, ``2h07m``."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def format_count(value: float) -> str:
    """Write a count with three digits or so: ``734``, ``12.3k``, ``4.56M``."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def format_scalar(value: Any) -> str:
    """Write a metric with four significant digits; integers in full."""
    number = value.item() if hasattr(value, "item") else value
    return str(number) if isinstance(number, int) else f"{number:.4g}"
