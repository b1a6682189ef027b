"""The files in a folder, by kind, in an order that does not depend on the file system. Reads names only."""

from __future__ import annotations

import os
import stat
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from runner.paths import outputs_dir
from runner.system.printable import whole

IMAGE_SUFFIXES = frozenset(
    (
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".avif",
        ".jp2",
        ".ppm",
        ".pgm",
        ".heic",
        ".heif",
        ".jxl",
    )
)
"""Includes some that Pillow cannot read, on purpose: a photograph must be rejected by name, not silently skipped."""
TABLE_SUFFIXES = frozenset({".parquet", ".arrow"})
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
DESCRIPTION_NAME = "dataset_info.json"
STATE_NAME = "state.json"
"""Written by `save_to_disk` of the `datasets` library beside its arrow files, which it lists."""
SAVED_DATASET_NAMES = frozenset({STATE_NAME, "dataset_dict.json", "dataset_infos.json"})
"""Bookkeeping files of the `datasets` library beside its arrow files."""


@dataclass
class Listing:
    """Files below `root`, as paths relative to it with forward slashes, each list sorted."""

    root: Path
    images: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    """The folder of all results, if it is below `root`; nothing in it is listed."""
    errors: list[str] = field(default_factory=list)
    """Folders that cannot be opened, and names that are not UTF-8; their images would be missed."""

    @cached_property
    def _as_written(self) -> dict[str, str]:
        names = (*self.images, *self.texts, *self.others)
        return {composed(name): name for name in names} | {name: name for name in names}

    def name_of(self, given: str) -> str | None:
        """The file meant by a name relative to `root`, whatever its Unicode form; None if there is none."""
        if there := self._as_written.get(given) or self._as_written.get(composed(given)):
            return there
        # Path.is_file raises if a name is too long for the system, such as a caption in its place.
        return given if os.path.isfile(self.root / given) else None


def composed(name: str) -> str:
    """The common form of all Unicode forms of a name: macOS writes an accent as a character after its letter."""
    return unicodedata.normalize("NFC", name)


def stem_of(name: str) -> str:
    """A path without its suffix, which links an image to the files that belong to it."""
    return composed(os.path.splitext(name)[0])


def list_folder(root: Path) -> Listing:
    """All files below `root`; links are followed, each folder once. Skips names that begin with a dot, and the results
    of trainings, which would otherwise become data of the next one.
    """
    listing = Listing(root)
    seen: set[str] = set()
    results = os.path.realpath(outputs_dir())

    def failed(error: OSError) -> None:
        fix = "Make it readable or remove it"
        listing.errors.append(f"{error.filename}: the folder cannot be read ({error.strerror}). {fix}.")

    for folder, folders, files in os.walk(root, followlinks=True, onerror=failed):
        real = os.path.realpath(folder)
        if real in seen:
            # Following a link to a parent folder would never end.
            folders.clear()
            continue
        seen.add(real)
        if real == results and Path(folder) != root:
            listing.results.append(Path(folder).relative_to(root).as_posix())
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith("."):
                _sort_in(listing, Path(folder, name).relative_to(root).as_posix())
    for names in (listing.images, listing.texts, listing.tables, listing.metadata, listing.others):
        names.sort()
    return listing


def _sort_in(listing: Listing, name: str) -> None:
    if not name.isascii() and name != whole(name):
        listing.errors.append(f"{whole(name)}: the name is not UTF-8. Rename the file.")
        return
    if _waits_for_another_program(listing.root / name):
        listing.errors.append(f"{name}: is a pipe or a device, and no file. Remove it.")
        return
    suffix, base = os.path.splitext(name)[1].lower(), os.path.basename(name)
    if base in METADATA_NAMES:
        listing.metadata.append(name)
    elif suffix in IMAGE_SUFFIXES:
        listing.images.append(name)
    elif suffix in TABLE_SUFFIXES:
        listing.tables.append(name)
    elif suffix == ".txt":
        listing.texts.append(name)
    elif base != DESCRIPTION_NAME and base not in SAVED_DATASET_NAMES:
        listing.others.append(name)


def _waits_for_another_program(path: Path) -> bool:
    """Whether reading it might never end; a link that leads nowhere is no such thing, and is reported when read."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
