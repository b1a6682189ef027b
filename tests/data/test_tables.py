"""Parquet, arrow and the Hub: every layout gives the same pictures, read one row at a time."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from runner.data import Dataset, in_reading_order, read_dataset
from runner.data import export as sending
from runner.errors import DatasetError

Settings = Callable[..., Any]
Photos = dict[str, Image.Image]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def as_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def rows(photos: Photos) -> list[dict[str, Any]]:
    return [
        {"image": {"bytes": as_png(picture), "path": f"{name}.png"}, "text": f"a photo of a {name}"}
        for name, picture in photos.items()
    ]


def check(dataset: Dataset, photos: Photos) -> None:
    """Check that all photographs are there with their own captions and pixels."""
    assert len(dataset.items) == len(photos)
    for item in pickle.loads(pickle.dumps(dataset.items)):
        photo = photos[item.caption.removeprefix("a photo of a ")]
        assert (item.width_px, item.height_px) == photo.size
        assert (np.asarray(item.open()) == np.asarray(photo)).all()


def test_all_layouts_are_one_data_set(
    tmp_path: Path, captioned: Path, rows: list[dict[str, Any]], photos: Photos, settings: Settings
) -> None:
    """Folder, parquet, Hub shards and both arrow formats give equal fingerprints and equal pixels."""
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "one.parquet", row_group_size=2)
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    with (
        pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=3)
    shards = tmp_path / "hub" / "data"
    shards.mkdir(parents=True)
    pq.write_table(table.slice(0, 3), shards / "train-00000-of-00002-0a1b2c3d4e5f6071.parquet")
    pq.write_table(table.slice(3), shards / "train-00001-of-00002-1a1b2c3d4e5f6071.parquet")
    pq.write_table(table.slice(1, 1), shards / "test-00000-of-00001-2a1b2c3d4e5f6071.parquet")
    raw = pa.table({"image": [row["image"]["bytes"] for row in rows], "text": table["text"]})
    pq.write_table(raw, tmp_path / "raw.parquet")

    expected = read_dataset(settings(captioned)).fingerprint

    for name in ("one.parquet", "file.arrow", "stream.arrow", "hub", "raw.parquet"):
        dataset = read_dataset(settings(tmp_path / name))
        check(dataset, photos)
        assert dataset.fingerprint == expected, name
    assert len(read_dataset(settings(tmp_path / "hub", split="test")).items) == 1
    counts = read_dataset(settings(tmp_path / "hub")).report.counts
    assert (counts["used"], counts["ignored"]) == (4, 1)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_columns_as_polars_writes_them(
    suffix: str, tmp_path: Path, rows: list[dict[str, Any]], photos: Photos, settings: Settings
) -> None:
    images = pa.array([row["image"]["bytes"] for row in rows], type=pa.binary_view())
    table = pa.table({"image": images, "text": pa.array([row["text"] for row in rows], type=pa.string_view())})
    file = tmp_path / f"photos.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, file)
    else:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    check(read_dataset(settings(file)), photos)


def test_large_images_are_sent_in_small_row_groups(
    tmp_path: Path, captioned: Path, photos: Photos, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow could not read back a row group above 2 GiB."""
    here = read_dataset(settings(captioned))
    sizes = [len(item.address.read()) for item in here.items]
    monkeypatch.setattr(sending, "GROUP_BYTES", sizes[0] + 1)
    (tmp_path / "sent").mkdir()
    (file,) = sending.export(here.items, tmp_path / "sent")
    groups = pq.ParquetFile(file).metadata
    assert groups.row_group(0).num_rows == 2
    assert groups.num_row_groups > 1
    there = read_dataset(settings(tmp_path / "sent"))
    check(there, photos)
    assert there.fingerprint == here.fingerprint


