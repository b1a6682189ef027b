"""`metadata.jsonl` and `metadata.csv`: one line per image with its `file_name` and caption. Does not open images."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.data.faults import Faults, listed, nearest
from runner.data.report import Row
from runner.data.sources.found import CAPTION_COLUMN, captions_in, passed_over
from runner.data.sources.listing import Listing
from runner.system.values import as_typed

if TYPE_CHECKING:
    from runner.schema import DatasetSettings

FILE_COLUMN = "file_name"


@dataclass(frozen=True)
class Line:
    """One line of a metadata file; `number` counts from 1, like an editor."""

    file: str
    number: int
    values: dict[str, Any]

    @property
    def place(self) -> str:
        """`metadata.jsonl line 3`, for messages."""
        return f"{self.file} line {self.number}"


def read_metadata(
    listing: Listing, files: list[str], settings: DatasetSettings, has_default_caption: bool, faults: Faults
) -> tuple[dict[str, tuple[str, ...]], dict[str, str], list[Row]]:
    """(captions by image name, the one of `files` that governs each folder, both relative to the data set's folder; a
    row for each file whose captions are not read).

    Adds to `faults`: lines that are not JSON, lack a column, or name a missing file or one already named.
    """
    captions: dict[str, tuple[str, ...]] = {}
    places: dict[str, str] = {}
    covered: dict[str, str] = {}
    rows: list[Row] = []
    for file in files:
        folder = posixpath.dirname(file)
        if folder in covered:
            faults.add("metadata", f"{file} and {covered[folder]} are in one folder. Remove one of them.")
            continue
        covered[folder] = file
        lines = list(_lines(listing.root, file, faults))
        has_captions = _check_caption_column(lines, settings.caption_column, has_default_caption, faults)
        rows += passed_over(file, settings.caption_column, {name for line in lines for name in line.values})
        for line in lines:
            name = _image_name(line, folder, listing, faults)
            if name is None:
                continue
            if name in places:
                faults.add("twice", f"{line.place}: {name!r} is already in {places[name]}. Remove one of the two.")
                continue
            places[name] = line.place
            # A column that is missing altogether is one fault, already added, not one per image.
            captions[name] = _captions(line, settings.caption_column, faults) if has_captions else ("-",)
    return captions, covered, rows


def _lines(root: Path, file: str, faults: Faults) -> Iterator[Line]:
    try:
        text = (root / file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        faults.add("metadata", f"{file}: cannot be read as text ({error}). Save it as UTF-8.")
        return
    if file.endswith(".csv"):
        yield from _csv_lines(file, text, faults)
        return
    if text.lstrip().startswith("["):
        fix = f'Write an object into each line, as {{"{FILE_COLUMN}": ..., "text": ...}}, without brackets around all'
        faults.add("json", f"{file}: is one list. {fix}.")
        return
    # Not splitlines(): a caption may contain characters that it treats as line ends.
    for number, content in enumerate(text.split("\n"), start=1):
        if content.strip() and (line := _json_line(file, number, content, faults)):
            yield line


def _csv_lines(file: str, text: str, faults: Faults) -> Iterator[Line]:
    # Strict, because an unclosed quote would turn all following lines into one caption.
    reader = csv.reader(io.StringIO(text), strict=True)
    columns: list[str] | None = None
    number = 1
    try:
        for cells in reader:
            # A quoted caption may span several lines; people look for the first.
            first, number = number, reader.line_num + 1
            if not cells:
                continue
            if columns is None:
                columns = cells
                if other := next((sign for sign in ";\t|" if FILE_COLUMN in cells[0].split(sign)[:-1]), None):
                    faults.add("metadata", f"{file}: its columns are separated by {other!r}. Save it with commas.")
                    return
                if twice := _twice(columns):
                    faults.add(
                        "metadata", f"{file}: the column {twice!r} is there twice. Rename or remove one of them."
                    )
                    return
            elif len(cells) > len(columns):
                faults.add("metadata", f"{file} line {first}: more cells than columns. Quote the caption.")
            else:
                yield Line(file, first, dict(zip_longest(columns, cells)))
    except csv.Error as error:
        fix = 'Close each quote that opens a cell, and write "" for a quote within it'
        faults.add("metadata", f"{file} line {number}: not valid CSV from here on ({error}). {fix}.")


def _json_line(file: str, number: int, content: str, faults: Faults) -> Line | None:
    try:
        values = json.loads(content, object_pairs_hook=_unambiguous)
    except ValueError as error:
        faults.add("json", f"{file} line {number}: not valid JSON ({error}). Repair or remove the line.")
        return None
    if not isinstance(values, dict):
        faults.add("json", f'{file} line {number}: must be an object, as {{"{FILE_COLUMN}": ..., "text": ...}}.')
        return None
    return Line(file, number, values)


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := _twice([key for key, _ in pairs]):
        raise ValueError(f"{twice!r} is there twice")
    return dict(pairs)


def _twice(names: Sequence[str]) -> str | None:
    return next((name for name in names if name and names.count(name) > 1), None)


def _check_caption_column(lines: list[Line], column: str, has_default: bool, faults: Faults) -> bool:
    """Whether captions can be looked up; adds one fault if no line has the column and nothing replaces it, or if its
    name looks misspelt.
    """
    if not lines or any(column in line.values for line in lines):
        return True
    columns = {name for line in lines for name in line.values}
    others = columns - {FILE_COLUMN}
    hint = nearest(column, others)
    # With a default caption no column is needed, but one that was set and misspelt was meant to be found.
    if has_default and not (hint and column != CAPTION_COLUMN):
        return True
    hint = hint or nearest("caption", others) or nearest("prompt", others)
    otherwise = "remove it" if has_default else "dataset.instance_prompt"
    faults.add(
        "column",
        f"{lines[0].file}: no column dataset.caption_column={column!r}{hint}; columns: {listed(columns)}. "
        f"Set dataset.caption_column to one of them, or {otherwise}.",
    )
    return False


def _image_name(line: Line, folder: str, listing: Listing, faults: Faults) -> str | None:
    """The image's path relative to the data set's folder, or None and a fault."""
    if FILE_COLUMN not in line.values:
        hint = nearest(FILE_COLUMN, line.values)
        faults.add(
            "file_name",
            f"{line.place}: no {FILE_COLUMN!r}{hint}; columns: {listed(line.values)}. "
            f"Name the image in {FILE_COLUMN!r}.",
        )
        return None
    given = line.values[FILE_COLUMN]
    if not isinstance(given, str) or not given.strip():
        faults.add("file_name", f"{line.place}: {FILE_COLUMN}={as_typed(given)} is not a file name. Name the image.")
        return None
    name = posixpath.normpath(posixpath.join(folder, given))
    root = os.path.abspath(listing.root)
    if posixpath.isabs(name) and name.startswith(f"{root}/"):
        # Use the name it has in the folder's listing.
        name = posixpath.relpath(name, root)
    if there := listing.name_of(name):
        return there
    hint = ""
    if faults.shows("missing"):
        # Comparing with all names takes time, and of ten thousand wrong ones only a few are shown.
        hint = nearest(given, (os.path.relpath(image, folder or ".").replace(os.sep, "/") for image in listing.images))
    faults.add("missing", f"{line.place}: there is no file {given!r}{hint}. Correct {FILE_COLUMN} or remove the line.")
    return None


def _captions(line: Line, column: str, faults: Faults) -> tuple[str, ...]:
    value = line.values.get(column)
    captions = captions_in(value)
    if captions is None:
        said = "must be text, or a list of texts that are not empty"
        faults.add("caption type", f"{line.place}: {column}={as_typed(value)} {said}. Put it in quotes.")
        return ("-",)
    return captions
