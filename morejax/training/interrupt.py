"""Stop cleanly: the first SIGTERM or Ctrl-C is remembered, the loop saves and leaves; a second Ctrl-C is immediate.

Of several processes each may get a signal of its own, or only one of them does: asking the flag tells it to all, so
that all save the same step. They must therefore ask together.
"""

from __future__ import annotations

import signal
from types import FrameType

from morejax import hosts


class Interrupted(Exception):
    """A signal asked the run to stop; everything was saved."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}")


class StopRequest:
    """Context manager that turns SIGTERM and SIGINT into a flag for loops to look at between two steps."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, _: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number

    def __bool__(self) -> bool:
        return self._agreed() is not None

    def raise_if_set(self) -> None:
        """Raise `Interrupted` when a signal has come; call it after saving."""
        number = self._agreed()
        if number is not None:
            raise Interrupted(number)

    def _agreed(self) -> int | None:
        """The signal that has come to any process."""
        return next((number for number in hosts.exchange(lambda: self.number) if number is not None), None)
