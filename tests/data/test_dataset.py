"""What holds for every source: order, fingerprint, the account of all files, and the memory of a first look."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runner.data import read_dataset, split
from runner.errors import DatasetError

Settings = Callable[..., Any]
Photos = dict[str, Image.Image]


def numbered(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (40, 48), (number, 100, 200 - number)).save(folder / f"{number:03}.png")


def age(folder: Path, *, seconds: float = 60) -> None:
    """Make all files look as if they were written long ago."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


def test_names_and_layout_do_not_matter(captioned: Path, tmp_path: Path, settings: Settings) -> None:
    """The same pictures and captions under other names, as text files in folders: same order, same
    fingerprint.
    """
    other = tmp_path / "other"
    for number, line in enumerate((captioned / "metadata.jsonl").read_text().splitlines()):
        values = json.loads(line)
        (other / str(number)).mkdir(parents=True)
        shutil.copy(captioned / values["file_name"], other / str(number) / f"{9 - number}.png")
        (other / str(number) / f"{9 - number}.txt").write_text(values["text"] + "\n")

    left, right = read_dataset(settings(captioned)), read_dataset(settings(other))

    assert left.fingerprint == right.fingerprint
    assert [(i.id, i.caption) for i in left.items] == [(i.id, i.caption) for i in right.items]
    assert [i.file for i in left.items] != [i.file for i in right.items]


def test_fingerprint_changes_with_content(captioned: Path, photos: Photos, settings: Settings) -> None:
    """A changed caption, a changed pixel, an extra image, or fewer images each make a different data set."""
    seen = {read_dataset(settings(captioned)).fingerprint}
    text = (captioned / "metadata.jsonl").read_text()
    (captioned / "metadata.jsonl").write_text(text.replace("photo of a cat", "picture of a cat"))
    seen.add(read_dataset(settings(captioned)).fingerprint)
    photos["cat"].rotate(180).save(captioned / "cat.png")
    seen.add(read_dataset(settings(captioned)).fingerprint)
    photos["cat"].rotate(90).save(captioned / "new.png")
    (captioned / "metadata.jsonl").write_text(text + '\n{"file_name": "new.png", "text": "new"}')
    seen.add(read_dataset(settings(captioned)).fingerprint)
    seen.add(read_dataset(settings(captioned, max_images=2)).fingerprint)

    assert len(seen) == 5


def test_report_accounts_for_every_file(tmp_path: Path, photos: Photos, settings: Settings) -> None:
    """Each property is counted, listed, serialisable and fits a terminal."""
    photos["cat"].save(tmp_path / "cat.png")
    shutil.copy(tmp_path / "cat.png", tmp_path / "copy.png")
    photos["coffee"].convert("CMYK").save(tmp_path / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    photos["rocket"].save(tmp_path / "turned.jpg", exif=exif)
    photos["astronaut"].resize((64, 64)).save(tmp_path / "small.png")
    (tmp_path / "bad.png").write_bytes(b"x")
    (tmp_path / "notes.md").write_text("x")

    report = read_dataset(settings(tmp_path, instance_prompt="x", skip_unreadable=True), resolution=128).report

    counts = {
        "used": 5,
        "dropped": 1,
        "ignored": 1,
        "enlarged": 1,
        "duplicate": 1,
        "converted": 1,
        "rotated": 1,
    }
    assert {name: report.counts[name] for name in counts} == counts
    assert report.counts["reduced"] == 4
    rows = {row["file"]: row for row in json.loads(json.dumps(report.as_dict()))["rows"]}
    assert rows["copy.png"]["notes"][0] == "same content as cat.png"
    assert rows["small.png"]["notes"] == ["enlarged from 64x64 to 128x128"]
    assert rows["cmyk.jpg"]["notes"][0] == "CMYK to RGB"
    assert "cat.png" not in rows
    lines = report.lines()
    assert lines[0].startswith("images: 5 used, 1 dropped, 1 ignored")
    assert lines[1].split()[:2] == ["dropped", "bad.png"]
    assert len(report.lines(limit=2)) == 4


def test_a_file_is_one_row_whatever_its_name_holds(tmp_path: Path, settings: Settings) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "a\n  used     b.png")

    lines = read_dataset(settings(tmp_path, instance_prompt="x"), resolution=64).report.lines()

    assert [line.split() for line in lines[1:]] == [["used", r"a\n", "used", "b.png", "grey", "to", "RGB"]]
    assert not any("\n" in line for line in lines)


def test_max_images_takes_the_same_ones_and_lists_the_rest(tmp_path: Path, settings: Settings) -> None:
    """The first images in the fixed order are used, whatever the files are called."""
    numbered(tmp_path / "a", 8)
    full = read_dataset(settings(tmp_path / "a", instance_prompt="x"))
    some = read_dataset(settings(tmp_path / "a", instance_prompt="x", max_images=3))

    assert some.items == full.items[:3]
    assert some.report.counts["dropped"] == 5


