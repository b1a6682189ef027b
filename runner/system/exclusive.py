"""One process of this machine at a time: the others wait; and whether a file system has the locks for that."""

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
    """Wait until no other process is here; freed when this process ends, however it ends.

    Args:
        file: what stands for the turn; it is made, and stays.
        doing: what another process is said to be doing, if it is waited for.
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
    """As `alone`, but without waiting: whether it is this process's turn."""
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
