"""A data set as parquet files in the Hub's layout: what is sent to another machine, in few, large files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from runner.data.item import Item
from runner.data.sources.tables import OWN_TABLE, REPEATS_COLUMN

SHARD_BYTES = 512 * 2**20
ROWS_IN_GROUP = 64
GROUP_BYTES = 256 * 2**20
"""A reader that wants one image holds a whole row group in memory, and pyarrow reads none above 2 GiB."""
IMAGE_COLUMN, CAPTION_COLUMN, MASK_COLUMN = "image", "text", "mask"


def export(items: Sequence[Item], folder: Path, *, shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Write images, as their original bytes, and captions into `train-00000-of-00001.parquet` and so on.

    Args:
        folder: an empty folder.
        shard_bytes: a file is closed once its images have this many bytes in total.

    Raises:
        OSError: an image can no longer be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    several, repeated = any(item.more_captions for item in items), any(item.repeats > 1 for item in items)
    fields = [(IMAGE_COLUMN, image), (CAPTION_COLUMN, pa.list_(pa.string()) if several else pa.string())]
    fields += [(REPEATS_COLUMN, pa.int64())] if repeated else []
    fields += [(MASK_COLUMN, image)] if any(item.mask for item in items) else []
    schema = pa.schema(fields, metadata={OWN_TABLE: b""})
    shards: list[Path] = []
    for number, rows in enumerate(_shards(items, shard_bytes, several=several)):
        shards.append(folder / f"part-{number:05d}.parquet")
        with pq.ParquetWriter(shards[-1], schema, compression="none") as writer:
            for group in rows:
                writer.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=ROWS_IN_GROUP)
    named = []
    for number, shard in enumerate(shards):
        named.append(shard.rename(folder / f"train-{number:05d}-of-{len(shards):05d}.parquet"))
    return named


def _shards(items: Sequence[Item], shard_bytes: int, *, several: bool) -> Iterator[Iterable[list[dict[str, object]]]]:
    """Shards of row groups of rows; images are read only when needed."""
    position = 0

    def groups() -> Iterator[list[dict[str, object]]]:
        nonlocal position
        size = 0
        while position < len(items) and size < shard_bytes:
            group: list[dict[str, object]] = []
            before = size
            for item in items[position : position + ROWS_IN_GROUP]:
                if size - before >= GROUP_BYTES:
                    break
                content = item.address.read()
                size += len(content)
                text = list(item.captions) if several else item.caption
                row = {IMAGE_COLUMN: {"bytes": content, "path": item.file}, CAPTION_COLUMN: text}
                mask = {"bytes": item.mask.address.read(), "path": item.mask.file} if item.mask else None
                # Keys without a column in the schema are dropped.
                group.append(row | {REPEATS_COLUMN: item.repeats, MASK_COLUMN: mask})
            position += len(group)
            yield group

    while position < len(items):
        yield groups()
