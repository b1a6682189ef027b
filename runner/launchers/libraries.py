"""Loads, when it is imported, what a worker needs: in the process that workers are forked from."""

from __future__ import annotations

import signal
from contextlib import suppress

from runner.work import load_libraries

# A Ctrl-C of a terminal goes to everybody, and was kept from this process until here (`runner.launchers.forked`). It is
# to end it while it loads, at once and without a page of words; afterwards it passes such signals over.
_usual = signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
with suppress(Exception):  # a worker meets it again, and says it where it is looked for
    load_libraries()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
signal.signal(signal.SIGINT, _usual)
