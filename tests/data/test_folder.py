"""Folders of images: where captions come from, what is refused, and what is only listed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runner.data import Dataset, read_dataset
from runner.data.dataset import Described
from runner.data.sources import metadata
from runner.errors import DatasetError

Settings = Callable[..., Any]
Photos = dict[str, Image.Image]


def captions(dataset: Dataset) -> dict[str, str]:
    return {item.file: item.caption for item in dataset.items}


def ignored(dataset: Dataset) -> dict[str, str]:
    return {row.file: "; ".join(row.notes) for row in dataset.report.rows if row.outcome == "ignored"}


def test_metadata_jsonl(captioned: Path, settings: Settings) -> None:
    """Each line gives its image a caption."""
    dataset = read_dataset(settings(captioned))

    assert captions(dataset) == {f"{n}.png": f"a photo of a {n}" for n in ("astronaut", "cat", "coffee", "rocket")}
    assert dataset.report.counts["used"] == 4


def test_metadata_csv(tmp_path: Path, photos: Photos, settings: Settings) -> None:
    """CSV works with quotes, commas and a byte order mark, as a spreadsheet writes it."""
    photos["cat"].save(tmp_path / "cat.webp")
    text = '\ufefffile_name,caption\ncat.webp,"a cat, looking ""up"""\n'
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8")

    dataset = read_dataset(settings(tmp_path, caption_column="caption"))

    assert captions(dataset) == {"cat.webp": 'a cat, looking "up"'}


@pytest.mark.parametrize(
    ("lines", "first"),
    [
        (['cat.png,"a 5 inch nail', "coffee.png,a cup"], 3),
        (['cat.png,"a 5 inch nail', 'coffee.png,"a cup"'], 3),
        (["cat.png,a cat", 'coffee.png,"a', 'cup" of coffee'], 4),
        (['cat.png,"a 5 inch nail', "x" * 200_000], 3),
    ],
)
def test_a_stray_quote_in_csv_is_one_fault(
    tmp_path: Path, photos: Photos, settings: Settings, lines: list[str], first: int
) -> None:
    """It does not turn all following lines into one caption, and the line where it starts is reported."""
    for name in ("cat", "coffee"):
        photos[name].save(tmp_path / f"{name}.png")
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text", "", *lines]))

    with pytest.raises(DatasetError, match="1 fault") as raised:
        read_dataset(settings(tmp_path))

    assert f"metadata.csv line {first}: not valid CSV from here on" in str(raised.value)


