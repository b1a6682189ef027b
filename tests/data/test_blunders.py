"""Folders as people make them: each blunder is reported once, in words that lead to its cause."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from runner.data import Dataset, read_dataset
from runner.errors import DatasetError

Settings = Callable[..., Any]


def folder_of(path: Path, *names: str) -> Path:
    """A folder with small images."""
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (number, 0, 0)).save(path / name)
    return path


def faults_of(settings: Any) -> list[str]:
    with pytest.raises(DatasetError) as raised:
        read_dataset(settings)
    return str(raised.value).splitlines()[1:]


def ignored(dataset: Dataset) -> dict[str, str]:
    return {row.file: "; ".join(row.notes) for row in dataset.report.rows if row.outcome == "ignored"}


def test_metadata_may_name_images_by_their_whole_paths(tmp_path: Path, settings: Settings) -> None:
    folder_of(tmp_path, "img/a.png", "img/b.png")
    names = [str(tmp_path / "img" / "a.png"), "./img/b.png"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": name, "text": "x"}) for name in names))

    dataset = read_dataset(settings(tmp_path))

    assert sorted(item.file for item in dataset.items) == ["img/a.png", "img/b.png"]
    assert ignored(dataset) == {}, "what is used is not told as unnamed"


def test_metadata_in_a_folder_beside_the_images_make_no_second_ones_of_them(tmp_path: Path, settings: Settings) -> None:
    folder_of(tmp_path, "img/a.png", "img/b.png")
    (tmp_path / "captions").mkdir()
    names = [str(tmp_path / "img" / "a.png"), "../img/b.png"]
    (tmp_path / "captions" / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": name, "text": "x"}) for name in names)
    )

    for prompt in (None, "sks"):
        dataset = read_dataset(settings(tmp_path, instance_prompt=prompt))
        assert sorted((item.file, item.caption) for item in dataset.items) == [("img/a.png", "x"), ("img/b.png", "x")]


def test_metadata_that_is_one_list_is_one_fault(tmp_path: Path, settings: Settings) -> None:
    folder_of(tmp_path, "a.png", "b.png")
    lines = [{"file_name": name, "text": "x"} for name in ("a.png", "b.png")]
    (tmp_path / "metadata.jsonl").write_text(json.dumps(lines, indent=1))

    (fault,) = faults_of(settings(tmp_path))

    assert fault.startswith("  - metadata.jsonl: is one list. Write an object into each line, as {")


@pytest.mark.parametrize("sign", [";", "\t"])
def test_columns_that_commas_do_not_part_are_one_fault(sign: str, tmp_path: Path, settings: Settings) -> None:
    folder_of(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text(f"file_name{sign}text\na.png{sign}one\nb.png{sign}two, with a comma\n")

    assert faults_of(settings(tmp_path)) == [
        f"  - metadata.csv: its columns are separated by {sign!r}. Save it with commas."
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "one", "text": "two"}',
            "metadata.jsonl line 1: not valid JSON ('text' is there twice). Repair or remove the line.",
        ),
        (
            "metadata.csv",
            "file_name,text,,,text\na.png,one,,,two\n",
            "metadata.csv: the column 'text' is there twice. Rename or remove one of them.",
        ),
    ],
)
def test_of_two_captions_with_one_name_none_is_taken(
    name: str, content: str, said: str, tmp_path: Path, settings: Settings
) -> None:
    folder_of(tmp_path, "a.png")
    (tmp_path / name).write_text(content)

    first, *_ = faults_of(settings(tmp_path))

    assert first == f"  - {said}"


def test_a_text_that_cannot_be_read_is_not_told_as_missing_besides(tmp_path: Path, settings: Settings) -> None:
    folder_of(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("ein Häuschen".encode("latin-1"))

    (fault,) = faults_of(settings(tmp_path))

    assert fault.startswith("  - a.txt: cannot be read as text")


@pytest.mark.parametrize("name", ["b.png", "a.txt", "metadata.jsonl", "dataset_info.json", "notes.md"])
def test_what_would_be_waited_for_without_end_is_not_read(name: str, tmp_path: Path, settings: Settings) -> None:
    folder_of(tmp_path, "a.png")
    os.mkfifo(tmp_path / name)

    first, *_ = faults_of(settings(tmp_path, instance_prompt="x"))

    assert first == f"  - {name}: is a pipe or a device, and no file. Remove it."


@pytest.mark.parametrize("name", ["METADATA.JSONL", "metadata.json", "captions.csv"])
def test_captions_under_another_name_are_found(name: str, tmp_path: Path, settings: Settings) -> None:
    folder_of(tmp_path, "a.png")
    (tmp_path / name).write_text("{}")

    first, _ = faults_of(settings(tmp_path))

    assert first.startswith(
        f"  - {name!r}: not read; captions are read from metadata.jsonl, metadata.csv (in small letters)"
    )
    (tmp_path / "a.txt").write_text("one")
    assert ignored(read_dataset(settings(tmp_path))) == {name: "not an image"}


def test_captions_in_a_table_beside_the_images_are_found(tmp_path: Path, settings: Settings) -> None:
    folder_of(tmp_path, "a.png")
    pq.write_table(pa.table({"file_name": ["a.png"], "text": ["one"]}), tmp_path / "metadata.parquet")

    first, _ = faults_of(settings(tmp_path))

    assert first.startswith("  - 'metadata.parquet': not read; captions are read from metadata.jsonl, metadata.csv")


def test_captions_that_a_prompt_takes_the_place_of_are_told(tmp_path: Path, settings: Settings) -> None:
    """A missing column is allowed if a prompt replaces it; what is not read is reported."""
    folder = folder_of(tmp_path / "folder", "a.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "caption": "one"}))
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [(folder / "a.png").read_bytes()], "caption": ["one"]}), table)

    for path, file in ((folder, "metadata.jsonl"), (table, "t.parquet")):
        for column in ("text", "beschreibung"):
            dataset = read_dataset(settings(path, caption_column=column, instance_prompt="sks"))
            (note,) = [note for name, note in ignored(dataset).items() if name == file]
            assert note.startswith(f"no caption is read from it: it has no column dataset.caption_column={column!r}; ")

    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png"}))
    assert ignored(read_dataset(settings(folder, instance_prompt="sks"))) == {}, "a list of images is no blunder"


def test_a_prompt_that_is_nobodys_caption_is_told(tmp_path: Path, settings: Settings) -> None:
    folder_of(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_text("one")
    assert read_dataset(settings(tmp_path, instance_prompt="sks")).report.remarks == ()

    (tmp_path / "b.txt").write_text("two")
    report = read_dataset(settings(tmp_path, instance_prompt="sks")).report

    said = "dataset.instance_prompt is not used: every image has a caption of its own, which comes first"
    assert f"  {said}" in report.lines()
    assert report.as_dict()["remarks"] == [said]
    assert read_dataset(settings(tmp_path)).report.remarks == ()


def test_a_prompt_that_is_no_text_is_one_fault_and_not_one_for_each_image(tmp_path: Path, settings: Settings) -> None:
    folder_of(tmp_path, "a.png", "b.png")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"instance_prompt": 3}))

    assert faults_of(settings(tmp_path)) == ["  - dataset_info.json: instance_prompt=3 must be text. Put it in quotes."]
