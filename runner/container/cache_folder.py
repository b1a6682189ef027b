"""The cache of a container's workers: entries that were sent are linked into it, new ones are kept for later jobs.

Links are safe: entries are read, replaced by renaming or removed by name, but never written to (`runner.cache.store`,
`runner.paths.atomic_file`). So a file that is not a link is new.
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
"""Encodings, and class images that were drawn (`runner.cache.encodings`)."""


class CacheFolder:
    """The workers' RUNNER_CACHE folder.

    Args:
        folder: where it is created.
        sources: folders with entries; missing ones are skipped.
        kept: where new entries are copied to, atomically; None on hosts that keep nothing.
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
        """Copy what is new since the last call; a failed copy is logged, and only later jobs miss it."""
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
                continue  # a temporary file that has just been renamed, or no measurements yet
            except OSError as error:
                log.warning("%s is not kept: %s", file.name, error)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside the context, keep what is new at intervals, and once more at the end."""
        try:
            with repeating(self.keep, every_s=KEEP_EVERY_S, name="keeps the cache"):
                yield
        finally:
            self.keep()
