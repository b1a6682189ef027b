"""An image goes to the bucket of its own shape, whatever its size; SDXL is told the truth about a bucket's crop."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from runner.data import Crop, Item, crops_for, read_dataset, render
from runner.data.address import FileAddress
from runner.data.buckets import bucket_lines, bucket_shapes, bucket_table, nearest_bucket
from runner.data.item import content_id
from runner.schema import DatasetSettings, Experiment

SDXL = bucket_shapes(1024, 64, 4.0)


def stored(path: Path, picture: Image.Image) -> Item:
    picture.save(path)
    data = path.read_bytes()
    return Item(content_id(data), path.name, "x", *picture.size, address=FileAddress(path))


def log_distance(height: int, width: int, shape: tuple[int, int]) -> float:
    return abs(math.log(height / width) - math.log(shape[0] / shape[1]))


@pytest.mark.parametrize(
    ("family", "resolution", "step", "aspect", "fix"),
    [
        ("sdxl", 128, 64, 2.0, "lower dataset.bucket_step or raise dataset.bucket_max_aspect"),
        ("sdxl", 48, 64, 2.0, "lower dataset.bucket_step"),
        ("sdxl", 32, 8, 1.5, "raise dataset.bucket_max_aspect"),
        ("flux", 32, 16, 2.0, "raise dataset.bucket_max_aspect"),
        ("sdxl", 8, 8, 16.0, "raise resolution"),
    ],
)
def test_where_there_are_not_two_buckets_a_fix_is_said_that_helps(
    family: str, resolution: int, step: int, aspect: float, fix: str
) -> None:
    data = {"buckets": True, "bucket_step": step, "bucket_max_aspect": aspect}
    with pytest.raises(ValidationError, match=rf"not two shapes to choose from; {fix}( \[|$|\n)"):
        Experiment.model_validate({"model": {"family": family}, "resolution": resolution, "dataset": data})


def test_the_buckets_of_sdxl() -> None:
    """At 1024 px with steps of 64, these are among the shapes that SDXL itself was trained on."""
    wide = [(1024, 1024), (960, 1088), (896, 1152), (832, 1216), (768, 1280), (768, 1344), (704, 1408), (704, 1472),
            (640, 1536), (640, 1600), (576, 1664), (576, 1728), (576, 1792), (512, 1856), (512, 1920), (512, 1984),
            (512, 2048)]  # fmt: skip

    assert set(SDXL) == {*wide, *((width, height) for height, width in wide)}
    assert list(SDXL) == sorted(SDXL, key=lambda shape: shape[1] / shape[0])


@pytest.mark.parametrize(("resolution", "step", "max_aspect"), [(512, 64, 2.0), (64, 8, 3.0), (1024, 32, 4.0)])
def test_no_bucket_is_larger_than_the_square(resolution: int, step: int, max_aspect: float) -> None:
    shapes = bucket_shapes(resolution, step, max_aspect)

    assert (resolution, resolution) in shapes
    for height, width in shapes:
        assert height % step == width % step == 0
        assert max(height, width) <= max_aspect * min(height, width)
        assert resolution**2 - step * max(height, width) < height * width <= resolution**2


def test_only_the_shape_of_an_image_counts() -> None:
    """Enlarged, an image goes to the same bucket; turned on its side, to the transposed one; no bucket is closer."""
    draw = random.Random(0)
    for _ in range(2000):
        height, width = draw.randint(20, 3000), draw.randint(20, 3000)
        chosen = nearest_bucket(height, width, SDXL)

        assert nearest_bucket(2 * height, 2 * width, SDXL) == chosen
        assert nearest_bucket(7 * height, 7 * width, SDXL) == chosen
        assert nearest_bucket(width, height, SDXL) == chosen[::-1]
        closest = min(log_distance(height, width, shape) for shape in SDXL)
        assert log_distance(height, width, chosen) == pytest.approx(closest, abs=1e-9)


def test_a_distance_in_pixels_would_choose_a_worse_shape() -> None:
    """|h * w' - w * h'|, which other trainers use, depends on the size of a bucket's sides as well as their ratio."""
    height, width, shapes = 680, 1300, bucket_shapes(512, 64, 4.0)
    by_pixels = min(shapes, key=lambda shape: abs(height * shape[1] - width * shape[0]))
    chosen = nearest_bucket(height, width, shapes)

    assert (by_pixels, chosen) == ((320, 704), (384, 640))
    assert log_distance(height, width, chosen) < log_distance(height, width, by_pixels)


