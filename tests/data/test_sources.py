"""Images from several places as one data set: what each adds, how often, and which one contains a mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from runner.data import Dataset, read_dataset, split
from runner.data.dataset import Described
from runner.data.export import export
from runner.errors import DatasetError
from runner.schema import DatasetSettings
from tests.command_line import runner


def write(folder: Path, *colours: int, caption: str = "") -> Path:
    folder.mkdir()
    for colour in colours:
        Image.new("RGB", (40, 48), (colour, 100, 200)).save(folder / f"{colour}.png")
        if caption:
            (folder / f"{colour}.txt").write_text(caption)
    return folder


def read(*sources: Any, **more: Any) -> Dataset:
    return read_dataset(DatasetSettings(path=None, sources=sources, **more))


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """A folder with captions, one without, and a table."""
    write(tmp_path / "dogs", 1, 2, caption="a dog")
    write(tmp_path / "cats", 3)
    image = (write(tmp_path / "more", 4) / "4.png").read_bytes()
    pq.write_table(pa.table({"picture": [image], "words": ["a table"]}), tmp_path / "t.parquet")
    return [str(tmp_path / name) for name in ("dogs", "cats", "t.parquet")]


def sources_of(places: list[str], *, repeats: int = 3) -> list[dict[str, Any]]:
    dogs, cats, table = places
    return [
        {"path": dogs},
        {"path": cats, "repeats": repeats, "instance_prompt": "a cat"},
        {"path": table, "image_column": "picture", "caption_column": "words"},
    ]


def test_each_source_has_settings_of_its_own(places: list[str]) -> None:
    dataset = read(*sources_of(places))

    assert {(item.file, item.caption, item.repeats) for item in dataset.items} == {
        ("sources.0/1.png", "a dog", 1),
        ("sources.0/2.png", "a dog", 1),
        ("sources.1/3.png", "a cat", 3),
        ("sources.2/t.parquet row 0", "a table", 1),
    }
    lines = dataset.report.lines()
    assert lines[1] == f"  sources.0  {places[0]}: 2 x 1, 33% of the samples"
    assert lines[2] == f"  sources.1  {places[1]}: 1 x 3, 50% of the samples"
    assert [share["samples"] for share in dataset.report.as_dict()["sources"]] == [2, 3, 1]


def test_a_prompt_that_only_some_of_the_sources_need_is_no_blunder(places: list[str]) -> None:
    assert read(*places[:2], instance_prompt="x").report.remarks == ()


def test_a_path_alone_is_a_source(places: list[str]) -> None:
    assert [item.id for item in read(*places[:2], instance_prompt="x").items] == [
        item.id for item in read({"path": places[0]}, {"path": places[1]}, instance_prompt="x").items
    ]


def test_where_images_are_does_not_matter_but_how_often_they_come(places: list[str], tmp_path: Path) -> None:
    """One source is the same data set as its folder; the order of sources does not matter, but repeats do."""
    alone = read_dataset(DatasetSettings(path=places[0]))
    assert read(places[0]).fingerprint == alone.fingerprint
    assert read({"path": places[0], "repeats": 2}).fingerprint != alone.fingerprint
    sources = sources_of(places)
    assert read(*sources).fingerprint == read(*reversed(sources)).fingerprint
    seen = {read(*sources_of(places, repeats=count)).fingerprint for count in (1, 2, 3)}
    assert len(seen) == 3


def test_what_is_sent_elsewhere_is_the_same_data_set_there(places: list[str], tmp_path: Path) -> None:
    here = read(*sources_of(places))
    (tmp_path / "sent").mkdir()

    export(here.items, tmp_path / "sent")

    there = read_dataset(DatasetSettings(path=str(tmp_path / "sent")))
    assert there.fingerprint == here.fingerprint
    kept = [[(item.id, item.captions, item.repeats) for item in dataset.items] for dataset in (here, there)]
    assert kept[0] == kept[1]
    again = read({"path": str(tmp_path / "sent"), "repeats": 2})
    assert [item.repeats for item in again.items] == [2 * item.repeats for item in here.items]


def test_the_mistakes_of_all_sources_are_told_together_each_with_its_key(places: list[str], tmp_path: Path) -> None:
    (tmp_path / "dogs" / "1.txt").unlink()
    with pytest.raises(DatasetError) as raised:
        read(places[0], str(tmp_path / "cast"), {"path": places[2], "image_column": "picture"})

    said = str(raised.value)
    assert f"dataset.sources.0.path={places[0]!r}: 1 fault" in said
    assert "1.png: no caption" in said
    assert "or set dataset.sources.0.instance_prompt" in said
    assert "dataset.sources.1.path=" in said
    assert "no 'cast' in" in said
    assert "no column dataset.sources.2.caption_column='text'; columns: 'picture', 'words'" in said
    assert "dataset.path" not in said


def test_an_image_of_two_sources_is_told(places: list[str]) -> None:
    report = read(places[0], {"path": places[0]}).report

    assert report.counts["duplicate"] == 2
    assert report.as_dict()["rows"][0]["notes"] == ["same content as sources.0/1.png"]


def test_a_source_that_is_held_out_as_a_whole_is_told(tmp_path: Path) -> None:
    """Which images are held out depends on their content, so it is the same if sources are sent as one."""
    many = write(tmp_path / "many", *range(0, 120, 10), caption="x")
    _, (chosen,) = split(read(str(many)).items, held_out=0.1)
    one = tmp_path / "one"
    one.mkdir()
    for suffix in (".png", ".txt"):
        name = Path(chosen.file).with_suffix(suffix).name
        (many / name).rename(one / name)

    arguments = ["dataset=sources", f"dataset.sources=[{many},{one}]", "launcher.dry_run=true"]
    said = "sources.1: every image of it is held out, and none is trained on; give it more images, or set validation.he"
    assert said in runner(*arguments).output
    assert "held out, and none" not in runner(*arguments, "validation.held_out=0").output


def test_each_source_may_describe_its_own_class(tmp_path: Path) -> None:
    for number, name in enumerate(("dogs", "things", "cats")):
        write(tmp_path / name, number, caption="x")
    for name in ("dogs", "cats"):
        write(tmp_path / name / "class", 9)
        said = {"class_prompt": f"some {name}", "class_data_dir": "class"}
        (tmp_path / name / "dataset_info.json").write_text(json.dumps(said))

    found = read(*(str(tmp_path / name) for name in ("dogs", "things", "cats")))

    assert found.described == (
        Described("some dogs", tmp_path / "dogs" / "class"),
        Described(),
        Described("some cats", tmp_path / "cats" / "class"),
    )
    assert sorted((item.file, item.source) for item in found.items) == [
        ("sources.0/0.png", 0),
        ("sources.1/1.png", 1),
        ("sources.2/2.png", 2),
    ]


def test_what_the_sources_that_can_be_read_lack_others_may_have(tmp_path: Path) -> None:
    right, masked = write(tmp_path / "right", 1, caption="a dog"), write(tmp_path / "masked", 2, caption="a cat")
    Image.new("L", (40, 48)).save(masked / "2.mask.png")
    (masked / "3.png").write_bytes(b"no image")

    with pytest.raises(DatasetError) as raised:
        read({"path": str(right)}, {"path": str(masked)}, masks=True)

    assert "3.png: cannot be decoded" in str(raised.value) and "no image has a mask" not in str(raised.value)
