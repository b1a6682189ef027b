"""Several captions of an image, and their variants: a list that depends only on the text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from runner.data import Item, read_dataset
from runner.data.address import FileAddress
from runner.data.captions import captions_of
from runner.data.export import export
from runner.errors import DatasetError
from runner.schema import DatasetSettings

Settings = Callable[..., Any]


def an_item(*captions: str) -> Item:
    first, *others = captions
    return Item("ab", "a.png", first, 64, 64, address=FileAddress(Path("a.png")), more_captions=tuple(others))


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (40, 48), (number, 100, 200)).save(folder / name)


def captions_read(settings: Any) -> dict[str, tuple[str, ...]]:
    return {item.file: item.captions for item in read_dataset(settings).items}


def test_several_captions_in_metadata(tmp_path: Path, settings: Settings) -> None:
    write(tmp_path, "a.png", "b.png", "c.png")
    lines: list[dict[str, Any]] = [
        {"file_name": "a.png", "text": ["one", " two "]},
        {"file_name": "b.png", "text": "only"},
        {"file_name": "c.png", "text": []},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    found = captions_read(settings(tmp_path, instance_prompt="any"))

    assert found == {"a.png": ("one", "two"), "b.png": ("only",), "c.png": ("any",)}


@pytest.mark.parametrize("value", [["one", ""], ["one", 2], 3, {"a": "b"}])
def test_what_is_no_caption_is_named(tmp_path: Path, settings: Settings, value: object) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": value}))
    with pytest.raises(DatasetError, match=r"metadata\.jsonl line 1: text=.* must be text, or a list of texts"):
        read_dataset(settings(tmp_path))


def test_half_a_character_is_named_with_its_image(tmp_path: Path, settings: Settings) -> None:
    """JSON can contain one, but no tokenizer accepts it; a character made of both halves is as good as any."""
    write(tmp_path, "a.png", "b.png")
    lines = [r'{"file_name": "a.png", "text": "a dog \ud83d"}', r'{"file_name": "b.png", "text": "a dog \ud83d\udc36"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(DatasetError, match=r"1 fault") as raised:
        read_dataset(settings(tmp_path))
    assert r"a.png: its caption 'a dog \ud83d' contains half a character. Type it again." in str(raised.value)

    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "dataset_info.json").write_text(r'{"instance_prompt": "x", "class_prompt": "a dog \ud83d"}')
    with pytest.raises(
        DatasetError, match=r"dataset_info\.json: class_prompt='a dog \\ud83d' contains half a character"
    ):
        read_dataset(settings(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_text_file_of_two_bytes_a_character_is_no_caption(tmp_path: Path, settings: Settings, encoding: str) -> None:
    """Without a mark at its start such a file is valid UTF-8, with a zero between all letters."""
    write(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("a red house".encode(encoding))
    with pytest.raises(DatasetError, match=r"a\.png: its caption .* contains a zero byte.* Save the text as UTF-8\."):
        read_dataset(settings(tmp_path))


def test_a_caption_in_each_line_of_a_text_file(tmp_path: Path, settings: Settings) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("one\n\n  two\n")

    assert captions_read(settings(tmp_path)) == {"a.png": ("one\n\n  two",)}
    assert captions_read(settings(tmp_path, captions_per_line=True)) == {"a.png": ("one", "two")}

    # Web pages and word processors use other line ends, which no editor shows as such.
    (tmp_path / "a.txt").write_bytes("a house\u2028on a hill\r\nstill\x0ba house\n".encode())
    assert captions_read(settings(tmp_path, captions_per_line=True)) == {
        "a.png": ("a house\u2028on a hill", "still\x0ba house")
    }


def test_a_byte_order_mark_is_no_part_of_what_windows_wrote(tmp_path: Path, settings: Settings) -> None:
    write(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\r\n".encode())
    (tmp_path / "dataset_info.json").write_bytes('\ufeff{"instance_prompt": "sks"}\r\n'.encode())

    assert captions_read(settings(tmp_path)) == {"a.png": ("one\ntwo",), "b.png": ("sks",)}
    assert captions_read(settings(tmp_path, captions_per_line=True))["a.png"] == ("one", "two")


def test_lines_that_nobody_reads_are_refused(captioned: Path, settings: Settings) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.captions_per_line=true has no effect: no caption comes from"):
        read_dataset(settings(captioned, captions_per_line=True))


def test_several_captions_in_a_table_and_back(tmp_path: Path, settings: Settings) -> None:
    """A column of lists is read, and stays the same data set when it is sent to another machine."""
    write(tmp_path / "a", "a.png", "b.png")
    lines: list[dict[str, Any]] = [{"file_name": "a.png", "text": ["one", "two"]}, {"file_name": "b.png", "text": "x"}]
    (tmp_path / "a" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    here = read_dataset(settings(tmp_path / "a"))
    (tmp_path / "b").mkdir()

    export(here.items, tmp_path / "b")

    there = read_dataset(settings(tmp_path / "b"))
    assert there.fingerprint == here.fingerprint
    assert [item.captions for item in there.items] == [item.captions for item in here.items]


def test_a_table_with_numbers_for_captions_is_refused(tmp_path: Path, settings: Settings) -> None:
    write(tmp_path, "a.png")
    table = pa.table({"image": [(tmp_path / "a.png").read_bytes()], "text": [[1, 2]]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match=r"row 0: column 'text' holds \[1, 2\], not text or a list of texts"):
        read_dataset(settings(tmp_path / "t.parquet"))


def test_the_fingerprint_covers_every_caption(tmp_path: Path, settings: Settings) -> None:
    write(tmp_path, "a.png")
    seen = set()
    for text in ("one", ["one"], ["one", "two"], ["two", "one"], ["one", "three"]):
        (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": text}))
        seen.add(read_dataset(settings(tmp_path)).fingerprint)

    assert len(seen) == 4, "a list of one caption is that caption"


def test_a_prefix_and_a_suffix() -> None:
    item = an_item("a cat", "a dog")

    data = DatasetSettings(caption_prefix="in sks style, ", caption_suffix=", 4k")
    assert captions_of(item, data) == ("in sks style, a cat, 4k", "in sks style, a dog, 4k")
    assert captions_of(item, DatasetSettings(caption_suffix="at night"))[0] == "a cat at night"
    assert captions_of(item, DatasetSettings()) == ("a cat", "a dog")


def test_shuffling_moves_parts_and_loses_none() -> None:
    tags = ["sks", "a cat", "blue eyes", "grass", "sun"]
    text = ", ".join(tags)
    data = DatasetSettings(caption_shuffle=True, keep_tokens=1, caption_variants=6, caption_prefix="photo,")

    found = captions_of(an_item(text), data)

    assert found[0] == f"photo, {text}", "the first is as it was written"
    assert len(found) == 6
    assert len(set(found)) > 3
    for each in found:
        assert each.startswith("photo, sks, ")
        assert sorted(each.removeprefix("photo, ").split(", ")) == sorted(tags)


def test_variants_depend_on_the_text_only() -> None:
    """They name cache entries: asking for more keeps the first ones, and captions of other images do not matter."""
    text = "a, b, c, d, e"
    few = captions_of(an_item(text), DatasetSettings(caption_shuffle=True, caption_variants=3))
    many = captions_of(an_item(text), DatasetSettings(caption_shuffle=True, caption_variants=9))
    both = captions_of(an_item("x", text), DatasetSettings(caption_shuffle=True, caption_variants=3))

    assert many[:3] == few == both[3:]
    assert both[:3] == ("x", "x", "x"), "captions of one image weigh the same"
    assert few == ("a, b, c, d, e", "a, b, d, e, c", "e, d, c, a, b")


def test_another_separator() -> None:
    data = DatasetSettings(caption_shuffle=True, caption_separator="|", caption_variants=16)

    assert set(captions_of(an_item("a, b | c"), data)) == {"a, b | c", "a, b| c", "c| a, b"}


def test_what_stands_between_two_commas_or_after_the_last_is_a_part_only_if_there_is_something() -> None:
    data = DatasetSettings(caption_shuffle=True, keep_tokens=1, caption_variants=16)

    assert set(captions_of(an_item("sks, , a,b, "), data)) == {"sks, , a,b, ", "sks, a, b", "sks, b, a"}


@pytest.mark.parametrize("changed", [{"caption_separator": ";"}, {"keep_tokens": 2}])
def test_nothing_to_shuffle_is_refused(tmp_path: Path, settings: Settings, changed: dict[str, Any]) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("a cat, a hat, a mat")
    read_dataset(settings(tmp_path, caption_shuffle=True, keep_tokens=1))
    with pytest.raises(DatasetError, match=r"dataset\.caption_shuffle=true: with dataset\.caption_separator="):
        read_dataset(settings(tmp_path, caption_shuffle=True, **changed))


def test_a_misspelt_column_is_told_though_there_is_a_prompt(tmp_path: Path, settings: Settings) -> None:
    """Otherwise all images would get the prompt; without a similarly named column, it fills in for missing captions."""
    write(tmp_path, "a.png")
    table = pa.table({"image": [(tmp_path / "a.png").read_bytes()], "caption": ["one"]})
    pq.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "f").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "f" / "a.png")
    (tmp_path / "f" / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "caption": "one"}))

    for name in ("f", "t.parquet"):
        said = r"no column dataset\.caption_column='captoin' \(did you mean 'caption'\?\); columns: .*\. Set dataset"
        with pytest.raises(DatasetError, match=said):
            read_dataset(settings(tmp_path / name, caption_column="captoin", instance_prompt="x"))
        assert list(captions_read(settings(tmp_path / name, instance_prompt="x")).values()) == [("x",)]
        assert list(captions_read(settings(tmp_path / name, caption_column="caption")).values()) == [("one",)]


def test_a_column_has_no_effect_on_text_files(tmp_path: Path, settings: Settings) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(DatasetError, match=r"dataset\.caption_column='caption' has no effect: no metadata\.jsonl or"):
        read_dataset(settings(tmp_path, caption_column="caption"))
