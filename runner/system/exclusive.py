"""One process on this machine at a time, while the others wait; and whether a file system has the locks for that."""

from __future__ import annotations

import fcntl
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def alone(file: Path, *, doing: str) -> Iterator[None]:
    """Wait until no other process is here; released when this process ends, however it ends.

    Args:
        file: the file to lock; it is created, and stays.
        doing: what the message about waiting says that the other process is doing.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process, which is %s", doing)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def alone_if_free(file: Path) -> Iterator[bool]:
    """Like `alone`, but without waiting: yields whether it is this process's turn."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def why_no_locks(folder: Path) -> str:
    """What the system says where files in a folder cannot be locked; empty where they can be."""
    with tempfile.TemporaryFile(dir=folder) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return str(error.strerror)
    return ""
