"""Turns `dataset.path` into a place on this machine and hands it to the reader of its layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from runner.data.faults import Faults, listed, nearest
from runner.data.sources.folder import read_folder
from runner.data.sources.found import Found
from runner.data.sources.hub import download
from runner.data.sources.listing import TABLE_SUFFIXES, list_folder
from runner.data.sources.s3 import mirrored
from runner.data.sources.streamed import read_streamed
from runner.data.sources.tables import read_tables
from runner.s3 import is_s3

if TYPE_CHECKING:
    from runner.schema import DatasetSettings

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find(settings: DatasetSettings, faults: Faults, *, refresh: bool = True) -> Found:
    """All images that `settings` names, unread. Adds to `faults`; raises DatasetError when there is no such
    place.

    `refresh` asks S3 for changes even where a whole copy of what lies there is on this machine.
    """
    if settings.stream:
        _must_be_on_the_hub(settings.paths[0], faults)
        return read_streamed(settings, faults, refresh=refresh)
    place, from_hub = _place(settings, faults, refresh=refresh)
    if settings.revision is not None and not from_hub:
        faults.add(
            "revision",
            f"dataset.revision={settings.revision!r} has no effect on files here or in S3. Remove it, or give a Hub "
            "id.",
        )
    if place.is_file():
        if place.suffix.lower() not in TABLE_SUFFIXES:
            fix = f"Give the folder that holds it: dataset.path={str(place.parent)!r}"
            faults.add("path", f"{place.name}: a single file must be .parquet or .arrow. {fix}.")
            raise faults.error()
        return read_tables(place.parent, [place.name], settings, faults, root=place)
    listing = list_folder(place)
    for error in listing.errors:
        faults.add("listing", error)
    if listing.tables and not listing.images:
        return read_tables(place, listing.tables, settings, faults, root=place, select_split=True)
    if settings.image_column != "image":
        faults.add(
            "column",
            f"dataset.image_column={settings.image_column!r} has no effect on a folder of images. Remove it.",
        )
    if settings.mask_column != "mask":
        faults.add(
            "column",
            f"dataset.mask_column={settings.mask_column!r} has no effect on a folder of images. Remove it.",
        )
    return read_folder(listing, settings, faults)


def _place(settings: DatasetSettings, faults: Faults, *, refresh: bool) -> tuple[Path, bool]:
    """(folder or file, whether it is a copy of a Hub repository)."""
    (path,) = settings.paths
    if path == "embedded":
        from runner.embedded import DATASET_DIR

        return DATASET_DIR, False
    if is_s3(path):
        return mirrored(settings, faults, refresh=refresh), False
    local = Path(path).expanduser()
    if local.exists():
        return local, False
    if _may_be_hub_id(path):
        return download(settings, faults), True
    faults.add("path", _not_found(local))
    raise faults.error()


def _may_be_hub_id(path: str) -> bool:
    return bool(HUB_ID.fullmatch(path)) and not _looks_local(Path(path))


def _must_be_on_the_hub(path: str, faults: Faults) -> None:
    there = "in S3" if is_s3(path) else "here" if path == "embedded" or Path(path).expanduser().exists() else None
    if there is None and _may_be_hub_id(path):
        return
    if there is None:
        faults.add("path", _not_found(Path(path).expanduser()))
    else:
        faults.add(
            "stream", f"dataset.stream=true has no effect on files that are {there}. Remove it, or give a Hub id."
        )
    raise faults.error()


def _looks_local(path: Path) -> bool:
    """Whether `path`, which does not exist, is more likely a misspelt file or folder than a Hub id."""
    return path.suffix.lower() in TABLE_SUFFIXES or bool(
        path.parent.is_dir() and nearest(path.name, _names(path.parent))
    )


def _not_found(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    names = _names(parent)
    hint = nearest(path.name, names) or f"; there are: {listed(names)}"
    fix = (
        "Give a folder of images, a .parquet or .arrow file, s3://bucket/folder/, a Hub id 'owner/name', or 'embedded'"
    )
    return f"not found: no {path.name!r} in {parent.resolve()}{hint}. {fix}."


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
