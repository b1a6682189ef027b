"""Who works on a job: a lock on its folder, which no process can leave behind when it ends.

Locks are advisory and of the file system (`flock`): other machines see them as far as the shared disk passes them on.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from runner.errors import RunnerError
from runner.paths import JobPaths
from runner.system.signals import runs

POLL_S = 0.01


class LockedError(RunnerError):
    """Another runner works on the same job."""


def is_held(folder: Path) -> bool:
    """Whether another process works on a job at this moment. Only reads, so that whoever may read may ask."""
    try:
        with JobPaths(folder).lock.open() as handle:
            return not _locked(handle, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


@contextmanager
def lock(folder: Path, *, patience_s: float = 0.2) -> Iterator[None]:
    """Hold the job's folder against every other process; freed when this process ends, however it ends.

    Args:
        patience_s: seconds to try for; somebody who only looks whether it is held holds it for a moment.

    Raises:
        LockedError: another process holds it.
    """
    path = JobPaths(folder).lock
    deadline = time.monotonic() + patience_s
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as handle:
            while not _locked(handle, fcntl.LOCK_EX):
                if time.monotonic() >= deadline:
                    handle.seek(0)
                    holder = handle.read().strip() or "unknown"
                    raise LockedError(f"{folder} is being worked on by process {holder}; wait for it or stop it")
                time.sleep(POLL_S)
            if not _is_at(handle, path):  # its holder has removed the folder: nobody else would wait at this file
                continue
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield
            return


def _is_at(handle: TextIO, path: Path) -> bool:
    """Whether an open file is the one that others find there."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def last_holder(folder: Path) -> int | None:
    """The process that holds a job, or has held it last; None where nobody ever did."""
    try:
        return int(JobPaths(folder).lock.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_taken_up(folder: Path) -> bool:
    """Whether another command has held a job last that still runs, and may be about to begin with it."""
    holder = last_holder(folder)
    return holder not in (None, os.getpid()) and runs(holder)


def _locked(handle: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
