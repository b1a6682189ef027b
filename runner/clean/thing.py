"""Something that could be freed: what it is, how large and how old; and the kinds of such things."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HOUR_S, DAY_S = 3600.0, 86400.0
UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True)
class Kind:
    """A kind of thing, confirmed as a whole."""

    name: str
    doc: str
    named: bool = False
    """Found only if named."""
    listed: bool = False
    """Only shown, with the command that removes it."""


KINDS = {
    kind.name: kind
    for kind in (
        Kind("checkpoints", "checkpoints of completed jobs, which nobody continues"),
        Kind("samples", "images of completed trainings between the first and the last step"),
        Kind(
            "cache",
            "what is encoded, drawn, copied or unpacked for jobs other than these; it is made again if needed",
        ),
        Kind("jobs", "folders of failed and cancelled jobs, with what they could be continued from"),
        Kind("s3", "what training jobs whose results are here have left in S3"),
        Kind("unfinished", "folders of jobs that wait or were interrupted", named=True),
        Kind("s3-inputs", "data sets and models in S3 of completed jobs; they are sent again if needed", named=True),
        Kind("endpoints", "endpoints that cost money", listed=True),
        Kind("images", "images in ECR", listed=True),
    )
}


@dataclass(frozen=True)
class Thing:
    """One line of the table."""

    kind: str
    what: str
    size_bytes: int | None = None
    changed_s: float | None = None
    """When anything in it last changed, in seconds since 1970."""
    remove: Callable[[], None] | None = field(default=None, repr=False, compare=False)
    """Frees it if it is still what it was when found; raises RunnerError or OSError if that fails."""
    command: str = ""
    """The command a person runs to remove what this program never removes."""


def measure(paths: Iterable[Path]) -> tuple[int, float | None]:
    """(bytes, latest change) of files and of everything in folders; links count as links."""
    size, latest = 0, None
    for path in paths:
        for file in _files(path):
            try:
                status = file.lstat()
            except OSError:
                continue
            size += status.st_size
            latest = max(latest or 0.0, status.st_mtime)
    return size, latest


def _files(path: Path) -> Iterator[Path]:
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for root, folders, names in os.walk(path):  # which continues if a folder vanishes in the meantime
        yield from (Path(root, name) for name in names)
        yield from (link for name in folders if (link := Path(root, name)).is_symlink())


def size_text(size_bytes: int | None) -> str:
    """A size for people: 1.2 GB."""
    if size_bytes is None:
        return "–"
    return next((f"{size_bytes / unit:.3g} {name}" for unit, name in UNITS if size_bytes >= unit), f"{size_bytes} B")


def age_text(changed_s: float | None) -> str:
    """How long ago: 3 days, 5 hours."""
    if changed_s is None:
        return "–"
    ago_s = max(0.0, time.time() - changed_s)
    if ago_s < HOUR_S:
        return "under an hour"
    amount, noun = (ago_s / HOUR_S, "hour") if ago_s < 2 * DAY_S else (ago_s / DAY_S, "day")
    return f"{int(amount)} {noun}{'' if int(amount) == 1 else 's'}"
