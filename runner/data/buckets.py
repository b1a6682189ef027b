"""Aspect-ratio buckets: which of the shapes of `runner.schema.shapes` an image goes to, and how full each bucket gets.

Pure functions of sizes in pixels: no seed, no state, no image. A shape is (height, width), in that order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from runner.schema.shapes import Shape, bucket_shapes

if TYPE_CHECKING:
    from runner.schema import DatasetSettings


@lru_cache(maxsize=1 << 16)
def nearest_bucket(height_px: int, width_px: int, shapes: tuple[Shape, ...]) -> Shape:
    """The bucket with the closest aspect ratio: the smallest |log(aspect of the image / aspect of the bucket)|.

    A logarithm, so that only the shape counts, not the size: an image and its enlargement go to the same bucket, a
    portrait and the same picture on its side to mirrored ones. Of two equally close buckets, it takes the one with more
    pixels, then the wider one.
    """
    aspect = math.log(width_px / height_px)
    apart = [abs(aspect - math.log(width / height)) for height, width in shapes]
    nearly = min(apart) + 1e-9  # a rounding error must not decide between two
    closest = [shape for shape, far in zip(shapes, apart, strict=True) if far <= nearly]
    return max(closest, key=lambda shape: (shape[0] * shape[1], shape[1]))


def training_shape(height_px: int, width_px: int, data: DatasetSettings, resolution: int) -> Shape:
    """The shape to cut from an image of this size: the square of `resolution`, or with `dataset.buckets` its bucket."""
    if not data.buckets:
        return resolution, resolution
    shapes = bucket_shapes(resolution, data.bucket_step, data.bucket_max_aspect)
    return nearest_bucket(height_px, width_px, shapes)


def bucket_table(shapes: Iterable[Shape], *, batch_size: int, steps: int) -> list[dict[str, Any]]:
    """A row for every bucket that has images, from the tallest to the widest.

    Args:
        shapes: the bucket of each training image, as often as it comes in an epoch.
        batch_size: images per step.
        steps: optimizer steps of the training.

    Returns:
        Rows of `height_px`, `width_px`, `images`, `steps` (the bucket's share of the training's steps, rounded down)
        and `repeats` (how often one batch holds the same image, if the bucket has fewer images than a batch;
        otherwise 1).
    """
    images = Counter(shapes)
    total = images.total()
    return [
        {
            "height_px": height,
            "width_px": width,
            "images": count,
            "steps": steps * count // total,
            "repeats": -(-batch_size // count),
        }
        for (height, width), count in sorted(images.items(), key=lambda entry: Fraction(entry[0][1], entry[0][0]))
    ]


def bucket_lines(table: Sequence[dict[str, Any]]) -> list[str]:
    """The table in words, with remarks about small buckets."""
    lines = [f"buckets: {len(table)} in use; height x width, images"] if table else []
    for row in table:
        line = f"  {row['height_px']:>5} x {row['width_px']:<5} {row['images']:>6}"
        if row["repeats"] > 1:
            line += f"  fewer than a batch: each is up to {row['repeats']} times in one, every {row['repeats']} epochs"
        if not row["steps"]:
            line += "; may get no step in a training this short: take more steps, or a smaller batch_size"
        lines.append(line)
    return lines
