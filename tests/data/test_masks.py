"""Masks are found beside their images, have the same shape, and are cut in exactly the same way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from runner.data import Crop, Dataset, crops_for, read_dataset, render_mask
from runner.data.export import export
from runner.errors import DatasetError
from runner.schema import DatasetSettings

Settings = Callable[..., Any]


def picture(path: Path, *, mode: str = "RGB", size: tuple[int, int] = (60, 48), seed: int = 0) -> Path:
    """A picture of noise, `size` as (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode).save(path)
    return path


def masks(dataset: Dataset) -> dict[str, str | None]:
    return {item.file: item.mask.file if item.mask else None for item in dataset.items}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, three of them with masks in each of the three ways."""
    for number, name in enumerate(("a.png", "b.jpg", "sub/c.png", "d.png")):
        picture(tmp_path / "x" / name, seed=number)
    for number, name in enumerate(("a.mask.png", "b-masklabel.png", "masks/sub/c.webp")):
        picture(tmp_path / "x" / name, mode="L", seed=10 + number)
    return tmp_path / "x"


def test_masks_are_found_in_each_of_the_usual_places(folder: Path, settings: Settings) -> None:
    dataset = read_dataset(settings(folder, masks=True, instance_prompt="x"), resolution=48)

    assert masks(dataset) == {
        "a.png": "a.mask.png", "b.jpg": "b-masklabel.png", "sub/c.png": "masks/sub/c.webp", "d.png": None,
    }  # fmt: skip
    assert dataset.report.counts["unmasked"] == 1
    rows = {row["file"]: row["notes"] for row in dataset.report.as_dict()["rows"]}
    assert "no mask: all of it counts" in rows["d.png"]
    assert len(read_dataset(settings(folder, instance_prompt="x")).items) == 7, "without the setting they are images"


def test_masks_of_images_that_metadata_name(folder: Path, settings: Settings) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}')

    assert masks(read_dataset(settings(folder, masks=True))) == {"a.png": "a.mask.png"}


@pytest.mark.parametrize("place", ["", "sources.0/"])
def test_masks_that_are_trained_as_images_are_told(place: str, folder: Path) -> None:
    picture(folder / "other.mask.png", mode="L")  # the mask of no image
    source = {"path": str(folder), "instance_prompt": "x"}
    given = DatasetSettings(path=None, sources=[source]) if place else DatasetSettings(**source)
    warned = {row.file: row.notes for row in read_dataset(given).report.rows if "warning" in row.kinds}
    assert warned.keys() == {f"{place}{name}" for name in ("a.mask.png", "b-masklabel.png", "masks/sub/c.webp")}
    note = "trained as an image, and named like the mask of a: dataset.masks=true reads it as that"
    assert note in warned[f"{place}a.mask.png"]


def test_masks_are_not_asked_for_captions_of_their_own(folder: Path, settings: Settings) -> None:
    for name in ("a", "b", "sub/c", "d"):
        (folder / name).with_suffix(".txt").write_text("x")

    with pytest.raises(DatasetError) as refused:
        read_dataset(settings(folder))

    first = str(refused.value).splitlines()[1]
    assert first.startswith("  - 'a.mask.png', 'b-masklabel.png', 'masks/sub/c.webp': named like masks, and read as im")
    assert "Add dataset.masks=true and loss.masked=true, or" in first
    assert len(read_dataset(settings(folder, masks=True)).items) == 4


def test_the_fingerprint_covers_masks(folder: Path, settings: Settings) -> None:
    seen = {read_dataset(settings(folder, masks=True, instance_prompt="x")).fingerprint}
    picture(folder / "a.mask.png", mode="L", seed=77)
    seen.add(read_dataset(settings(folder, masks=True, instance_prompt="x")).fingerprint)
    (folder / "a.mask.png").unlink()
    seen.add(read_dataset(settings(folder, masks=True, instance_prompt="x")).fingerprint)

    assert len(seen) == 3


def test_what_is_wrong_with_masks_is_told_together(folder: Path, settings: Settings) -> None:
    picture(folder / "masks" / "a.png", mode="L")
    picture(folder / "e.mask.png", mode="L")
    picture(folder / "d.mask.png", mode="L", size=(60, 60))
    (folder / "b-masklabel.png").write_bytes(b"nothing")
    with pytest.raises(DatasetError) as raised:
        read_dataset(settings(folder, masks=True, instance_prompt="x"))

    said = str(raised.value)
    assert "masks/a.png and a.mask.png are masks of one image. Remove one" in said
    assert "e.mask.png: a mask without its image: there is no e. Rename or remove it." in said
    assert "d.mask.png: the mask is 60x60 px, and d.png 60x48. A mask must have its image's shape." in said
    assert "b-masklabel.png: cannot be decoded" in said


def test_no_masks_at_all_are_refused(tmp_path: Path, settings: Settings) -> None:
    picture(tmp_path / "x" / "a.png")
    with pytest.raises(DatasetError, match=r"dataset\.masks=true: no image has a mask\. Put photo\.mask\.png beside"):
        read_dataset(settings(tmp_path / "x", masks=True, instance_prompt="x"))


def test_masks_in_a_table_and_back(folder: Path, tmp_path: Path, settings: Settings) -> None:
    here = read_dataset(settings(folder, masks=True, instance_prompt="x"))
    (tmp_path / "sent").mkdir()

    export(here.items, tmp_path / "sent")

    there = read_dataset(settings(tmp_path / "sent", masks=True))
    assert there.fingerprint == here.fingerprint
    for left, right in zip(here.items, there.items, strict=True):
        assert (left.mask is None) == (right.mask is None)
        if left.mask and right.mask:
            assert left.mask.id == right.mask.id
            assert np.array_equal(np.asarray(left.mask.open()), np.asarray(right.mask.open()))
    assert not any(item.mask for item in read_dataset(settings(tmp_path / "sent")).items)


def test_a_table_without_the_column_of_masks_is_refused(folder: Path, tmp_path: Path, settings: Settings) -> None:
    image = (folder / "a.png").read_bytes()
    pq.write_table(pa.table({"image": [image], "text": ["x"], "masks": [image]}), tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match=r"no column dataset\.mask_column='mask' \(did you mean 'masks'\?\)"):
        read_dataset(settings(tmp_path / "t.parquet", masks=True))
    assert read_dataset(settings(tmp_path / "t.parquet", masks=True, mask_column="masks")).items[0].mask
    pq.write_table(pa.table({"image": [image], "text": ["x"], "number": [1]}), tmp_path / "n.parquet")
    with pytest.raises(DatasetError, match=r"dataset\.mask_column='number' holds int64, not images"):
        read_dataset(settings(tmp_path / "n.parquet", masks=True, mask_column="number"))


def test_a_column_has_no_effect_on_a_folder(folder: Path, settings: Settings) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.mask_column='other' has no effect on a folder"):
        read_dataset(settings(folder, masks=True, mask_column="other", instance_prompt="x"))


def test_what_is_transparent_in_a_mask_does_not_count(tmp_path: Path, settings: Settings) -> None:
    """White paint on a transparent layer counts where it was painted, and by half where it is half transparent."""
    picture(tmp_path / "x" / "a.png", size=(60, 48))
    layer = np.zeros((48, 60, 4), np.uint8)
    layer[:, :20] = 255
    layer[:, 20:40] = (255, 255, 255, 128)
    Image.fromarray(layer, "RGBA").save(tmp_path / "x" / "a.mask.png")

    (item,) = read_dataset(settings(tmp_path / "x", masks=True, instance_prompt="x")).items

    assert item.mask
    assert np.asarray(item.mask.open())[0, ::20].tolist() == [255, 128, 0]


def test_half_a_mask_of_an_odd_side_is_as_long_as_it_can_be(folder: Path, settings: Settings) -> None:
    picture(folder / "a.png", size=(75, 51))
    for size, fits in (((37, 25), True), ((38, 26), True), ((37, 24), False)):
        picture(folder / "a.mask.png", mode="L", size=size)
        if fits:
            assert masks(read_dataset(settings(folder, masks=True, instance_prompt="x")))["a.png"]
        else:
            with pytest.raises(DatasetError, match="the mask is 37x24 px"):
                read_dataset(settings(folder, masks=True, instance_prompt="x"))


def test_a_mask_is_cut_exactly_like_its_image(tmp_path: Path, settings: Settings) -> None:
    """Without resizing, pixel for pixel, mirrored if the crop is; a mask of half the size works too."""
    picture(tmp_path / "x" / "a.png", size=(60, 48))
    pixels = np.asarray(Image.open(picture(tmp_path / "x" / "a.mask.png", mode="L", size=(60, 48))))
    (item,) = read_dataset(settings(tmp_path / "x", masks=True, instance_prompt="x")).items
    for shape in ((48, 48), (48, 32)):
        for crop in crops_for(item, shape=shape, mode="random", variants=6, flip=True):
            if (crop.resized_h, crop.resized_w) == (48, 60):
                part = pixels[crop.top : crop.top + shape[0], crop.left : crop.left + shape[1]]
                assert np.array_equal(render_mask(item, crop), part[:, ::-1] if crop.flip else part)

    half = np.zeros((24, 30), np.uint8)
    half[:, 15:] = 255
    Image.fromarray(half).save(tmp_path / "x" / "a.mask.png")
    (item,) = read_dataset(settings(tmp_path / "x", masks=True, instance_prompt="x")).items
    mask = render_mask(item, Crop(48, 60, 0, 4, 48, 48, flip=True))
    assert mask.shape == (48, 48)
    assert (mask[:, :20] == 255).all()
    assert (mask[:, 24:] == 0).all()
