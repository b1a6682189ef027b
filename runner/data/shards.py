"""Shards of a Hub data set on this machine: fetched on demand, up to a size limit.

Knows files, sizes and hashes, but not what is in a shard. Threads and processes share the folder: one fetches, the
others wait for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from runner.system.exclusive import alone

log = logging.getLogger(__name__)


class NotFetched(OSError):
    """A shard cannot be fetched from the Hub; the message says why, and what to do."""


@dataclass(frozen=True)
class Shard:
    """A file of a data set on the Hub, identified by its content."""

    repository: str
    commit: str
    name: str
    size: int
    digest: str
    """The Hub's own hash: `sha256:...` for a large file, `git:...` for a small one."""


@dataclass(frozen=True)
class ShardStore:
    """A folder that never holds more than `max_bytes` of shards; the least recently used ones are removed first."""

    folder: Path
    max_bytes: int

    def place(self, shard: Shard) -> Path:
        """The path of a shard while it is here; paths sort like the names of the shards."""
        return _place(self.folder, shard)

    @contextmanager
    def hold(self, shard: Shard) -> Iterator[Path]:
        """The shard's file, which stays as long as it is held. A thread must not hold two.

        Raises:
            NotFetched: it is not here and cannot be fetched.
        """
        place = self.place(shard)
        while True:
            with self._turn(place, fcntl.LOCK_SH):
                if place.is_file():
                    os.utime(place)
                    yield place
                    return
            self._fetch(shard)

    def _fetch(self, shard: Shard) -> None:
        place, incoming = self.place(shard), self.folder / "incoming"
        with alone(self.folder / "fetching.lock", doing="fetching a part of a data set"):
            if place.is_file():
                return
            # Left by a process that died.
            shutil.rmtree(incoming, ignore_errors=True)
            self._make_room(shard.size)
            log.info("fetching %s of %s, %.1f MB", shard.name, shard.repository, shard.size / 1e6)
            try:
                fetched = _downloaded(shard, incoming)
                place.parent.mkdir(parents=True, exist_ok=True)
                fetched.replace(place)
            finally:
                shutil.rmtree(incoming, ignore_errors=True)

    def _make_room(self, size: int) -> None:
        """Remove shards until one of `size` bytes fits, starting with those that nobody holds."""
        here = [(file.stat(), file) for file in self.folder.glob("files/**/*.parquet") if file.is_file()]
        by_use = [(file, status.st_size) for status, file in sorted(here, key=lambda each: each[0].st_mtime_ns)]
        total = sum(each for _, each in by_use)
        for wait in (fcntl.LOCK_NB, 0):
            for file, file_size in by_use:
                if total + size <= self.max_bytes:
                    return
                if not file.exists():
                    continue
                try:
                    with self._turn(file, fcntl.LOCK_EX | wait):
                        file.unlink()
                except BlockingIOError:
                    continue
                total -= file_size

    @contextmanager
    def _turn(self, place: Path, how: int) -> Iterator[None]:
        lock = self.folder / "locks" / f"{place.stem}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a") as handle:
            fcntl.flock(handle, how)
            yield


@lru_cache(maxsize=4096)
def _place(folder: Path, shard: Shard) -> Path:
    short = hashlib.sha256(f"{shard.repository} {shard.name} {shard.digest}".encode()).hexdigest()[:20]
    return folder / "files" / shard.repository.replace("/", "--") / f"{shard.name}.{short}.parquet"


def _downloaded(shard: Shard, folder: Path) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        file = Path(
            hf_hub_download(shard.repository, shard.name, repo_type="dataset", revision=shard.commit, local_dir=folder)
        )
    except Exception as error:  # the client's HTTP library has its own exceptions, which are not OSErrors
        raise NotFetched(f"{shard.name} of {shard.repository} cannot be fetched: {reason_of(error)}") from error
    if _digest(file, shard) != shard.digest:
        raise NotFetched(
            f"{shard.name} of {shard.repository} came damaged: it is not what the Hub's own hash says. Try again."
        )
    return file


def _digest(file: Path, shard: Shard) -> str:
    kind = shard.digest.partition(":")[0]
    # Git names a file by the hash of a line with its size followed by its content.
    head = b"blob %d\0" % file.stat().st_size
    begin = hashlib.sha256 if kind == "sha256" else partial(hashlib.sha1, head, usedforsecurity=False)
    with file.open("rb") as content:
        return f"{kind}:{hashlib.file_digest(content, begin).hexdigest()}"


def reason_of(error: Exception) -> str:
    """Why the Hub did not give a file, with the fix."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "the Hub asks to accept the data set's terms. Do so on its page and set HF_TOKEN."
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the data set is private or no longer there. Set HF_TOKEN, or choose another."
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return f"{type(error).__name__}: {reason}. Connect to the network and try again."