def test_save_to_disk(tmp_path: Path, rows: list[dict[str, Any]], photos: Photos, settings: Settings) -> None:
    """What the `datasets` library saves is read: a single data set, and one with splits."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    saved = datasets.Dataset.from_list(rows, features=features)
    saved.save_to_disk(tmp_path / "saved", num_shards=2)
    splits = datasets.DatasetDict({"train": saved, "test": saved.select([0])})
    splits.save_to_disk(tmp_path / "splits")

    for name in ("saved", "splits"):
        check(read_dataset(settings(tmp_path / name)), photos)
    assert len(read_dataset(settings(tmp_path / "splits", split="test")).items) == 1


def test_images_named_by_path(tmp_path: Path, captioned: Path, photos: Photos, settings: Settings) -> None:
    """A table may name files beside it, as text or in the path of a struct without bytes."""
    names = [f"captioned/{name}.png" for name in photos]
    text = [f"a photo of a {name}" for name in photos]
    pq.write_table(pa.table({"image": names, "text": text}), tmp_path / "a.parquet")
    structs = [{"bytes": None, "path": name} for name in names]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(structs, kind), "text": text}), tmp_path / "b.parquet")

    for name in ("a.parquet", "b.parquet"):
        check(read_dataset(settings(tmp_path / name)), photos)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_memory_of_table_rows(name: str, tmp_path: Path, rows: list[dict[str, Any]], settings: Settings) -> None:
    """A rewritten table is not answered from what was remembered of the old one."""

    def write(rows: list[dict[str, Any]]) -> None:
        table = pa.Table.from_pylist(rows)
        if name.endswith(".parquet"):
            pq.write_table(table, tmp_path / "new")
        else:
            with pa.OSFile(str(tmp_path / "new"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
        (tmp_path / "new").replace(tmp_path / name)  # a process that has the old one open keeps it

    write(rows)
    first = read_dataset(settings(tmp_path / name))
    first.items[0].open()
    assert read_dataset(settings(tmp_path / name)) == first

    write(rows[::-1])
    second = read_dataset(settings(tmp_path / name))

    assert second.fingerprint == first.fingerprint
    assert [item.address.row for item in second.items] == [3 - item.address.row for item in first.items]
    second.items[0].open()


def test_reading_order(tmp_path: Path, rows: list[dict[str, Any]], settings: Settings) -> None:
    """Reading order is the order of the rows, whatever the order of the items."""
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    items = read_dataset(settings(tmp_path / "a.parquet")).items

    assert [item.address.row for item in in_reading_order(items[::-1])] == [0, 1, 2, 3]


def test_wrong_columns(tmp_path: Path, rows: list[dict[str, Any]], settings: Settings) -> None:
    """Missing columns are named with those that exist; a column that holds no images is refused by its
    type.
    """
    table = pa.Table.from_pylist(rows).rename_columns(["img", "caption"]).append_column("size", pa.array([1, 2, 3, 4]))
    pq.write_table(table, tmp_path / "a.parquet")

    with pytest.raises(DatasetError, match="2 faults") as raised:
        read_dataset(settings(tmp_path / "a.parquet"))
    assert "dataset.image_column='image' (did you mean 'img'?); columns: 'caption', 'img', 'size'" in str(raised.value)
    assert "dataset.caption_column='text' (did you mean 'caption'?)" in str(raised.value)
    with pytest.raises(DatasetError, match="holds int64, not images"):
        read_dataset(settings(tmp_path / "a.parquet", image_column="size", caption_column="caption"))
    with pytest.raises(DatasetError, match="holds 1, not text"):
        read_dataset(settings(tmp_path / "a.parquet", image_column="img", caption_column="size"))
    assert len(read_dataset(settings(tmp_path / "a.parquet", image_column="img", instance_prompt="x")).items) == 4


@pytest.mark.parametrize(("name", "key"), [("image", "image_column"), ("text", "caption_column")])
def test_two_columns_of_one_name(
    name: str, key: str, tmp_path: Path, rows: list[dict[str, Any]], settings: Settings
) -> None:
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.append_column(name, table[name]), tmp_path / "two.parquet")
    with pytest.raises(DatasetError, match=f"two.parquet: has several columns dataset.{key}='{name}'. Rename all but"):
        read_dataset(settings(path=str(tmp_path / "two.parquet")))


def test_bad_rows_and_files(tmp_path: Path, rows: list[dict[str, Any]], settings: Settings) -> None:
    """Rows are named by number; a damaged file says so."""
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:500]
    rows[2]["image"] = None
    rows[3]["text"] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")

    with pytest.raises(DatasetError, match="3 faults") as raised:
        read_dataset(settings(tmp_path / "a.parquet"))
    assert "a.parquet row 1: cannot be decoded" in str(raised.value)
    assert "a.parquet row 2: cannot be read: the image cell is empty" in str(raised.value)
    assert "a.parquet row 3: no caption. Fill column 'text'" in str(raised.value)

    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    (tmp_path / "b.arrow").write_bytes(b"nonsense")
    for name in ("a.parquet", "b.arrow"):
        with pytest.raises(DatasetError, match=f"{name}: cannot be read"):
            read_dataset(settings(tmp_path / name))


def test_a_split_that_is_named_like_a_part_of_another(
    tmp_path: Path, rows: list[dict[str, Any]], settings: Settings
) -> None:
    for count, split in enumerate(("test", "hard_test"), start=1):
        pq.write_table(pa.Table.from_pylist(rows[:count]), tmp_path / f"{split}-00000-of-00001.parquet")

    assert len(read_dataset(settings(tmp_path, split="test")).items) == 1
    assert len(read_dataset(settings(tmp_path, split="hard_test")).items) == 2


def test_wrong_split(tmp_path: Path, rows: list[dict[str, Any]], settings: Settings) -> None:
    """A split without files is refused with those that exist."""
    for split in ("validation", "portraits"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}-00000-of-00001.parquet")

    with pytest.raises(DatasetError, match=r"'train': no file of this split.*'portraits', 'validation'"):
        read_dataset(settings(tmp_path))
    assert len(read_dataset(settings(tmp_path, split="portraits")).items) == 4


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache of the Hub on a machine without network."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def test_hub_data_set_from_the_local_cache(
    hub: Path, rows: list[dict[str, Any]], photos: Photos, settings: Settings
) -> None:
    """A downloaded copy in the layout of naruto-blip-captions is used without a network, by branch and by
    commit.
    """
    storage = hub / "datasets--lambdalabs--naruto-blip-captions"
    data = storage / "snapshots" / COMMIT / "data"
    data.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), data / "train-00000-of-00001-3a1b2c3d4e5f6071.parquet")
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text(COMMIT)

    for revision in (None, "main", COMMIT):
        check(read_dataset(settings("lambdalabs/naruto-blip-captions", revision=revision)), photos)


def test_hub_snapshot_that_is_not_complete(hub: Path, rows: list[dict[str, Any]], settings: Settings) -> None:
    """Half a download is not trained on."""
    storage = hub / "datasets--someone--half"
    data = storage / "snapshots" / COMMIT / "data"
    data.mkdir(parents=True)
    names = [f"data/train-0000{number}-of-00002.parquet" for number in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), storage / "snapshots" / COMMIT / names[0])
    (storage / "trees").mkdir()
    files = {name: {"size": 10, "blob_id": "0" * 40} for name in names}
    (storage / "trees" / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": files}))

    with pytest.raises(DatasetError, match="neither downloaded nor found"):
        read_dataset(settings("someone/half", revision=COMMIT))


def test_hub_without_network_or_copy(hub: Path, settings: Settings) -> None:
    """The error names the id, says that neither way works, and what to do."""
    with pytest.raises(DatasetError) as raised:
        read_dataset(settings("lambdalabs/naruto-blip-captions", revision="v1"))

    message = str(raised.value)
    assert "dataset.path='lambdalabs/naruto-blip-captions'" in message
    assert "dataset.revision='v1'" in message
    assert "give the path of a local copy" in message
