"""A worker's process forked from one that has already loaded the libraries, so that several workers share them.

Loading them takes four seconds of a core and a third of a gigabyte. Only for the CPU: what CUDA sets up in a process
does not survive a fork. Only on Linux: elsewhere the system's own libraries do not tolerate one.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

from runner.work import main

CAN_FORK = sys.platform == "linux"
UNKNOWN_CODE = 255
"""The exit code that `multiprocessing` reports once the parent of the fork is gone, whether the process runs or not."""
PR_SET_CHILD_SUBREAPER = 36
"""Linux's prctl(2): what is orphaned below this process becomes its child, and so it learns how that ended."""


class Forked:
    """`python -m runner.work`, forked; offers the part of `subprocess.Popen` that a worker needs.

    It ends no later than this process, and is asked to save its work first.

    Args:
        options: its command line.
        log: the file for its output, in which case it gets its own session; None shares this process's terminal.

    Raises:
        OSError: no process can be forked here, at least at the moment.
    """

    def __init__(self, options: Sequence[str], *, environment: Mapping[str, str], log: Path | None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["runner.launchers.libraries"])
        with _environment(environment), _without_ctrl_c():  # OpenMP reads its settings when loaded
            forkserver.ensure_running()
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._process = context.Process(target=_work, args=(list(options), dict(environment), log), daemon=True)
        try:
            self._process.start()
        except EOFError as error:
            raise OSError("the process that workers are forked from was killed") from error
        self._code: int | None = None
        self._life: int | None = None
        with suppress(OSError):  # it has already ended, or the system is too old for such handles
            self._life = os.pidfd_open(self.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        pid = self._process.pid
        assert pid is not None
        return pid

    def poll(self) -> int | None:
        """How it ended: its exit code, or the negated number of a signal; None while it runs.

        255 if that is unknown.
        """
        if self._code is None:
            self._code = self._ended()
            if self._code is not None and self._life is not None:
                os.close(self._life)
                self._life = None
        return self._code

    def _ended(self) -> int | None:
        code = self._process.exitcode
        if code != UNKNOWN_CODE:
            return code
        if self._lives():
            return None
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return code  # its own code, or its end was not this process's to learn
        return os.waitstatus_to_exitcode(status) if pid else None

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def _lives(self) -> bool:
        """Whether it runs, according to the system."""
        if self._life is None:
            return False
        asked = select.poll()
        asked.register(self._life, select.POLLIN)
        return not asked.poll(0)


def forget_libraries() -> None:
    """End the process that workers are forked from, if there is one; the next worker restarts it.

    Workers go on. What that process alone still holds is freed: 0.1 GB, the libraries' files and what both of two
    workers have written to.
    """
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        # By itself it would wait for its workers. No worker is being forked: `Forked` has waited for that.
        os.kill(server._forkserver_pid, signal.SIGKILL)
        server._stop()


def as_a_command(action: Callable[[], int], environment: Mapping[str, str], log: Path | None) -> None:
    """In a forked process: run an action as if it were a freshly started command, and exit with its code.

    Args:
        environment: the complete environment.
        log: the file for its output, in which case it gets its own session; None leaves both as they are.
    """
    os.environ.clear()
    os.environ.update(environment)
    if log is not None:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.close(output)
    try:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            code = action()
        finally:
            atexit._run_exitfuncs()  # multiprocessing skips them
    except KeyboardInterrupt:
        # The interpreter itself ends this way, so that the waiting process knows why.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise
    sys.exit(code)


def _work(options: Sequence[str], environment: Mapping[str, str], log: Path | None) -> None:
    as_a_command(lambda: main(options), environment, log)


@contextmanager
def _environment(changed: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(changed)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Block Ctrl-C in processes started here until they unblock it: a starting Python prints pages on one."""
    resource_tracker.ensure_running()  # it unblocks the signal when it is done
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
