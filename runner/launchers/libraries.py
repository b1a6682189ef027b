"""Loads, on import, what a worker needs; imported in the process that workers are forked from."""

from __future__ import annotations

import signal
from contextlib import suppress

from runner.work import load_libraries

# A terminal's Ctrl-C reaches every process, and was blocked in this one until here (`runner.launchers.forked`). It
# should end this process at once while it loads, without a page of traceback; afterwards such signals are ignored.
_usual = signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
with suppress(Exception):  # a worker runs into it again, and reports it where people look
    load_libraries()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
signal.signal(signal.SIGINT, _usual)
