"""A data set in S3: its copy on this machine, brought up to date, or a fault in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runner.data.faults import Faults
from runner.data.sources.listing import TABLE_SUFFIXES
from runner.s3 import Location
from runner.s3.access import NoAccess
from runner.s3.mirror import Mirror
from runner.s3.missing import NotThere

if TYPE_CHECKING:
    from runner.schema import DatasetSettings


def source_of(path: str) -> Location:
    """The folder, or the single parquet or arrow file, that `dataset.path` names.

    Raises:
        ValueError: it names neither.
    """
    return Location.of_input(path, files=tuple(TABLE_SUFFIXES))


def mirrored(settings: DatasetSettings, faults: Faults, *, refresh: bool) -> Path:
    """The copy of `settings.path`. Raises DatasetError.

    Args:
        refresh: ask S3 for changes even if a complete copy is here.
    """
    try:
        mirror = Mirror(source_of(settings.paths[0]))
    except ValueError as error:
        faults.add("s3", str(error))
        raise faults.error() from None
    if not refresh and mirror.is_complete:
        return mirror.path
    try:
        return mirror.bring()
    except (NoAccess, NotThere) as error:
        faults.add("s3", f"{error}.")
        raise faults.error() from error
