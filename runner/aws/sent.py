"""Folders in S3 named after their content: sent once, and complete only when a marker beside them says so."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.aws.storage import ObjectStore
from runner.paths import files_below
from runner.s3 import Location
from runner.s3.objects import remove

log = logging.getLogger(__name__)


def is_sent(place: Location, storage: ObjectStore) -> bool:
    """Whether a folder has been sent completely."""
    return storage.has(_complete(place))


def send(files: Mapping[str, Path], place: Location, storage: ObjectStore) -> None:
    """Send files, by their names in the folder, and only then mark it as complete."""
    storage.upload(files, place)
    storage.write(_complete(place), b"{}")


def send_folder(folder: Path, place: Location, storage: ObjectStore, *, what: str) -> None:
    """Send a folder without its hidden files, unless it is already there."""
    if is_sent(place, storage):
        return
    files = {file.relative_to(folder).as_posix(): file for file in files_below(folder, hidden=False)}
    log.info("to S3: %s, %.1f GB", what, sum(file.stat().st_size for file in files.values()) / 1e9)
    send(files, place, storage)


def forget(client: Any, place: Location) -> int:
    """Remove a folder; returns how many objects were in it.

    The marker is removed first: after an interrupted removal, the folder is sent again.
    """
    whole = _complete(place)
    client.delete_object(Bucket=whole.bucket, Key=whole.key)
    return remove(client, place)


def _complete(place: Location) -> Location:
    return dataclasses.replace(place, key=f"{place.key.rstrip('/')}.complete")
