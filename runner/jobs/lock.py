"""Who works on a job: a lock on its folder, which is always released when its process ends.

The locks are advisory file locks (`flock`): other machines see them only if the shared disk passes them on.
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
    """Another runner is working on the same job."""


def is_held(folder: Path) -> bool:
    """Whether another process is working on a job right now. Needs only read access to the folder."""
    try:
        with JobPaths(folder).lock.open() as handle:
            return not _locked(handle, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


@contextmanager
def lock(folder: Path, *, patience_s: float = 0.2) -> Iterator[None]:
    """Lock the job's folder against every other process; released when this process ends, however it ends.

    Args:
        patience_s: seconds to keep trying; a process that only checks whether it is held holds it for a moment.

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
            if not _is_at(handle, path):  # its holder removed the folder: nobody else would wait for this file
                continue
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield
            return


def _is_at(handle: TextIO, path: Path) -> bool:
    """Whether an open file is still the one that others find at that path."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def last_holder(folder: Path) -> int | None:
    """The process that holds a job or held it last; None if none ever did."""
    try:
        return int(JobPaths(folder).lock.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_taken_up(folder: Path) -> bool:
    """Whether the last holder of a job is another process that still runs, and so may be about to start it."""
    holder = last_holder(folder)
    return holder not in (None, os.getpid()) and runs(holder)


def _locked(handle: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
