"""Which square of an image is trained on, and its pixels. Pure functions of the image's content: no seed,
no state.

scale = max(resolution / height, resolution / width)     the resized image covers the square, aspect kept
crop  = resized[top : top + size, left : left + size]    then mirrored when `flip`
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from runner.data.item import Item


@dataclass(frozen=True)
class Crop:
    """A square of `size_px`, cut at (`top`, `left`) out of the image resized to (`resized_h`, `resized_w`);
    all pixels.
    """

    resized_h: int
    resized_w: int
    top: int
    left: int
    size_px: int
    flip: bool = False

    def time_ids(self, item: Item) -> tuple[float, float, float, float, float, float]:
        """SDXL's micro-conditioning: (original h, w, crop top, left, target h, w).

        Original in pixels of the file, crop in pixels of the resized image. A mirrored crop reports the
        left edge it has in the mirrored image. To be kept in fp32: bf16 does not hold integers above 256
        exactly. Source: SDXL paper 2307.01952, section 2.2.
        """
        left = self.resized_w - self.size_px - self.left if self.flip else self.left
        size = float(self.size_px)
        return (float(item.height_px), float(item.width_px), float(self.top), float(left), size, size)


def crops_for(
    item: Item, *, resolution: int, mode: Literal["center", "random"], variants: int, flip: bool
) -> tuple[Crop, ...]:
    """The crops of `item` for a square of `resolution` pixels.

    `center`: one crop, and its mirror image with `flip`. `random`: exactly `variants` crops, drawn from
    (item.id, resolution, variant number) only, so every job and every seed shares them; with `flip` every
    other one is mirrored. Asking for more variants keeps the first ones. An image without room to move
    gives the same crop several times.
    """
    resized_h, resized_w = resized_size(item.height_px, item.width_px, resolution)
    room_h, room_w = resized_h - resolution, resized_w - resolution
    if mode == "center":
        sides = (False, True) if flip else (False,)
        return tuple(Crop(resized_h, resized_w, room_h // 2, room_w // 2, resolution, side) for side in sides)
    assert mode == "random", f"unknown crop mode {mode!r}"
    # Which half is mirrored differs between images, so that a single variant is not always the upright one.
    first_side = int(item.id[-1], 16) % 2
    crops = []
    for variant in range(variants):
        top, left = _drawn(f"{item.id}/{resolution}/{variant}", room_h, room_w)
        mirrored = flip and (variant + first_side) % 2 == 1
        crops.append(Crop(resized_h, resized_w, top, left, resolution, mirrored))
    return tuple(crops)


def resized_size(height_px: int, width_px: int, resolution: int) -> tuple[int, int]:
    """(height, width) of the smallest image of this aspect that covers a square of `resolution`, in
    pixels.
    """
    if height_px <= width_px:
        return resolution, max(resolution, round(width_px * resolution / height_px))
    return max(resolution, round(height_px * resolution / width_px)), resolution


def render(item: Item, crop: Crop, *, image: Image.Image | None = None) -> NDArray[np.uint8]:
    """Pixels of `crop`, uint8 RGB `[size, size, 3]`, Lanczos-resized. Raises DatasetError when the file has
    changed.

    `image` is `item.open()`, given by a caller who renders several crops of one item.
    """
    import numpy as np
    from PIL import Image, ImageOps

    opened = item.open() if image is None else image
    resized = opened.resize((crop.resized_w, crop.resized_h), Image.Resampling.LANCZOS)
    square = resized.crop((crop.left, crop.top, crop.left + crop.size_px, crop.top + crop.size_px))
    if crop.flip:
        square = ImageOps.mirror(square)
    return np.array(square, dtype=np.uint8)


def _drawn(name: str, *rooms: int) -> list[int]:
    """One integer in 0..room for each room, drawn from `name` alone."""
    import numpy as np

    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    # Raw words, because numpy keeps them the same between versions, and the distributions of Generator it
    # does not.
    words = np.random.Philox(key=key).random_raw(len(rooms))
    return [(int(word) * (room + 1)) >> 64 for word, room in zip(words, rooms, strict=True)]
