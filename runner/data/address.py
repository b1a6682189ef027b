"""Where the encoded bytes of one image are: in a file, or a row of a parquet or arrow file, here or on the Hub.

An address is small and can be pickled; the bytes are read on demand. It does not know what the bytes mean.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runner.data.shards import Shard, ShardStore

if TYPE_CHECKING:
    import pyarrow

# Several threads read rows of one group at the same time; without the lock each would read the whole group.
_table_lock = threading.Lock()
# A separate lock: fetching takes long and must not block reading what is already here.
_shard_lock = threading.Lock()


class Address(Protocol):
    """One image's place: the file that holds it, and its column and row in it ("" and 0 in a plain file)."""

    @property
    def path(self) -> Path:
        """File that holds the bytes."""
        ...

    @property
    def column(self) -> str:
        """Column of the table."""
        ...

    @property
    def row(self) -> int:
        """Row in the whole file, from 0."""
        ...

    def read(self) -> bytes:
        """The encoded image. Raises OSError, or ValueError if the row holds no image."""
        ...


@dataclass(frozen=True)
class FileAddress:
    """An image in its own file."""

    path: Path
    column: str = ""
    row: int = 0

    def read(self) -> bytes:
        """The file's bytes. Raises OSError."""
        return self.path.read_bytes()


@dataclass(frozen=True)
class ParquetAddress:
    """Row `row` of a parquet file, which is row `row_in_group` of its row group `row_group`."""

    path: Path
    column: str
    row_group: int
    row_in_group: int
    row: int

    def read(self) -> bytes:
        """The image's bytes; its row group stays in memory until two others have been read."""
        with _table_lock:
            cells = _parquet_cells(self.path, self.path.stat().st_mtime_ns, self.column, self.row_group)
        return cell_bytes(cells[self.row_in_group].as_py(), folder=self.path.parent)


@dataclass(frozen=True)
class ArrowAddress:
    """Row `row` of an arrow file; the file is mapped, not loaded."""

    path: Path
    column: str
    row: int

    def read(self) -> bytes:
        """The image's bytes."""
        with _table_lock:
            cells = _arrow_cells(self.path, self.path.stat().st_mtime_ns, self.column)
        return cell_bytes(cells[self.row].as_py(), folder=self.path.parent)


@dataclass(frozen=True)
class StreamedAddress:
    """Row `row` of a shard that may have to be fetched; otherwise like a row of a parquet file."""

    store: ShardStore
    shard: Shard
    column: str
    row_group: int
    row_in_group: int
    row: int

    @property
    def path(self) -> Path:
        """The path of the shard while it is on this machine."""
        return self.store.place(self.shard)

    def read(self) -> bytes:
        """The image's bytes; its row group stays in memory until two others have been read."""
        with _shard_lock:
            cells = _shard_cells(self.store, self.shard, self.column, self.row_group)
        return cell_bytes(cells[self.row_in_group].as_py(), folder=None)


def cell_bytes(cell: Any, *, folder: Path | None) -> bytes:
    """The encoded image in one cell: raw bytes, `{bytes, path}`, or a path relative to the table's folder, if it has
    one.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, str) and cell:
        if folder is None:
            raise ValueError(f"the image cell names a file, {cell!r}, and streamed tables must hold the images")
        return (folder / cell).read_bytes()
    raise ValueError("the image cell is empty")


def open_arrow(path: Path) -> pyarrow.Table:
    """The whole arrow file as a table over mapped memory, in either of the two IPC formats."""
    import pyarrow as pa

    mapped = pa.memory_map(str(path))
    try:
        return pa.ipc.open_file(mapped).read_all()
    except pa.ArrowInvalid:
        # `datasets` writes the stream format, which has no footer, so only trying tells the two apart.
        mapped.seek(0)
        return pa.ipc.open_stream(mapped).read_all()


# The modification time is part of the key: the cache must not answer for a file that was rewritten.
@lru_cache(maxsize=2)
def _parquet_cells(path: Path, mtime_ns: int, column: str, row_group: int) -> pyarrow.ChunkedArray:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as parquet:
        return parquet.read_row_group(row_group, columns=[column]).column(column)


# The content of a shard never changes.
@lru_cache(maxsize=2)
def _shard_cells(store: ShardStore, shard: Shard, column: str, row_group: int) -> pyarrow.ChunkedArray:
    import pyarrow.parquet as pq

    with store.hold(shard) as path, pq.ParquetFile(path) as parquet:
        return parquet.read_row_group(row_group, columns=[column]).column(column)


@lru_cache(maxsize=8)
def _arrow_cells(path: Path, mtime_ns: int, column: str) -> pyarrow.ChunkedArray:
    return open_arrow(path).column(column)
