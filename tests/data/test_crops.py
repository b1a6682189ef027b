"""Crops are pure functions of content, cover the square, and tell SDXL the truth about themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runner.data import Crop, Item, crops_for, render
from runner.data.address import FileAddress
from runner.data.item import content_id


def stored(path: Path, picture: Image.Image) -> Item:
    picture.save(path)
    data = path.read_bytes()
    return Item(content_id(data), path.name, "x", *picture.size, address=FileAddress(path))


def sized(width_px: int, height_px: int, name: str = "a") -> Item:
    identity = content_id(f"{name}{width_px}x{height_px}".encode())
    return Item(identity, name, "x", width_px, height_px, address=FileAddress(Path(name)))


@pytest.mark.parametrize("size", [(512, 512), (640, 480), (480, 640), (33, 1000), (1365, 1024), (63, 64), (1, 1)])
@pytest.mark.parametrize("resolution", [64, 512, 1024])
def test_crop_lies_inside_and_covers(size: tuple[int, int], resolution: int) -> None:
    """One side of the resized image equals the square's, the other is at least as long; the aspect holds to a pixel."""
    item = sized(*size)
    for crop in crops_for(item, shape=(resolution, resolution), mode="random", variants=16, flip=True):
        assert min(crop.resized_h, crop.resized_w) == resolution
        assert 0 <= crop.top <= crop.resized_h - resolution
        assert 0 <= crop.left <= crop.resized_w - resolution
        scale = max(resolution / item.height_px, resolution / item.width_px)
        assert abs(crop.resized_h - item.height_px * scale) <= 0.5
        assert abs(crop.resized_w - item.width_px * scale) <= 0.5


def test_center() -> None:
    """The middle is taken, once, or twice when mirrored."""
    item = sized(640, 480)

    (crop,) = crops_for(item, shape=(480, 480), mode="center", variants=4, flip=False)
    assert crop == Crop(480, 640, 0, 80, 480, 480, False)
    both = crops_for(item, shape=(480, 480), mode="center", variants=4, flip=True)
    assert [c.flip for c in both] == [False, True]
    (tall,) = crops_for(sized(480, 643), shape=(480, 480), mode="center", variants=4, flip=False)
    assert tall == Crop(643, 480, 81, 0, 480, 480, False)


def test_what_names_a_crop_in_a_cache_is_pinned() -> None:
    """For the same reason as the figures below; a square has one side."""
    place = {"resized_h": 96, "resized_w": 80, "top": 3, "left": 5, "flip": True}
    assert Crop(96, 80, 3, 5, 64, 64, True).content() == {**place, "size_px": 64}
    assert Crop(96, 80, 3, 5, 64, 48, True).content() == {**place, "height_px": 64, "width_px": 48}


def test_random_crops_are_pinned() -> None:
    """These figures name files in caches of other machines: they must never change."""
    crops = crops_for(sized(640, 480), shape=(256, 256), mode="random", variants=5, flip=False)

    assert [(c.top, c.left) for c in crops] == [(0, 6), (0, 11), (0, 68), (0, 12), (0, 26)]


def test_random_crops_depend_on_content_only() -> None:
    """Asking for more keeps the first ones, flipping moves nothing, and other images are cropped elsewhere."""
    item = sized(1000, 400)
    options: dict[str, Any] = {"shape": (256, 256), "mode": "random"}
    few = crops_for(item, variants=4, flip=False, **options)
    many = crops_for(item, variants=9, flip=False, **options)
    flipped = crops_for(item, variants=4, flip=True, **options)

    assert many[:4] == few
    assert [c.left for c in flipped] == [c.left for c in few]
    assert sum(c.flip for c in flipped) == 2
    assert crops_for(sized(1000, 400, "b"), variants=4, flip=False, **options) != few


def test_random_crops_are_spread_evenly() -> None:
    """Over many images each position is about as likely as any other, ends included."""
    lefts = [
        crop.left
        for number in range(300)
        for crop in crops_for(sized(72, 64, str(number)), shape=(64, 64), mode="random", variants=10, flip=False)
    ]
    counts = np.bincount(lefts, minlength=9)
    assert len(counts) == 9
    assert counts.min() > 250
    assert counts.max() < 420


def test_of_images_with_a_single_random_crop_about_half_are_mirrored() -> None:
    found = [
        crop.flip
        for number in range(100)
        for crop in crops_for(sized(72, 64, str(number)), shape=(64, 64), mode="random", variants=1, flip=True)
    ]
    assert 30 < sum(found) < 70


def test_render_matches_the_picture(tmp_path: Path, photos: dict[str, Image.Image]) -> None:
    """Without resizing, a crop is exactly that part of the picture; mirrored it is exactly its mirror
    image.
    """
    photo = photos["cat"]
    item = stored(tmp_path / "cat.png", photo)
    size = min(photo.size)
    pixels = np.asarray(photo)
    for crop in crops_for(item, shape=(size, size), mode="random", variants=4, flip=True):
        expected = pixels[crop.top : crop.top + size, crop.left : crop.left + size]
        expected = expected[:, ::-1] if crop.flip else expected
        got = render(item, crop)

        assert got.dtype == np.uint8
        assert got.shape == (size, size, 3)
        assert (got == expected).all()
        assert (render(item, crop, image=item.open()) == got).all()


def test_time_ids_of_the_mirror_image(tmp_path: Path, photos: dict[str, Image.Image]) -> None:
    """Mirroring the crop, and cropping the mirrored picture at the reported place, give the same pixels."""
    photo = photos["coffee"]
    item = stored(tmp_path / "a.png", photo)
    mirrored = stored(tmp_path / "b.png", photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    size = min(photo.size) - 40
    crop = Crop(photo.height, photo.width, 11, 7, size, size, flip=True)

    original_h, original_w, top, left, target_h, target_w = crop.time_ids(item)

    assert (original_h, original_w, target_h, target_w) == (photo.height, photo.width, size, size)
    reported = Crop(photo.height, photo.width, int(top), int(left), size, size)
    assert (render(mirrored, reported) == render(item, crop)).all()
    assert reported.time_ids(item)[:4] == (photo.height, photo.width, 11.0, left)


def test_enlarging_and_strips(tmp_path: Path) -> None:
    """One pixel and a long strip still fill the square."""
    for size in ((1, 1), (3000, 20), (20, 3000)):
        item = stored(tmp_path / f"{size[0]}.png", Image.new("RGB", size, (10, 20, 30)))
        (crop,) = crops_for(item, shape=(64, 64), mode="center", variants=1, flip=False)

        assert (render(item, crop) == np.array([10, 20, 30], np.uint8)).all()
