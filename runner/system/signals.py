"""How a process is asked to save and end, and how it continues once nobody reads its output any more."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a request to terminate, and a terminal that is gone."""

SECOND_AFTER_S = 0.5
"""A Ctrl-C that comes sooner is the first one again, passed on by a process in between."""


class StopSignal:
    """Whether somebody asked this process to save and end; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0

    def __enter__(self) -> StopSignal:
        # A signal that was ignored from the start, as Ctrl-C is in the background, stays ignored.
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
    """Whether a process with this number exists, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def streams_on_terminal() -> list[int]:
    """Which of the standard streams are a terminal; once a terminal is gone, this can no longer be determined."""
    return [stream for stream in (0, 1, 2) if os.isatty(stream)]


def silence(streams: Iterable[int]) -> None:
    """Discard what is written to some streams from now on: the other end is gone, so writing would fail."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in streams:
        os.dup2(nowhere, stream)
    os.close(nowhere)
