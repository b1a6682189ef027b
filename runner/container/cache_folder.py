"""The cache of a container's workers: what was sent along is linked into it, what is new is kept for later jobs.

Links are safe: entries are read, replaced by renaming or removed by name, never written to (`runner.cache.store`,
`runner.paths.atomic_file`). So a file that is no link is new.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runner.cache.measured import MEASUREMENTS
from runner.container.repeating import repeating
from runner.paths import atomic_file

log = logging.getLogger(__name__)

KEEP_EVERY_S = 10.0
ENTRIES = ("*.safetensors", "*.png")
"""Encodings, and images of a class that were drawn (`runner.cache.encodings`)."""


class CacheFolder:
    """The folder that is RUNNER_CACHE for the workers.

    Args:
        folder: where it is made.
        sources: folders with entries; those that are not there are passed over.
        kept: where new entries are copied to, whole; None on hosts that keep nothing.
    """

    def __init__(self, folder: Path, *, sources: Sequence[Path], kept: Path | None) -> None:
        self.folder, self.kept = folder, kept
        self._done: dict[Path, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for source in sources:
            self._link(source)

    def _link(self, source: Path) -> None:
        for file in source.rglob("*"):
            name = file.relative_to(source)
            link = self.folder / name
            if file.is_file() and not any(part.startswith(".") for part in name.parts) and not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.absolute())

    def keep(self) -> None:
        """Copy what is new since the last time; what cannot be copied is said, and lost to later jobs alone."""
        if self.kept is None:
            return
        entries = [file for pattern in ENTRIES for file in self.folder.rglob(pattern)]
        for file in [*entries, self.folder / MEASUREMENTS]:
            try:
                changed_ns = file.stat().st_mtime_ns
                if file.is_symlink() or file.name.startswith(".") or self._done.get(file) == changed_ns:
                    continue
                with atomic_file(self.kept / file.relative_to(self.folder)) as temporary:
                    shutil.copyfile(file, temporary)
                self._done[file] = changed_ns
            except FileNotFoundError:
                continue  # a temporary file that has just got its name, or no measurements yet
            except OSError as error:
                log.warning("%s is not kept: %s", file.name, error)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep what is new from time to time, and at the end."""
        try:
            with repeating(self.keep, every_s=KEEP_EVERY_S, name="keeps the cache"):
                yield
        finally:
            self.keep()
