"""How a process is asked to save and end, and how it goes on when nobody reads any more what it says."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, what ends processes, and a terminal that is gone."""

SECOND_AFTER_S = 0.5
"""A Ctrl-C that comes sooner is the first one, which what stands between has passed on as well."""


class StopSignal:
    """Whether somebody asked this process to save and end; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0

    def __enter__(self) -> StopSignal:
        # A signal that was ignored from the start, as Ctrl-C is in the background, stays so.
        asked = [each for each in STOP_SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        self._terminal = streams_on_terminal()
        self._before = {number: signal.signal(number, self._ask) for number in asked}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        if self.requested and number == signal.SIGINT and time.monotonic() - self._since > SECOND_AFTER_S:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            silence(self._terminal)
        if not self.requested:
            self.requested, self._since = True, time.monotonic()


def runs(pid: int) -> bool:
    """Whether there is a process of that number, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def streams_on_terminal() -> list[int]:
    """Which of the standard streams are a terminal; of one that is gone it cannot be found out any more."""
    return [stream for stream in (0, 1, 2) if os.isatty(stream)]


def silence(streams: Iterable[int]) -> None:
    """Go on without who was at the other end of some streams, where whatever is written would fail: it goes nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in streams:
        os.dup2(nowhere, stream)
    os.close(nowhere)
