"""Parquet and arrow files with one image per row: single files, Hub shards, and the output of `Dataset.save_to_disk`.

Reads schemas and captions; the images stay in the files until they are needed.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.data.address import Address, ArrowAddress, ParquetAddress, open_arrow
from runner.data.faults import Faults, listed, nearest
from runner.data.report import Row
from runner.data.sources.found import CAPTION_COLUMN, KNOWN_SPLITS, Entry, Found, captions_in, passed_over
from runner.data.sources.listing import STATE_NAME
from runner.system.values import as_typed

if TYPE_CHECKING:
    import pyarrow

    from runner.schema import DatasetSettings

REPEATS_COLUMN = "lora_runner_repeats"
"""In tables that this project wrote: how often each image comes in an epoch."""

OWN_TABLE = b"lora_runner"
"""Marks the schema metadata of such tables: they have no mask column if no image has a mask."""

SHARD = re.compile(r"([^/]+)-\d{5}-of-\d{5}")
"""Matches the names of tables that the Hub and the `datasets` library write."""


def read_tables(
    folder: Path,
    names: list[str],
    settings: DatasetSettings,
    faults: Faults,
    *,
    root: Path,
    select_split: bool = False,
) -> Found:
    """Rows of the files `names` below `folder`; with `select_split` only those that belong to `settings.split`."""
    found = Found(root)
    if settings.captions_per_line:
        faults.add("lines", "dataset.captions_per_line=true has no effect on tables. Remove it.")
    chosen = of_split(_saved(folder, names, found), settings, found, faults) if select_split else names
    for name in chosen:
        try:
            read_table(folder / name, name, settings, found, faults)
        except (OSError, ValueError) as error:
            # pyarrow's errors are ValueErrors; their messages can be long, but the first line says what happened.
            reason = str(error).strip().split("\n")[0]
            faults.add("table", f"{name}: cannot be read ({reason}). Copy or download the file again.")
    return found


def is_shard(name: str) -> bool:
    """Whether a table is named the way the Hub and the `datasets` library name shards."""
    return SHARD.search(name) is not None


def holds_images(path: Path, column: str) -> bool:
    """Whether a table may hold images, in `column` or another column of bytes. An unreadable one holds none."""
    try:
        schema = schema_of(path)
    except (OSError, ValueError):
        return False
    return any((each.name == column or not _is_text(each.type)) and _may_hold_images(each.type) for each in schema)


def _saved(folder: Path, names: list[str], found: Found) -> list[str]:
    """Leave out what the `datasets` library keeps beside the tables of a saved data set, copies of rows and indices of
    them; these get a row in `found`.
    """
    listed_there = {parent: _named_in_state(folder / parent) for parent in set(map(posixpath.dirname, names))}
    kept = []
    for name in names:
        parent, base = posixpath.split(name)
        known = listed_there[parent]
        if known is None or base in known:
            kept.append(name)
        else:
            found.rows.append(Row(name, "ignored", (f"not named in {STATE_NAME}: a cache, not the data set",)))
    return kept


def _named_in_state(folder: Path) -> set[str] | None:
    """The tables that make up a saved data set; None if the folder itself holds no such data set."""
    try:
        state = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
        return {str(each["filename"]) for each in state["_data_files"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def of_split(names: list[str], settings: DatasetSettings, found: Found, faults: Faults) -> list[str]:
    """The tables of `settings.split`; the others get a row in `found`, and having none is a fault."""
    splits = {name: split_of(name, settings.split) for name in names}
    shards = {name: shard[1] for name in names if (shard := SHARD.search(name))}
    if settings.split in shards.values():
        # If there is a `test`, then `hard_test` is a different one.
        splits |= {name: split for name, split in shards.items() if splits[name] == settings.split}
    named = {split for split in splits.values() if split}
    if settings.split in named or (settings.split == "train" and not named):
        for name, split in splits.items():
            if split not in (settings.split, None):
                found.rows.append(Row(name, "ignored", (f"split {split!r}, dataset.split={settings.split!r}",)))
        return [name for name in names if splits[name] in (settings.split, None)]
    hint = nearest(settings.split, named)
    faults.add(
        "split",
        f"dataset.split={settings.split!r}: no file of this split{hint}; splits found: {listed(named)}. "
        "Choose one of them.",
    )
    return []


def split_of(name: str, wanted: str) -> str | None:
    """The split a table belongs to, by the words of its file name, or else of the innermost folder that names one."""
    shard = SHARD.search(name)
    if shard and shard[1] == wanted:
        return wanted
    for part in reversed(name.split("/")):
        for word in re.split(r"[^A-Za-z0-9]+", part):
            if word == wanted or word.lower() in KNOWN_SPLITS:
                return word
    # `save_to_disk` calls all its shards `data`; any other name before the numbers is its own split.
    return shard[1] if shard and shard[1] != "data" else None


def read_table(path: Path, name: str, settings: DatasetSettings, found: Found, faults: Faults) -> None:
    """Add the rows of one file to `found`. Raises OSError or ValueError if it cannot be read."""
    schema = schema_of(path)
    image, caption = settings.image_column, settings.caption_column
    if not check_columns(schema, name, settings, faults):
        return
    captions: list[Any] = []
    found.rows += passed_over(name, caption, schema.names)
    if caption in schema.names:
        captions = _column(path, caption).to_pylist()
    repeats = _column(path, REPEATS_COLUMN).to_pylist() if REPEATS_COLUMN in schema.names else []
    masks = _masks(path, name, settings) if settings.masks and settings.mask_column in schema.names else {}
    for address in _addresses(path, image):
        row = address.row
        texts = captions_in(captions[row]) if captions else ()
        if texts is None:
            faults.add(
                "caption type",
                f"{name} row {row}: column {caption!r} holds {as_typed(captions[row])}, not text or a list of texts. "
                "Choose another.",
            )
            texts = ("-",)
        fix = f"Fill column {caption!r}"
        found.entries.append(
            Entry(f"{name} row {row}", address, texts, fix, repeats[row] if repeats else 1, masks.get(row))
        )


def _masks(path: Path, name: str, settings: DatasetSettings) -> dict[int, tuple[str, Address]]:
    """Name and address of the mask of each row that has one."""
    # One cell at a time: masks are small, but all of them together need not be.
    cells = (cell.as_py() for cell in _column(path, settings.mask_column))
    there = [bool(cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else bool(cell) for cell in cells]
    return {
        address.row: (f"{name} row {address.row} {settings.mask_column!r}", address)
        for address in _addresses(path, settings.mask_column)
        if there[address.row]
    }


def check_columns(schema: pyarrow.Schema, name: str, settings: DatasetSettings, faults: Faults) -> bool:
    """Whether a table has the required columns, of the right types; adds to `faults`."""
    usable = True
    columns = [("image_column", settings.image_column), ("caption_column", settings.caption_column)]
    may_lack_masks = OWN_TABLE in (schema.metadata or {}) and settings.mask_column not in schema.names
    columns += [("mask_column", settings.mask_column)] if settings.masks and not may_lack_masks else []
    for key, column in columns:
        if schema.names.count(column) > 1:
            usable = False
            faults.add(key, f"{name}: has several columns dataset.{key}={column!r}. Rename all but one of them.")
        if column in schema.names:
            continue
        # As in metadata files: a setting that almost matches one of the table's columns was meant to match it.
        misspelt = column != CAPTION_COLUMN and nearest(column, schema.names)
        if key == "caption_column" and settings.instance_prompt and not misspelt:
            continue
        usable = False
        hint = nearest(column, schema.names) or nearest(key.removesuffix("_column"), schema.names)
        also = " or dataset.instance_prompt" if key == "caption_column" and not settings.instance_prompt else ""
        faults.add(
            key,
            f"{name}: no column dataset.{key}={column!r}{hint}; columns: {listed(schema.names)}. "
            f"Set dataset.{key}{also}.",
        )
    for key, column in columns:
        if key == "caption_column" or schema.names.count(column) != 1 or _may_hold_images(schema.field(column).type):
            continue
        usable = False
        faults.add(
            key,
            f"{name}: column dataset.{key}={column!r} holds {schema.field(column).type}, not images. "
            "Choose a column of bytes, or of {bytes, path}.",
        )
    return usable


def _may_hold_images(kind: pyarrow.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return bool({"bytes", "path"} & {kind.field(index).name for index in range(kind.num_fields)})
    # polars writes the view types.
    return kind in (pa.binary(), pa.large_binary(), pa.binary_view()) or _is_text(kind)


def _is_text(kind: pyarrow.DataType) -> bool:
    import pyarrow as pa

    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def schema_of(path: Path) -> pyarrow.Schema:
    """The columns of a parquet or arrow file. Raises OSError or ValueError."""
    import pyarrow.parquet as pq

    return pq.read_schema(path) if _is_parquet(path) else open_arrow(path).schema


def _column(path: Path, column: str) -> pyarrow.ChunkedArray:
    import pyarrow.parquet as pq

    if _is_parquet(path):
        # Not read_table(): it would treat folder names such as `split=train` as additional columns.
        with pq.ParquetFile(path) as parquet:
            return parquet.read(columns=[column]).column(column)
    return open_arrow(path).column(column)


def _addresses(path: Path, column: str) -> Iterator[Address]:
    import pyarrow.parquet as pq

    if not _is_parquet(path):
        yield from (ArrowAddress(path, column, row) for row in range(open_arrow(path).num_rows))
        return
    with pq.ParquetFile(path) as parquet:
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    row = 0
    for group, size in enumerate(sizes):
        for row_in_group in range(size):
            yield ParquetAddress(path, column, group, row_in_group, row)
            row += 1