def test_second_look_reads_no_image(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untouched files are not opened again; a replaced one is, even if the new file has the same size and the same
    modification time, as with `cp -p` and archives.
    """
    numbered(tmp_path / "a", 6)
    age(tmp_path / "a")
    first = read_dataset(settings(tmp_path / "a", instance_prompt="x"))
    with monkeypatch.context() as patched:
        patched.delattr("runner.data.inspection.inspect")
        assert read_dataset(settings(tmp_path / "a", instance_prompt="x")) == first

    path = tmp_path / "a" / "003.png"
    status = path.stat()
    path.write_bytes(b"\0" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"1 fault .*\n.*003\.png: cannot be decoded"):
            read_dataset(settings(tmp_path / "a", instance_prompt="x"))
    (memory,) = (Path(os.environ["RUNNER_CACHE"]) / "inspections").iterdir()
    assert len(json.loads(memory.read_text())["files"]) == 5, "neither what is damaged nor what it was before"


def test_fresh_files_are_not_remembered(tmp_path: Path, settings: Settings) -> None:
    """A file written just now may be rewritten without a change of its time stamp."""
    numbered(tmp_path / "a", 2)
    now = time.time_ns()
    for path in (tmp_path / "a").iterdir():
        os.utime(path, ns=(now, now))
    first = read_dataset(settings(tmp_path / "a", instance_prompt="x"))
    path = tmp_path / "a" / "000.png"
    data = path.read_bytes()
    path.write_bytes((tmp_path / "a" / "001.png").read_bytes().ljust(len(data), b"\0"))
    os.utime(path, ns=(now, now))

    assert read_dataset(settings(tmp_path / "a", instance_prompt="x")).fingerprint != first.fingerprint


def test_splits_of_one_folder_are_remembered_together(tmp_path: Path, settings: Settings) -> None:
    """Reading the test split does not forget the train split."""
    for split_name in ("train", "test"):
        numbered(tmp_path / "a" / split_name, 2)
    age(tmp_path / "a")
    for split_name in ("train", "test"):
        read_dataset(settings(tmp_path / "a", instance_prompt="x", split=split_name))

    (memory,) = (Path(os.environ["RUNNER_CACHE"]) / "inspections").iterdir()
    assert len(json.loads(memory.read_text())["files"]) == 4


def test_damaged_memory_is_only_slower(tmp_path: Path, settings: Settings) -> None:
    """Whatever the memory file contains, the result is right."""
    numbered(tmp_path / "a", 3)
    age(tmp_path / "a")
    first = read_dataset(settings(tmp_path / "a", instance_prompt="x"))
    (memory,) = (Path(os.environ["RUNNER_CACHE"]) / "inspections").iterdir()
    for text in (
        "",
        "{",
        "[]",
        '{"version": 1}',
        memory.read_text().replace('"files": {', '"files": {"x": 1, '),
    ):
        memory.write_text(text)
        assert read_dataset(settings(tmp_path / "a", instance_prompt="x")) == first


def test_cache_folder_that_cannot_be_written(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a place to remember, the data set is read all the same."""
    numbered(tmp_path / "a", 2)
    age(tmp_path / "a")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "file"))

    assert len(read_dataset(settings(tmp_path / "a", instance_prompt="x")).items) == 2


def test_item_refuses_content_that_changed(tmp_path: Path, settings: Settings) -> None:
    """Cache entries are named by content, so a file that changes during a run must not be used under its old name."""
    numbered(tmp_path / "a", 1)
    (item,) = read_dataset(settings(tmp_path / "a", instance_prompt="x")).items
    assert pickle.loads(pickle.dumps(item)).open().size == (40, 48)

    Image.new("RGB", (40, 48)).save(tmp_path / "a" / "000.png")
    with pytest.raises(DatasetError, match=r"000\.png: the content has changed"):
        item.open()
    (tmp_path / "a" / "000.png").unlink()
    with pytest.raises(DatasetError, match=r"000\.png"):
        item.open()


def test_held_out_share(tmp_path: Path, settings: Settings) -> None:
    """The share is met, the parts do not overlap, and the order and names of the items do not matter."""
    numbered(tmp_path / "a", 40)
    items = read_dataset(settings(tmp_path / "a", instance_prompt="x")).items

    train, held_out = split(items, held_out=0.1)

    assert (len(train), len(held_out)) == (36, 4)
    assert sorted((*train, *held_out), key=lambda i: i.id) == list(items)
    again, held_out_again = split(items[::-1], held_out=0.1)
    assert set(held_out_again) == set(held_out)
    assert again == train[::-1]
    assert len(split(items, held_out=0.001)[1]) == 1
    assert len(split(items, held_out=0.99)[0]) == 1
    assert split(items, held_out=0.0) == (items, ())
    assert split(items[:9], held_out=0.5) == (items[:9], ())
    assert len(split(items[:10], held_out=0.01)[1]) == 1


@pytest.mark.parametrize("copies", [2, 9, 20])
def test_copies_stay_on_one_side(tmp_path: Path, settings: Settings, copies: int) -> None:
    """An image that is also trained on would make the held-out loss a lie."""
    numbered(tmp_path / "a", 12)
    for number in range(copies):
        shutil.copy(tmp_path / "a" / "005.png", tmp_path / "a" / f"copy{number}.png")
    items = read_dataset(settings(tmp_path / "a", instance_prompt="x")).items

    for share in (0.05, 0.2, 0.5, 0.9):
        train, held_out = split(items, held_out=share)
        assert train
        assert held_out
        assert not {i.id for i in train} & {i.id for i in held_out}

    pairs = [item for item in items if "copy" not in item.file] * 2 + [item for item in items if "copy" in item.file]
    assert len(split(pairs, held_out=0.01)[1]) == 2, "where one is too many, it is one with the fewest copies"
    same = [item for item in items if item.file.startswith("copy")] * 10
    assert split(same, held_out=0.5)[1] == ()


def test_importing_is_cheap() -> None:
    """The plan of a sweep must not wait for numpy, Pillow or arrow."""
    code = (
        "import sys, runner.data; "
        "heavy = {'numpy', 'PIL', 'pyarrow', 'huggingface_hub', 'torch', 'hydra'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"


def test_embedded_houses(settings: Settings) -> None:
    """The shipped data set can be read."""
    dataset = read_dataset(settings("embedded"))

    assert len(dataset.items) >= 16
    assert all("house" in item.caption for item in dataset.items)
