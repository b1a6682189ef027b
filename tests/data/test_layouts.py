"""Which files in a folder are the data set, if it has files of several kinds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from runner.data import Dataset, read_dataset
from runner.data.sources.tables import split_of
from runner.errors import DatasetError

Settings = Callable[..., Any]


def picture(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 48), (number, 100, 200)).save(path, "PNG")
    return path


def table(path: Path, *numbers: int, column: str = "image") -> Path:
    """A parquet file with one row per number, or an arrow file as the `datasets` library writes it."""
    rows = [
        {column: {"bytes": picture(path, number).read_bytes(), "path": None}, "text": f"{number}"} for number in numbers
    ]
    path.unlink(missing_ok=True)
    made = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(made, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, made.schema) as writer:
            writer.write_table(made)
    return path


def ignored(dataset: Dataset) -> dict[str, str]:
    return {row.file: "; ".join(row.notes) for row in dataset.report.rows if row.outcome == "ignored"}


def test_shards_are_the_data_set_with_a_preview_beside_them(tmp_path: Path, settings: Settings) -> None:
    """As on the Hub; even with a prompt, with which the preview alone could be trained on."""
    table(tmp_path / "data" / "train-00000-of-00001.parquet", 1, 2)
    picture(tmp_path / "assets" / "preview.png", 3)

    for prompt in (None, "x"):
        dataset = read_dataset(settings(tmp_path, instance_prompt=prompt))
        assert sorted(item.caption for item in dataset.items) == ["1", "2"]
        assert ignored(dataset) == {"assets/preview.png": "beside tables, which are the data set"}
        assert dataset.report.counts["warning"] == 1

    table(tmp_path / "data" / "train-00000-of-00001.parquet", 1, 2, column="img")
    with pytest.raises(DatasetError, match=r"no column dataset\.image_column='image' \(did you mean 'img'\?\)"):
        read_dataset(settings(tmp_path))


@pytest.mark.parametrize("name", ["data/train.parquet", "data/train-00000-of-00001.parquet"])
def test_tables_beside_images_that_may_be_either_are_refused(tmp_path: Path, settings: Settings, name: str) -> None:
    table(tmp_path / name, 1, 2)
    picture(tmp_path / "a.png", 3)
    if "-of-" in name:
        (tmp_path / "a.txt").write_text("a picture with a caption of its own")

    with pytest.raises(DatasetError) as raised:
        read_dataset(settings(tmp_path, instance_prompt="x"))

    assert f"holds tables with images ('{name}') and images ('a.png')" in str(raised.value)
    meant = re.search(r"give the tables as dataset\.path='(.*)', or move", str(raised.value))
    assert meant
    assert len(read_dataset(settings(meant[1])).items) == 2


def test_a_folder_that_says_so_is_one_of_images(tmp_path: Path, settings: Settings) -> None:
    """By its metadata or its description; and tables without images do not belong to a data set."""
    told = "tables are read only from a folder without images"
    picture(tmp_path / "a.png", 3)
    pq.write_table(pa.table({"text": ["x"], "size": [1]}), tmp_path / "train-00000-of-00001.parquet")
    assert ignored(read_dataset(settings(tmp_path, instance_prompt="x"))) == {"train-00000-of-00001.parquet": told}

    table(tmp_path / "train-00000-of-00001.parquet", 1)
    for name, said in (
        ("metadata.jsonl", {"file_name": "a.png", "text": "x"}),
        ("dataset_info.json", {"instance_prompt": "x"}),
    ):
        (tmp_path / name).write_text(json.dumps(said))
        dataset = read_dataset(settings(tmp_path))
        assert [item.file for item in dataset.items] == ["a.png"]
        assert ignored(dataset) == {"train-00000-of-00001.parquet": told}
        (tmp_path / name).unlink()


def test_caches_in_a_saved_data_set_are_not_read(tmp_path: Path, settings: Settings) -> None:
    """`map` and `filter` of the `datasets` library leave rows and indices beside the tables that they were made of."""
    for split in ("train", "test"):
        table(tmp_path / split / "data-00000-of-00001.arrow", 1, 2)
        table(tmp_path / split / "cache-1c80317fa3b1799d.arrow", 1, 2)
        indices = pa.table({"indices": pa.array([1], pa.uint64())})
        with (
            pa.OSFile(str(tmp_path / split / "cache-bdd640fb06671ad1.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, indices.schema) as writer,
        ):
            writer.write_table(indices)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": None}
        (tmp_path / split / "state.json").write_text(json.dumps(state))

    for path in (tmp_path, tmp_path / "train"):
        dataset = read_dataset(settings(path))
        assert sorted(item.caption for item in dataset.items) == ["1", "2"]
        notes = [note for name, note in ignored(dataset).items() if "cache" in name]
        assert set(notes) == {"not named in state.json: a cache, not the data set"}


def test_folders_of_splits_in_capitals(tmp_path: Path, settings: Settings) -> None:
    picture(tmp_path / "Train" / "a.png", 1)
    picture(tmp_path / "Test" / "b.png", 2)

    def files(split: str) -> list[str]:
        return [item.file for item in read_dataset(settings(tmp_path, instance_prompt="x", split=split)).items]

    assert files("train") == files("Train") == ["Train/a.png"]
    assert files("test") == ["Test/b.png"]
    with pytest.raises(DatasetError, match=r"dataset\.split='val': no such folder; splits found: 'Test', 'Train'\."):
        files("val")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("dev-set/train.parquet", "train"),
        ("test/0000.parquet", "test"),
        ("train/data-00000-of-00001.arrow", "train"),
        ("data-00000-of-00001.arrow", None),
        ("photos.parquet", None),
        ("data/training-00000-of-00002.parquet", "training"),
        ("data/portraits-00000-of-00002-3a1b2c3d4e5f6071.parquet", "portraits"),
    ],
)
def test_the_split_of_a_table_is_in_its_name_or_else_in_its_innermost_folder(name: str, split: str | None) -> None:
    assert split_of(name, "train") == split


def test_two_files_may_be_called_dataset_info(tmp_path: Path, settings: Settings) -> None:
    """The one of the `datasets` library says nothing about prompts; with the other, metadata need no captions."""
    picture(tmp_path / "a.png", 1)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "number": 3}))
    for about, more in (({"features": {}, "splits": {}}, {"instance_prompt": "sks"}), ({"instance_prompt": "sks"}, {})):
        (tmp_path / "dataset_info.json").write_text(json.dumps(about))
        assert [item.caption for item in read_dataset(settings(tmp_path, **more)).items] == ["sks"]


def test_metadata_above_the_folders_of_splits_bring_no_image_of_another_one(tmp_path: Path, settings: Settings) -> None:
    picture(tmp_path / "train" / "a.png", 1)
    picture(tmp_path / "test" / "b.png", 2)
    lines = [{"file_name": "train/a.png", "text": "one"}, {"file_name": "test/b.png", "text": "two"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    for split, caption in (("train", "one"), ("test", "two")):
        assert [item.caption for item in read_dataset(settings(tmp_path, split=split)).items] == [caption]


def test_a_split_without_a_folder_is_told_with_those_that_have_one(tmp_path: Path, settings: Settings) -> None:
    picture(tmp_path / "test" / "b.png", 2)
    said = r"dataset\.split='{}': no such folder; splits found: 'test'\. Choose one of them"
    with pytest.raises(DatasetError, match=said.format("train")):
        read_dataset(settings(tmp_path, instance_prompt="x"))
    picture(tmp_path / "a.png", 1)  # belongs to every split
    with pytest.raises(DatasetError, match=said.format("val")):
        read_dataset(settings(tmp_path, instance_prompt="x", split="val"))


def test_a_split_has_no_effect_on_a_single_file(tmp_path: Path, settings: Settings) -> None:
    """Unless the file's name assigns it to that split."""
    for name in ("a.parquet", "test-00000-of-00001.parquet"):
        table(tmp_path / name, 1)
        assert len(read_dataset(settings(tmp_path / name)).items) == 1
        with pytest.raises(DatasetError, match=r"dataset\.split='walks' has no effect on a single file\. Remove it\."):
            read_dataset(settings(tmp_path / name, split="walks"))
    assert len(read_dataset(settings(tmp_path / "test-00000-of-00001.parquet", split="test")).items) == 1
