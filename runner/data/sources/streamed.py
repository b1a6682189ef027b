"""A data set that stays on the Hub: which parquet files it has, and an index of what is in each of them.

A shard is read once to build its index (captions, content ids and sizes of its images); after that the index is used,
and a shard is fetched only for its pixels.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import paths
from runner.data.address import Address, ParquetAddress, StreamedAddress
from runner.data.faults import Faults, listed
from runner.data.inspection import Inspected, inspect_now, version
from runner.data.shards import NotFetched, Shard, ShardStore
from runner.data.sources.found import Entry, Found
from runner.data.sources.hub import explain, patterns
from runner.data.sources.listing import IMAGE_SUFFIXES
from runner.data.sources.tables import check_columns, of_split, read_table, schema_of
from runner.system.exclusive import alone

if TYPE_CHECKING:
    import pyarrow

    from runner.schema import DatasetSettings

log = logging.getLogger(__name__)

FORMAT = 1
"""Increase when the meaning of an index changes."""
GB = 10**9
SERVER_ERRORS = 500


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known about one row of a shard."""

    row_group: int
    row_in_group: int
    captions: tuple[str, ...]
    repeats: int
    seen: Inspected


@dataclasses.dataclass(frozen=True)
class Index:
    """What is known about a shard: its columns, and its rows in order."""

    schema: pyarrow.Schema
    rows: tuple[Row, ...]


def read_streamed(settings: DatasetSettings, faults: Faults, *, refresh: bool) -> Found:
    """All images of a Hub data set, without the files that contain them.

    Args:
        refresh: ask the Hub for the list of files, even if it is known from an earlier time.

    Raises:
        DatasetError: there is no such data set, it has no parquet files, or one of them is larger than the limit or
            cannot be fetched.
    """
    shards, found = _shards(settings, faults, refresh=refresh)
    store = _store(settings)
    for number, shard in enumerate(shards, start=1):
        index = _recall(shard, settings)
        if index is None:
            log.info("index of %s: %s, %d of %d", settings.paths[0], shard.name, number, len(shards))
            index = _indexed(shard, store, settings, faults)
        elif not check_columns(index.schema, shard.name, settings, faults):
            index = None
        if index is None or len(faults):
            # The next shards would fail the same way, after hours.
            raise faults.error()
        for position, row in enumerate(index.rows):
            address = StreamedAddress(
                store, shard, settings.image_column, row.row_group, row.row_in_group, row=position
            )
            fix = f"Fill column {settings.caption_column!r}"
            name = f"{shard.name} row {position}"
            found.entries.append(Entry(name, address, row.captions, fix, row.repeats))
            found.seen[address] = row.seen
    return found


def is_indexed(settings: DatasetSettings) -> bool:
    """Whether everything in a streamed data set is known without asking the Hub."""
    if (known := _recalled_listing(settings)) is None:
        return False
    faults = Faults(settings.paths[0])
    tables = _without_other_splits([shard.name for shard in known], settings)
    chosen = of_split(tables, settings, Found(Path(settings.paths[0])), faults)
    return not len(faults) and all(_index_file(shard, settings).is_file() for shard in known if shard.name in chosen)


# --- which shards exist ---


def _shards(settings: DatasetSettings, faults: Faults, *, refresh: bool) -> tuple[list[Shard], Found]:
    (repository,) = settings.paths
    found = Found(Path(repository))
    known = None if refresh else _recalled_listing(settings)
    files = {shard.name: shard for shard in known or _listed(settings, faults)}
    tables = _without_other_splits([name for name in files if name.lower().endswith(".parquet")], settings)
    kinds = {os.path.splitext(name)[1].lower() for name in files}
    # A download might read these as well.
    if not tables or kinds & (IMAGE_SUFFIXES | {".arrow"}):
        faults.add(
            "stream",
            f"dataset.stream=true: only data sets of parquet files can be streamed, and this one has {listed(kinds)}. "
            "Remove it.",
        )
        raise faults.error()
    if settings.captions_per_line:
        faults.add("lines", "dataset.captions_per_line=true has no effect on tables. Remove it.")
    chosen = of_split(tables, settings, found, faults)
    largest = max((files[name] for name in chosen), key=lambda shard: shard.size, default=None)
    if largest is not None and largest.size > settings.max_cache_gb * GB:
        faults.add(
            "bound",
            f"dataset.max_cache_gb={settings.max_cache_gb:g}: {largest.name} alone has {largest.size / GB:.4g} GB. "
            "Raise it to at least twice that.",
        )
    faults.raise_if_any()
    return [files[name] for name in chosen], found


