"""A folder of image files, with captions in metadata files, in text files beside the images, or in `dataset_info.json`.

metadata.jsonl | metadata.csv    governs its folder and those below: images it does not name are left out
photo.jpg + photo.txt            otherwise the text file with the image's name holds its caption, or one per line
photo.mask.png                   with `masks`, what counts in photo.jpg (`runner.data.sources.masks`)
dataset_info.json                instance_prompt, class_prompt, class_data_dir
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from runner.data.address import FileAddress
from runner.data.faults import Faults, listed
from runner.data.report import Row
from runner.data.sources.description import read_description
from runner.data.sources.found import CAPTION_COLUMN, KNOWN_SPLITS, Entry, Found
from runner.data.sources.kohya import tell_captions_in_names
from runner.data.sources.listing import TABLE_SUFFIXES, Listing, stem_of
from runner.data.sources.masks import masks_among, without_masks
from runner.data.sources.metadata import read_metadata

if TYPE_CHECKING:
    from runner.schema import DatasetSettings


LIKE_CAPTIONS = (".jsonl", ".json", ".csv", ".tsv", ".caption", ".captions", *TABLE_SUFFIXES)


def read_folder(listing: Listing, settings: DatasetSettings, faults: Faults) -> Found:
    """The images below `listing.root` that belong to `settings.split`, with their captions."""
    found = Found(listing.root)
    read_description(found, faults)
    listing, masks = without_masks(listing, faults) if settings.masks else (listing, {})
    images = _instance_images(listing, found, settings, faults)
    has_default = bool(settings.instance_prompt or found.instance_prompt)
    deciding = [file for file in listing.metadata if _belongs(file, listing, found, settings)]
    if settings.caption_column != CAPTION_COLUMN and not deciding:
        said = "has no effect: no metadata.jsonl or metadata.csv has columns"
        faults.add("column", f"dataset.caption_column={settings.caption_column!r} {said}. Remove it.")
    named, covered, rows = read_metadata(listing, deciding, settings, has_default, faults)
    found.rows += rows
    for name, captions in named.items():
        if _belongs(name, listing, found, settings):
            fix = "Add it to the metadata file"
            found.entries.append(Entry(name, FileAddress(listing.root / name), captions, fix))
    free = []
    for name in images:
        if name in named:
            continue
        decider = next((covered[folder] for folder in _folders_above(name) if folder in covered), None)
        if decider is None:
            free.append(name)
        else:
            found.rows.append(_warning(name, f"not named in {decider}"))
    texts_read = _add_captioned_by_text(free, listing, found, settings, faults)
    if settings.captions_per_line and not texts_read:
        said = "has no effect: no caption comes from a text file"
        faults.add("lines", f"dataset.captions_per_line=true {said}. Remove it.")
    _add_unused(listing, found, texts_read, named.keys())
    if not has_default:
        _misnamed(listing, found, faults)
        _like_masks(listing, found, faults)
        tell_captions_in_names(found, settings, faults)
    found.rows += [Row(f"{name}/", "ignored", ("results of trainings (RUNNER_OUTPUTS)",)) for name in listing.results]
    for place, entry in enumerate(found.entries):
        if mask := masks.get(stem_of(entry.name)):
            found.entries[place] = dataclasses.replace(entry, mask=(mask, FileAddress(listing.root / mask)))
    return found


def _instance_images(listing: Listing, found: Found, settings: DatasetSettings, faults: Faults) -> list[str]:
    """Images of the chosen split that are not class images; the others get a row."""
    kept, other_splits = [], set()
    for name in listing.images:
        if _below(found.class_folder, listing.root / name):
            found.rows.append(Row(name, "ignored", ("class image",)))
        elif split := _in_other_split(name, settings):
            other_splits.add(split)
            found.rows.append(Row(name, "ignored", (f"in split {split!r}, dataset.split={settings.split!r}",)))
        else:
            kept.append(name)
    is_there = any(each.is_dir() and _is_chosen(each.name, settings) for each in listing.root.glob("*"))
    if (settings.split != "train" and not is_there) or (other_splits and not kept):
        folders = {PurePosixPath(name).parts[0] for name in listing.images if "/" in name}
        there = {folder for folder in folders if folder.lower() in KNOWN_SPLITS}
        faults.add(
            "split",
            f"dataset.split={settings.split!r}: no such folder; splits found: {listed(there)}. Choose one of them.",
        )
    return kept


def _belongs(name: str, listing: Listing, found: Found, settings: DatasetSettings) -> bool:
    in_class = _below(found.class_folder, listing.root / name)
    return not in_class and not _in_other_split(name, settings)


def _in_other_split(name: str, settings: DatasetSettings) -> str | None:
    """The split an image belongs to, by its topmost folder, if it is not the chosen one."""
    top = PurePosixPath(name).parts[0]
    is_folder = top != name
    return top if is_folder and top.lower() in KNOWN_SPLITS and not _is_chosen(top, settings) else None


def _is_chosen(folder: str, settings: DatasetSettings) -> bool:
    # Train and train are the same split.
    return folder.lower() == settings.split.lower()


def _add_captioned_by_text(
    names: list[str], listing: Listing, found: Found, settings: DatasetSettings, faults: Faults
) -> set[str]:
    """Add entries for images without metadata; returns the text files that were read for them."""
    by_stem = {stem_of(text): text for text in listing.texts}
    texts_read = set()
    for name in names:
        text = by_stem.get(stem_of(name))
        captions: tuple[str, ...] = ()
        if text:
            texts_read.add(text)
            content = _read_text(listing.root / text, text, faults)
            # Not splitlines(): a caption may contain characters that it treats as line ends.
            captions = tuple(content.split("\n")) if settings.captions_per_line else (content,)
        fix = f"Write one into {text or PurePosixPath(name).stem + '.txt beside it'}"
        found.entries.append(Entry(name, FileAddress(listing.root / name), captions, fix))
    return texts_read


def _read_text(path: Path, name: str, faults: Faults) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        faults.add("text", f"{name}: cannot be read as text ({error}). Save it as UTF-8.")
        return "-"  # so that its image is not also reported as having no caption


def _add_unused(listing: Listing, found: Found, texts_read: set[str], named: Collection[str]) -> None:
    """Rows for text files that caption nothing, tables beside images, and other files."""
    stems = {stem_of(name) for name in listing.images}
    for text in listing.texts:
        if text not in texts_read and text not in named:
            has_image = stem_of(text) in stems
            reason = "its image is left out or captioned elsewhere" if has_image else "no image of this name"
            found.rows.append(_warning(text, f"text not read: {reason}"))
    tables = [name for name in listing.tables if name not in named]
    found.rows += [_warning(name, "tables are read only from a folder without images") for name in tables]
    others = [name for name in listing.others if name not in named]
    found.rows += [Row(name, "ignored", ("not an image",)) for name in others]


def _misnamed(listing: Listing, found: Found, faults: Faults) -> None:
    """If images have no captions, report files that may hold them under a name that is not read."""
    if all(any(caption.strip() for caption in entry.captions) for entry in found.entries):
        return
    names = [name for name in (*listing.others, *listing.tables) if os.path.splitext(name)[1].lower() in LIKE_CAPTIONS]
    if names:
        read = "captions are read from metadata.jsonl, metadata.csv (in small letters) and .txt files"
        faults.add("misnamed", f"{listed(names, limit=3)}: not read; {read}. Rename or rewrite what holds them.")


def _like_masks(listing: Listing, found: Found, faults: Faults) -> None:
    """If images have no captions, report those named like masks, which are meant to have none."""
    without = {entry.name for entry in found.entries if not any(caption.strip() for caption in entry.captions)}
    if names := sorted(without & masks_among(listing.images).keys()):  # none if masks are read
        fix = "Add dataset.masks=true and loss.masked=true, or move them elsewhere"
        faults.add("like masks", f"{listed(names, limit=3)}: named like masks, and read as images. {fix}.")


def _warning(name: str, note: str) -> Row:
    return Row(name, "ignored", (note,), frozenset({"warning"}))


def _folders_above(name: str) -> Iterator[str]:
    """The folder of a file and all folders above it; the root is the empty name."""
    while name:
        name = name.rpartition("/")[0]
        yield name


def _below(folder: Path | None, path: Path) -> bool:
    # Where the file itself links to says nothing: in the Hub's cache, all files link into one folder of contents.
    return folder is not None and path.parent.resolve().is_relative_to(folder.resolve())
