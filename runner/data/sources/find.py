"""Turns `dataset.path` into a place on this machine and hands it to the reader of its layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from runner.data.faults import Faults, listed, nearest
from runner.data.report import Row
from runner.data.sources.description import read_description
from runner.data.sources.folder import read_folder
from runner.data.sources.found import Found
from runner.data.sources.hub import download
from runner.data.sources.listing import TABLE_SUFFIXES, Listing, list_folder, stem_of
from runner.data.sources.s3 import mirrored
from runner.data.sources.streamed import read_streamed
from runner.data.sources.tables import holds_images, is_shard, read_tables, split_of
from runner.hub import HUB_ID
from runner.paths import path_of
from runner.s3 import is_s3

if TYPE_CHECKING:
    from runner.schema import DatasetSettings


def find(settings: DatasetSettings, faults: Faults, *, refresh: bool = True) -> Found:
    """All images that `settings` names, not yet read. Adds to `faults`; raises DatasetError if there is no such place.

    `refresh` asks S3 for changes even if a complete copy is on this machine.
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
        if settings.split not in ("train", split_of(place.name, settings.split)):
            faults.add("split", f"dataset.split={settings.split!r} has no effect on a single file. Remove it.")
        return read_tables(place.parent, [place.name], settings, faults, root=place)
    listing = list_folder(place)
    for error in listing.errors:
        faults.add("listing", error)
    if _is_of_tables(listing, settings, faults):
        found = read_tables(place, listing.tables, settings, faults, root=place, select_split=True)
        beside = ("beside tables, which are the data set",)
        found.rows += [Row(name, "ignored", beside, frozenset({"warning"})) for name in listing.images]
        return found
    for key, usual in (("image_column", "image"), ("mask_column", "mask")):
        if (chosen := getattr(settings, key)) != usual:
            faults.add("column", f"dataset.{key}={chosen!r} has no effect on a folder of images. Remove it.")
    return read_folder(listing, settings, faults)


def _is_of_tables(listing: Listing, settings: DatasetSettings, faults: Faults) -> bool:
    """Whether a folder's data set is its tables rather than its images. Raises DatasetError if it may be either."""
    if not (listing.tables and listing.images):
        return bool(listing.tables)
    described = Found(listing.root)
    read_description(described, Faults(settings.paths[0]))
    if listing.metadata or described.instance_prompt or described.class_prompt or described.class_folder:
        return False
    tables = [name for name in listing.tables if holds_images(listing.root / name, settings.image_column)]
    texts = {stem_of(name) for name in listing.texts}
    captioned = any(stem_of(name) in texts for name in listing.images)
    # The Hub and the `datasets` library use such names; images beside such tables only preview their content.
    if any(map(is_shard, tables)) and not captioned:
        return True
    if tables:
        common = tables[0] if len(tables) == 1 else os.path.commonpath([os.path.dirname(name) for name in tables])
        start = settings.paths[0].rstrip("/") if is_s3(settings.paths[0]) else listing.root
        give = f"give the tables as dataset.path={f'{start}/{common}'!r}, or " if common else ""
        faults.add(
            "both",
            f"holds tables with images ({listed(tables, limit=3)}) and images ({listed(listing.images, limit=3)}), and "
            f"a data set is one or the other. To train on one of them, {give}move the other out of the folder.",
        )
        raise faults.error()
    return False


def _place(settings: DatasetSettings, faults: Faults, *, refresh: bool) -> tuple[Path, bool]:
    """(folder or file, whether it is a copy of a Hub repository)."""
    (path,) = settings.paths
    if path == "embedded":
        from runner.embedded import DATASET_DIR

        return DATASET_DIR, False
    if is_s3(path):
        return mirrored(settings, faults, refresh=refresh), False
    local = path_of(path)
    if os.path.exists(local):  # Path.exists raises if a name is too long for the system
        return local, False
    if _may_be_hub_id(path):
        return download(settings, faults), True
    faults.add("path", _not_found(local))
    raise faults.error()


def _may_be_hub_id(path: str) -> bool:
    return bool(HUB_ID.fullmatch(path)) and not _looks_local(Path(path))


def _must_be_on_the_hub(path: str, faults: Faults) -> None:
    there = "in S3" if is_s3(path) else "here" if path == "embedded" or os.path.exists(path_of(path)) else None
    if there is None and _may_be_hub_id(path):
        return
    if there is None:
        faults.add("path", _not_found(path_of(path)))
    else:
        faults.add(
            "stream", f"dataset.stream=true has no effect on files that are {there}. Remove it, or give a Hub id."
        )
    raise faults.error()


def _looks_local(path: Path) -> bool:
    """Whether `path`, which does not exist, is more likely a misspelt file or folder than a Hub id."""
    return path.suffix.lower() in TABLE_SUFFIXES or bool(
        os.path.isdir(path.parent) and nearest(path.name, _names(path.parent))
    )


def _not_found(path: Path) -> str:
    parent = path.parent
    while not os.path.isdir(parent):
        path, parent = parent, parent.parent
    names = _names(parent)
    fix = (
        "Give a folder of images, a .parquet or .arrow file, s3://bucket/folder/, a Hub id 'owner/name', or 'embedded'"
    )
    if os.path.exists(path):
        return f"not found: {path.name!r} in {parent.resolve()} is a file. {fix}."
    hint = nearest(path.name, names) or f"; there are: {listed(names)}"
    return f"not found: no {path.name!r} in {parent.resolve()}{hint}. {fix}."


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
