"""The first signal is remembered, the second is obeyed at once, and handlers go back to what they were."""

from __future__ import annotations

import os
import signal

import pytest

from morejax import hosts
from morejax.training.interrupt import Interrupted, StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_flag(number):
    with StopRequest() as stop:
        assert not stop
        stop.raise_if_set()
        os.kill(os.getpid(), number)
        assert stop
        with pytest.raises(Interrupted, match=f"stopped by {signal.Signals(number).name}") as caught:
            stop.raise_if_set()
    assert caught.value.number == number


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_is_immediate(second):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), second)
        assert stop.number == signal.SIGINT


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest():
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_to_another_process_is_everybodys(monkeypatch):
    """All processes are asked; this one has heard nothing."""
    asked = []

    def exchange(work):
        asked.append(work())
        return [work(), int(signal.SIGTERM)]

    monkeypatch.setattr(hosts, "exchange", exchange)
    with StopRequest() as stop:
        assert stop
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            stop.raise_if_set()
    assert asked == [None, None]