def _listed(settings: DatasetSettings, faults: Faults) -> list[Shard]:
    """The files that the Hub lists; if it cannot be reached, those it listed before."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    (repository,) = settings.paths
    api = HfApi()
    try:
        commit = api.dataset_info(repository, revision=settings.revision).sha
        tree = api.list_repo_tree(repository, recursive=True, revision=commit, repo_type="dataset")
        files = {each.path: each for each in tree if isinstance(each, RepoFile)}
    except Exception as error:  # the client's HTTP library has its own exceptions, which are not OSErrors
        # No answer at all, or none about the data set.
        status = getattr(getattr(error, "response", None), "status_code", None)
        unreachable = status is None or status >= SERVER_ERRORS
        if unreachable and (known := _recalled_listing(settings)) is not None:
            log.warning("the Hub cannot be reached; using %s as it was last seen", repository)
            return known
        faults.add("hub", explain(settings, error))
        raise faults.error() from error
    shards = [
        Shard(
            repository, str(commit), name, file.size, f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"
        )
        for name, file in sorted(files.items(), key=lambda entry: entry[0])
        if _is_of_data_set(name, settings)
    ]
    paths.write_text(_listing_file(settings), json.dumps([dataclasses.asdict(shard) for shard in shards]))
    return shards


def _is_of_data_set(name: str, settings: DatasetSettings) -> bool:
    """Whether a download would fetch and read this file."""
    wanted, _ = patterns(settings)
    return any(fnmatch(name, each) for each in wanted) and not any(part.startswith(".") for part in name.split("/"))


def _without_other_splits(names: Sequence[str], settings: DatasetSettings) -> list[str]:
    """Leave out what a download would, so that it cannot affect the choice of splits; all names if none are left."""
    _, unwanted = patterns(settings)
    return [name for name in names if not any(fnmatch(name, each) for each in unwanted)] or list(names)


def _recalled_listing(settings: DatasetSettings) -> list[Shard] | None:
    try:
        known = json.loads(_listing_file(settings).read_text(encoding="utf-8"))
        return [Shard(**shard) for shard in known]
    except (OSError, ValueError, TypeError):
        return None


def _listing_file(settings: DatasetSettings) -> Path:
    from huggingface_hub import constants

    about = [constants.ENDPOINT, settings.paths[0], settings.revision]
    return streamed_folder() / "listings" / f"{_hash(about)}.json"


# --- what is in a shard ---


def _indexed(shard: Shard, store: ShardStore, settings: DatasetSettings, faults: Faults) -> Index | None:
    """The index of a shard, built now by one of the processes that need it; None if it added to `faults`."""
    file = _index_file(shard, settings)
    with alone(file.with_suffix(".lock"), doing=f"reading {shard.name}"):
        if (made := _recall(shard, settings)) is not None:
            return made
        own, before = Found(Path(shard.name)), len(faults)
        try:
            with store.hold(shard) as path:
                schema = schema_of(path)
                read_table(path, shard.name, settings, own, faults)
        except NotFetched as error:
            faults.add("hub", f"{error}")
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            faults.add("table", f"{shard.name}: cannot be read ({reason}). Choose another revision of the data set.")
        if len(faults) > before:
            return None
        addresses = [_streamed(entry.address, shard, store) for entry in own.entries]
        seen = inspect_now(addresses)
        index = Index(
            schema,
            tuple(
                Row(address.row_group, address.row_in_group, entry.captions, entry.repeats, look)
                for entry, address, look in zip(own.entries, addresses, seen, strict=True)
            ),
        )
        if all(look.lasting for look in seen):
            _remember(file, index)
        return index


def _streamed(address: Address, shard: Shard, store: ShardStore) -> StreamedAddress:
    assert isinstance(address, ParquetAddress), address
    return StreamedAddress(store, shard, address.column, address.row_group, address.row_in_group, address.row)


def _remember(file: Path, index: Index) -> None:
    rows = [[row.row_group, row.row_in_group, row.captions, row.repeats, *_told(row.seen)] for row in index.rows]
    schema = base64.b64encode(index.schema.serialize().to_pybytes()).decode()
    paths.write_text(file, json.dumps({"version": [FORMAT, *version()], "schema": schema, "rows": rows}))


def _told(seen: Inspected) -> tuple[str, int, int, tuple[str, ...], str | None]:
    return seen.id, seen.width_px, seen.height_px, seen.notes, seen.error


def _recall(shard: Shard, settings: DatasetSettings) -> Index | None:
    """The index of a shard, if there is a usable one."""
    import pyarrow as pa

    file = _index_file(shard, settings)
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["version"] != [FORMAT, *version()]:
            return None
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored["schema"])))
        return Index(schema, tuple(_rows(stored["rows"])))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        log.warning("%s cannot be used (%s); %s is read again", file, error, shard.name)
        return None


def _rows(stored: Sequence[Sequence[Any]]) -> Iterator[Row]:
    for group, row, captions, repeats, identity, width, height, notes, error in stored:
        seen = Inspected(str(identity), int(width), int(height), tuple(map(str, notes)), error)
        yield Row(int(group), int(row), tuple(map(str, captions)), int(repeats), seen)


def _index_file(shard: Shard, settings: DatasetSettings) -> Path:
    key = _hash([shard.digest, settings.image_column, settings.caption_column])
    return streamed_folder() / "indexes" / key[:2] / f"{key}.json"


# --- where everything is kept ---


def _store(settings: DatasetSettings) -> ShardStore:
    return ShardStore(streamed_folder() / "shards", int(settings.max_cache_gb * GB))


def streamed_folder() -> Path:
    """Holds everything kept for streamed data sets; any of it can be deleted at any time."""
    return paths.cache_dir() / "streamed"


def _hash(about: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(list(about)).encode()).hexdigest()