def test_lines_of_csv(tmp_path: Path, photos: Photos, settings: Settings) -> None:
    """A quoted caption may span lines, and characters that only some programs take for a line end belong to it."""
    for name in ("cat", "coffee", "rocket"):
        photos[name].save(tmp_path / f"{name}.png")
    text = 'file_name,text\ncat.png,"a\ncat"\ncoffee.png,5" of\u2028coffee\nrocket.png\n'
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8")

    dataset = read_dataset(settings(tmp_path, instance_prompt="x"))
    assert captions(dataset) == {"cat.png": "a\ncat", "coffee.png": '5" of\u2028coffee', "rocket.png": "x"}
    (tmp_path / "metadata.csv").write_text(text + "rocket.png,b,c\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"metadata\.csv line 6: more cells than columns"):
        read_dataset(settings(tmp_path, instance_prompt="x"))


def test_text_files_beside_images(tmp_path: Path, photos: Photos, settings: Settings) -> None:
    """Nested folders, unicode, quotes and spaces; an image without text gets the instance prompt."""
    inner = tmp_path / "träume" / 'o\'clock "2"'
    inner.mkdir(parents=True)
    photos["cat"].save(inner / "die Katze 猫.JPG", "JPEG")
    (inner / "die Katze 猫.txt").write_text("eine Katze 猫\n", encoding="utf-8")
    photos["coffee"].save(tmp_path / "b.png")

    dataset = read_dataset(settings(tmp_path, instance_prompt="sks thing"))

    assert captions(dataset) == {
        'träume/o\'clock "2"/die Katze 猫.JPG': "eine Katze 猫",
        "b.png": "sks thing",
    }


def test_links_are_followed_once(tmp_path: Path, photos: Photos, settings: Settings) -> None:
    """A linked folder is read; a link to a parent folder does not lead in circles."""
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    photos["cat"].save(outside / "cat.png")
    (folder / "linked").symlink_to(outside)
    (folder / "circle").symlink_to(folder)

    dataset = read_dataset(settings(folder, instance_prompt="x"))

    assert [item.file for item in dataset.items] == ["linked/cat.png"]


def test_results_of_trainings_are_no_data(
    tmp_path: Path, photos: Photos, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos["cat"].save(tmp_path / "a.png")
    results = tmp_path / "outputs" / "dev" / "0123456789" / "samples"
    results.mkdir(parents=True)
    photos["rocket"].save(results / "p00-s0.png")
    monkeypatch.setenv("RUNNER_OUTPUTS", str(tmp_path / "outputs"))
    found = read_dataset(settings(tmp_path, instance_prompt="a dog"), resolution=64)
    assert [item.file for item in found.items] == ["a.png"]
    assert "ignored  outputs/  results of trainings" in "\n".join(found.report.lines())
    monkeypatch.setenv("RUNNER_OUTPUTS", str(tmp_path / "elsewhere"))
    assert len(read_dataset(settings(tmp_path, instance_prompt="a dog"), resolution=64).items) == 2
    chosen = read_dataset(settings(results, instance_prompt="a dog"), resolution=64)
    assert [item.file for item in chosen.items] == ["p00-s0.png"]


def test_files_that_are_not_images(captioned: Path, photos: Photos, settings: Settings) -> None:
    """Other files, unnamed images and lone text files are listed; hidden files are not."""
    (captioned / ".DS_Store").write_bytes(b"x")
    (captioned / ".thumbs").mkdir()
    photos["cat"].save(captioned / ".thumbs" / "cat.png")
    (captioned / "notes.pdf").write_bytes(b"x")
    (captioned / "lonely.txt").write_text("no image")
    (captioned / "cat.txt").write_text("not used")
    photos["cat"].rotate(90).save(captioned / "extra.png")

    dataset = read_dataset(settings(captioned))

    assert ignored(dataset) == {
        "notes.pdf": "not an image",
        "lonely.txt": "text not read: no image of this name",
        "cat.txt": "text not read: its image is left out or captioned elsewhere",
        "extra.png": "not named in metadata.jsonl",
    }
    assert dataset.report.counts["warning"] == 3


def test_a_metadata_file_decides_for_what_lies_below_unless_a_nearer_one_does(
    captioned: Path, photos: Photos, settings: Settings
) -> None:
    """A left-out image is reported with the file that should have named it."""
    nearer = captioned / "more"
    (nearer / "deep").mkdir(parents=True)
    (nearer / "metadata.jsonl").write_text('{"file_name": "dog.png", "text": "a dog"}\n')
    for name in ("dog.png", "left.png", "deep/left.png"):
        photos["cat"].rotate(len(name) * 10).save(nearer / name)
    (captioned / "other").mkdir()
    photos["cat"].rotate(90).save(captioned / "other" / "left.png")

    assert ignored(read_dataset(settings(captioned))) == {
        "more/left.png": "not named in more/metadata.jsonl",
        "more/deep/left.png": "not named in more/metadata.jsonl",
        "other/left.png": "not named in metadata.jsonl",
    }


def test_all_faults_of_the_metadata_together(tmp_path: Path, photos: Photos, settings: Settings) -> None:
    """One error names every line, what is wrong with it and what was probably meant."""
    for name in ("cat", "coffee"):
        photos[name].save(tmp_path / f"{name}.png")
    lines = [
        '{"file_name": "cat.png", "text": "a cat"}',
        '{"file_name": "cat.png", "text": ',
        '{"file_name": "cofee.png", "text": "a cup"}',
        '{"filename": "coffee.png", "text": "a cup"}',
        '{"file_name": "./cat.png", "text": "again"}',
        '{"file_name": "coffee.png", "text": ["a", 3]}',
        "[1, 2]",
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))

    with pytest.raises(DatasetError) as raised:
        read_dataset(settings(tmp_path))

    message = str(raised.value)
    assert f"dataset.path={str(tmp_path)!r}: 6 faults" in message
    assert "line 2: not valid JSON" in message
    assert "line 3: there is no file 'cofee.png' (did you mean 'coffee.png'?)" in message
    assert "line 4: no 'file_name' (did you mean 'filename'?); columns: 'filename', 'text'" in message
    assert "line 5: 'cat.png' is already in metadata.jsonl line 1" in message
    assert "line 6: text=[a, 3] must be text" in message
    assert "line 7: must be an object" in message


def test_names_are_compared_only_for_faults_that_are_shown(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searching all names for each of a thousand wrong ones would look like a hang."""
    asked = []
    monkeypatch.setattr(metadata, "nearest", lambda name, names: asked.append(name) or "")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    lines = [json.dumps({"file_name": f"{number}.jpg", "text": "x"}) for number in range(60)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))

    with pytest.raises(DatasetError, match="60 faults"):
        read_dataset(settings(tmp_path))

    assert asked == [f"{number}.jpg" for number in range(20)]


def test_missing_caption_column_is_one_fault(captioned: Path, settings: Settings) -> None:
    """A wrong column name is reported once, with the columns that exist; an instance prompt makes it harmless."""
    with pytest.raises(DatasetError, match="1 fault") as raised:
        read_dataset(settings(captioned, caption_column="txt"))
    assert "caption_column='txt' (did you mean 'text'?); columns: 'file_name', 'text'" in str(raised.value)

    dataset = read_dataset(settings(captioned, caption_column="nothing", instance_prompt="sks"))
    assert set(captions(dataset).values()) == {"sks"}


def test_missing_captions_name_the_fix(tmp_path: Path, photos: Photos, settings: Settings) -> None:
    """No caption, and an empty one, are the same fault."""
    photos["cat"].save(tmp_path / "cat.png")
    photos["coffee"].save(tmp_path / "coffee.png")
    (tmp_path / "coffee.txt").write_text(" \n")

    with pytest.raises(DatasetError) as raised:
        read_dataset(settings(tmp_path))

    assert "cat.png: no caption. Write one into cat.txt beside it, or set dataset.instance_prompt" in str(raised.value)
    assert "coffee.png: no caption. Write one into coffee.txt" in str(raised.value)


def test_many_faults_of_one_kind_are_counted(tmp_path: Path, settings: Settings) -> None:
    """A thousand images without captions do not fill the screen."""
    for number in range(60):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / f"{number:02}.png")

    with pytest.raises(DatasetError) as raised:
        read_dataset(settings(tmp_path))

    assert "60 faults" in str(raised.value)
    assert "and 40 more like the last" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 22


def test_bad_files(tmp_path: Path, photos: Photos, settings: Settings) -> None:
    """Damaged, fake, empty and tiny files are refused by name, or dropped on request."""
    photos["cat"].save(tmp_path / "good.png")
    data = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("RGB", (3000, 20)).save(tmp_path / "strip.png")

    with pytest.raises(DatasetError) as raised:
        read_dataset(settings(tmp_path, instance_prompt="x"))
    message = str(raised.value)
    assert "6 faults" in message
    for name in ("cut.png", "empty.jpg", "text.png", "phone.heic", "dot.png", "strip.png"):
        assert f"{name}: " in message
    assert "3000x20 px, its shorter side below dataset.min_side_px=32" in message
    assert "dataset.skip_unreadable=true" in message

    dataset = read_dataset(settings(tmp_path, instance_prompt="x", skip_unreadable=True))
    assert [item.file for item in dataset.items] == ["good.png"]
    assert dataset.report.counts["dropped"] == 6
    assert len(read_dataset(settings(tmp_path, instance_prompt="x", skip_unreadable=True, min_side_px=20)).items) == 2


def test_nothing_usable_is_an_error(tmp_path: Path, settings: Settings) -> None:
    """An empty folder, or one from which everything was dropped, is not trained on."""
    with pytest.raises(DatasetError, match="no images"):
        read_dataset(settings(tmp_path))

    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"no image is left, 1 left out: bad\.png"):
        read_dataset(settings(tmp_path, instance_prompt="x", skip_unreadable=True))


def test_metadata_that_names_nothing(captioned: Path, settings: Settings) -> None:
    """An empty metadata file leaves out every image, and this is reported."""
    (captioned / "metadata.jsonl").write_text("\n")

    with pytest.raises(DatasetError, match=r"4 left out: .*not named in metadata\.jsonl"):
        read_dataset(settings(captioned))


def test_windows_line_ends_and_names(captioned: Path, settings: Settings) -> None:
    """CRLF and a byte order mark are read; a backslash in a name is a fault with the right name beside it."""
    text = (captioned / "metadata.jsonl").read_text()
    (captioned / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert len(read_dataset(settings(captioned)).items) == 4

    (captioned / "sub").mkdir()
    os.rename(captioned / "cat.png", captioned / "sub" / "cat.png")
    (captioned / "metadata.jsonl").write_text(text.replace('"cat.png', '"sub\\\\cat.png'))
    with pytest.raises(DatasetError, match=r"did you mean 'sub/cat\.png'"):
        read_dataset(settings(captioned))


def test_dreambooth_description(tmp_path: Path, photos: Photos, settings: Settings) -> None:
    """`dataset_info.json` captions the images and sets the class images apart."""
    (tmp_path / "class").mkdir()
    photos["cat"].save(tmp_path / "mine.png")
    photos["coffee"].save(tmp_path / "class" / "other.png")
    info = {"instance_prompt": "a photo of sks cat", "class_prompt": "a cat", "class_data_dir": "class"}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))

    dataset = read_dataset(settings(tmp_path))

    assert captions(dataset) == {"mine.png": "a photo of sks cat"}
    assert dataset.described == (Described("a cat", tmp_path / "class"),)
    assert ignored(dataset) == {"class/other.png": "class image"}
    assert captions(read_dataset(settings(tmp_path, instance_prompt="mine")))["mine.png"] == "mine"


def test_class_images_may_be_links_as_in_the_cache_of_the_hub(tmp_path: Path, settings: Settings) -> None:
    (contents := tmp_path / "blobs").mkdir()
    (snapshot := tmp_path / "snapshot" / "class").mkdir(parents=True)
    for number, file in enumerate((snapshot.parent / "mine.png", snapshot / "other.png")):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(contents / file.name)
        file.symlink_to(contents / file.name)
    info = {"instance_prompt": "a photo of sks cat", "class_prompt": "a cat", "class_data_dir": "class"}
    (snapshot.parent / "dataset_info.json").write_text(json.dumps(info))
    dataset = read_dataset(settings(snapshot.parent))
    assert [item.file for item in dataset.items] == ["mine.png"]
    assert dataset.report.counts["ignored"] == 1


def test_dreambooth_description_faults(tmp_path: Path, photos: Photos, settings: Settings) -> None:
    """Misspelt keys, wrong types and missing folders in `dataset_info.json` are named."""
    photos["cat"].save(tmp_path / "mine.png")
    info = {"instance_promt": "x", "class_prompt": 3, "class_data_dir": "nowhere"}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))

    with pytest.raises(DatasetError) as raised:
        read_dataset(settings(tmp_path, instance_prompt="x"))

    message = str(raised.value)
    assert "unknown key 'instance_promt' (did you mean 'instance_prompt'?)" in message
    assert "class_prompt=3 must be text" in message
    assert "class_data_dir='nowhere' is not a folder" in message


def test_split_folders(tmp_path: Path, photos: Photos, settings: Settings) -> None:
    """Images in another split's folder are not trained on, and asking for a missing split is refused."""
    for split, name in (("train", "cat"), ("test", "coffee")):
        (tmp_path / split).mkdir()
        photos[name].save(tmp_path / split / "image.png")

    assert list(captions(read_dataset(settings(tmp_path, instance_prompt="x")))) == ["train/image.png"]
    assert list(captions(read_dataset(settings(tmp_path, instance_prompt="x", split="test")))) == ["test/image.png"]
    (tmp_path / "test" / "metadata.jsonl").write_text("damaged, but of the other split")
    assert len(read_dataset(settings(tmp_path, instance_prompt="x")).items) == 1
    with pytest.raises(DatasetError, match="splits found: 'test', 'train'"):
        read_dataset(settings(tmp_path, instance_prompt="x", split="validation"))


def test_paths_that_do_not_exist(captioned: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest existing name is shown; a misspelt relative path is not taken for a Hub id."""
    with pytest.raises(DatasetError, match=r"no 'captiond' .*did you mean 'captioned'"):
        read_dataset(settings(captioned.parent / "captiond"))

    (captioned.parent / "sets").mkdir()
    os.rename(captioned, captioned.parent / "sets" / "pictures")
    monkeypatch.chdir(captioned.parent)
    with pytest.raises(DatasetError, match=r"no 'pictres' .*did you mean 'pictures'"):
        read_dataset(settings("sets/pictres"))
    with pytest.raises(DatasetError, match=r"a single file must be \.parquet or \.arrow"):
        read_dataset(settings("sets/pictures/metadata.jsonl"))
    with pytest.raises(DatasetError, match=r"not found: 'metadata\.jsonl' in .*sets/pictures is a file\. Give"):
        read_dataset(settings("sets/pictures/metadata.jsonl/train"))


def test_settings_without_effect_are_refused(captioned: Path, settings: Settings) -> None:
    """A revision or an image column says nothing about a folder of images."""
    with pytest.raises(DatasetError, match="2 faults") as raised:
        read_dataset(settings(captioned, revision="main", image_column="picture"))
    assert "dataset.revision='main' has no effect" in str(raised.value)
