"""A worker's process that is forked from one which has loaded the libraries, so that several workers share these.

Loading them takes four seconds of a core and a third of a gigabyte. Only for the CPU: what CUDA sets up in a process
does not survive a fork. Only on Linux: elsewhere the system's own libraries do not bear one.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

from runner.work import main

CAN_FORK = sys.platform == "linux"
UNKNOWN_CODE = 255
"""What `multiprocessing` says of a process once the one that it was forked from is gone, whether it runs or not."""


class Forked:
    """`python -m runner.work`, forked; with the part of `subprocess.Popen` that a worker needs.

    It ends with this process at the latest, and is asked to save its work before.

    Args:
        options: what it is told on its command line.
        log: where its output goes, in a session of its own; None shares this process's terminal.

    Raises:
        OSError: no process can be forked here, at least at this moment.
    """

    def __init__(self, options: Sequence[str], *, environment: Mapping[str, str], log: Path | None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["runner.launchers.libraries"])
        with _environment(environment), _without_ctrl_c():  # OpenMP reads its settings when it is loaded
            forkserver.ensure_running()
        self._process = context.Process(target=_work, args=(list(options), dict(environment), log), daemon=True)
        try:
            self._process.start()
        except EOFError as error:
            raise OSError("the process that workers are forked from was killed") from error
        self._life: int | None = None
        with suppress(OSError):  # it has ended already, or the system is too old to have such handles
            self._life = os.pidfd_open(self.pid)

    @property
    def pid(self) -> int:
        """Its number."""
        pid = self._process.pid
        assert pid is not None
        return pid

    def poll(self) -> int | None:
        """How it ended: its exit code, or a signal's number below zero; None while it runs.

        255 where nobody can say, because the process that it was forked from did not live as long.
        """
        code = self._process.exitcode
        if code is None or (code == UNKNOWN_CODE and self._lives()):
            return None
        if self._life is not None:
            os.close(self._life)
            self._life = None
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended at this moment
                os.kill(self.pid, number)

    def _lives(self) -> bool:
        """Whether it runs, asked of the system."""
        if self._life is None:
            return False
        asked = select.poll()
        asked.register(self._life, select.POLLIN)
        return not asked.poll(0)


def forget_libraries() -> None:
    """End the process that workers are forked from; all of them must have ended. The next one starts it anew."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def as_a_command(action: Callable[[], int], environment: Mapping[str, str], log: Path | None) -> None:
    """In a forked process: do something as if it were a command that has just been started, and end with its code.

    Args:
        environment: all of it.
        log: where its output goes, in a session of its own; None leaves both as they are.
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
            atexit._run_exitfuncs()  # multiprocessing leaves them out
    except KeyboardInterrupt:
        # As the interpreter itself ends then, so that whoever waits for it knows why.
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
    """What is started within it hears none until it wants to: a Python that begins says pages of one."""
    resource_tracker.ensure_running()  # it would hear again at its end
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