def test_ties_are_decided() -> None:
    """Of two equally close buckets, the one with more pixels wins, then the wider one; not the one listed first."""
    shapes = ((64, 32), (32, 64), (48, 96))

    assert nearest_bucket(10, 20, shapes) == nearest_bucket(10, 20, shapes[::-1]) == (48, 96)
    assert nearest_bucket(10, 10, shapes[:2]) == nearest_bucket(10, 10, shapes[1::-1]) == (32, 64)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (33, 1000), (1365, 1024), (1, 1), (2048, 512)])
def test_a_crop_covers_its_bucket(size: tuple[int, int]) -> None:
    width, height = size
    item = Item(content_id(repr(size).encode()), "a", "x", width, height, address=FileAddress(Path("a")))
    for shape in ((768, 1344), (1344, 768), (1024, 1024)):
        for crop in crops_for(item, shape=shape, mode="random", variants=8, flip=True):
            assert (crop.height_px, crop.width_px) == shape
            assert 0 <= crop.top <= crop.resized_h - shape[0]
            assert 0 <= crop.left <= crop.resized_w - shape[1]
            assert crop.resized_h == shape[0] or crop.resized_w == shape[1]
            scale = max(shape[0] / height, shape[1] / width)
            assert abs(crop.resized_h - height * scale) <= 0.5
            assert abs(crop.resized_w - width * scale) <= 0.5


def test_sdxl_is_told_the_shape_of_the_bucket(tmp_path: Path, photos: dict[str, Image.Image]) -> None:
    """Height first; a mirrored crop reports its place in the mirrored picture, which gives the same pixels."""
    photo = photos["coffee"]
    item = stored(tmp_path / "a.png", photo)
    mirrored = stored(tmp_path / "b.png", photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    crop = Crop(photo.height, photo.width, 11, 7, photo.height - 30, photo.width - 50, flip=True)

    original_h, original_w, top, left, target_h, target_w = crop.time_ids(item)

    assert (original_h, original_w, top, left) == (photo.height, photo.width, 11, 43)
    assert (target_h, target_w) == (photo.height - 30, photo.width - 50)
    pixels = render(item, crop)
    assert pixels.shape == (photo.height - 30, photo.width - 50, 3)
    assert (pixels == np.asarray(photo)[11:, 7:][: crop.height_px, : crop.width_px][:, ::-1]).all()
    reported = Crop(photo.height, photo.width, int(top), int(left), crop.height_px, crop.width_px)
    assert (render(mirrored, reported) == pixels).all()


def test_squares_keep_the_names_of_their_encodings() -> None:
    """Existing cache entries are found again; other shapes have names of their own."""
    assert Crop(480, 640, 0, 80, 480, 480).content() == {
        "resized_h": 480, "resized_w": 640, "top": 0, "left": 80, "size_px": 480, "flip": False,
    }  # fmt: skip
    assert "size_px" not in Crop(480, 640, 0, 0, 480, 640).content()


def test_a_square_of_one_step_is_a_bucket() -> None:
    assert bucket_shapes(64, 64, 2.0) == ((64, 64),)


def test_the_table_accounts_for_every_image() -> None:
    table = bucket_table([(64, 64)] * 5 + [(48, 80)] * 3 + [(80, 48)], batch_size=4, steps=9)

    assert [(row["height_px"], row["width_px"], row["images"]) for row in table] == [
        (80, 48, 1), (64, 64, 5), (48, 80, 3),
    ]  # fmt: skip
    # Nine steps of four are four epochs of nine images.
    assert [(row["steps"], row["repeats"]) for row in table] == [(1, 4), (5, 1), (3, 2)]
    lines = bucket_lines(table)
    assert "up to 4 times in one, every 4 epochs" in lines[1]
    assert lines[2] == "     64 x 64         5", "a bucket with enough images has nothing particular"
    assert "up to 2 times in one, every 2 epochs" in lines[3]
    assert "no step" not in "".join(lines)
    few = bucket_table([(64, 64)] * 9 + [(48, 80)], batch_size=1, steps=9)
    assert [row["steps"] for row in few] == [8, 0], "the share of one is less than a step"
    assert "no step in a training this short" in bucket_lines(bucket_table([(64, 64)] * 9, batch_size=4, steps=0))[1]
    assert bucket_lines([]) == []


def test_the_report_says_what_an_image_is_resized_to(tmp_path: Path) -> None:
    Image.new("RGB", (40, 64)).save(tmp_path / "a.png")
    settings = DatasetSettings(path=str(tmp_path), instance_prompt="x", buckets=True, bucket_step=8)

    (row,) = read_dataset(settings, resolution=64).report.as_dict()["rows"]

    assert row["notes"] == ["enlarged from 40x64 to 50x80"]
