"""Which part of an image is trained on, and its pixels. Pure functions of the image's content: no seed, no state.

scale = max(target_h / height, target_w / width)                     the resized image covers the target, aspect kept
crop  = resized[top : top + target_h, left : left + target_w]        then mirrored if `flip`

The target is a square, or the bucket that the image belongs to (`runner.data.buckets`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from runner.schema.shapes import Shape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from runner.data.item import Item


@dataclass(frozen=True)
class Crop:
    """`height_px` x `width_px`, cut at (`top`, `left`) from the image resized to (`resized_h`, `resized_w`);
    all in pixels.
    """

    resized_h: int
    resized_w: int
    top: int
    left: int
    height_px: int
    width_px: int
    flip: bool = False

    def time_ids(self, item: Item) -> tuple[float, float, float, float, float, float]:
        """SDXL's micro-conditioning: (original h, w, crop top, left, target h, w).

        Original in pixels of the file, crop in pixels of the resized image, target in pixels of the crop itself. A
        mirrored crop reports its left edge in the mirrored image. Keep them in fp32: bf16 does not represent integers
        above 256 exactly. Source: SDXL paper 2307.01952, sections 2.2 and 2.3.
        """
        left = self.resized_w - self.width_px - self.left if self.flip else self.left
        sizes = (item.height_px, item.width_px, self.top, left, self.height_px, self.width_px)
        height, width, top, left_edge, target_h, target_w = map(float, sizes)
        return height, width, top, left_edge, target_h, target_w

    def content(self) -> dict[str, Any]:
        """What identifies its encoding in a cache; a square is stored with one side, as before other shapes existed."""
        named = dataclasses.asdict(self)
        if self.height_px == self.width_px:
            named["size_px"] = named.pop("height_px")
            del named["width_px"]
        return named


def crops_for(
    item: Item, *, shape: Shape, mode: Literal["center", "random"], variants: int, flip: bool
) -> tuple[Crop, ...]:
    """The crops of `item` for a target of this shape, (height, width) in pixels.

    `center`: one crop, and its mirror image with `flip`. `random`: exactly `variants` crops, drawn only from (item.id,
    shape, variant number), so every job and every seed shares them; with `flip` every other one is mirrored. Asking for
    more variants keeps the first ones. An image without room to move gives the same crop several times.
    """
    height, width = shape
    resized_h, resized_w = resized_size(item.height_px, item.width_px, shape)
    room_h, room_w = resized_h - height, resized_w - width
    if mode == "center":
        sides = (False, True) if flip else (False,)
        return tuple(Crop(resized_h, resized_w, room_h // 2, room_w // 2, height, width, side) for side in sides)
    assert mode == "random", f"unknown crop mode {mode!r}"
    # Which half is mirrored differs between images, so that a single variant is not always the unmirrored one.
    first_side = int(item.id[-1], 16) % 2
    target = f"{height}" if height == width else f"{height}x{width}"
    crops = []
    for variant in range(variants):
        top, left = _drawn(f"{item.id}/{target}/{variant}", room_h, room_w)
        mirrored = flip and (variant + first_side) % 2 == 1
        crops.append(Crop(resized_h, resized_w, top, left, height, width, mirrored))
    return tuple(crops)


def resized_size(height_px: int, width_px: int, shape: Shape) -> tuple[int, int]:
    """(height, width) of the smallest image of this aspect that covers a target of `shape`, in pixels."""
    height, width = shape
    if height_px * width <= width_px * height:
        return height, max(width, round(width_px * height / height_px))
    return max(height, round(height_px * width / width_px)), width


def render(item: Item, crop: Crop, *, image: Image.Image | None = None) -> NDArray[np.uint8]:
    """Pixels of `crop`, uint8 RGB `[height, width, 3]`, Lanczos-resized. Raises DatasetError if the file has changed.

    `image` is `item.open()`, passed by a caller that renders several crops of one item.
    """
    import numpy as np
    from PIL import Image

    opened = item.open() if image is None else image
    return np.array(_cut(opened, crop, Image.Resampling.LANCZOS), dtype=np.uint8)


def render_mask(item: Item, crop: Crop) -> NDArray[np.uint8]:
    """The mask of `item` where `crop` cuts the image, uint8 `[height, width]`, 255 where it counts.

    Raises DatasetError if the file has changed; the item must have a mask.
    """
    import numpy as np
    from PIL import Image

    assert item.mask is not None, item.file
    # Unlike Lanczos, this never leaves the range between a pixel and its neighbours.
    return np.array(_cut(item.mask.open(), crop, Image.Resampling.BILINEAR), dtype=np.uint8)


def _cut(image: Image.Image, crop: Crop, resampling: Image.Resampling) -> Image.Image:
    from PIL import ImageOps

    resized = image.resize((crop.resized_w, crop.resized_h), resampling)
    part = resized.crop((crop.left, crop.top, crop.left + crop.width_px, crop.top + crop.height_px))
    return ImageOps.mirror(part) if crop.flip else part


def _drawn(name: str, *rooms: int) -> list[int]:
    """One integer in 0..room for each room, drawn from `name` alone."""
    import numpy as np

    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    # Raw words: numpy keeps them stable between versions, but not the distributions of Generator.
    words = np.random.Philox(key=key).random_raw(len(rooms))
    return [(int(word) * (room + 1)) >> 64 for word, room in zip(words, rooms, strict=True)]
