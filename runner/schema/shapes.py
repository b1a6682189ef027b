"""The shapes that images are trained in: those of the aspect-ratio buckets follow from three settings alone."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

Shape = tuple[int, int]
"""(height, width), pixels."""
LEAST_STEP_PX, MOST_ASPECT = 8, 16
"""Bounds of `dataset.bucket_step` and `dataset.bucket_max_aspect`."""


@lru_cache(maxsize=64)
def bucket_shapes(resolution: int, step: int, max_aspect: float) -> tuple[Shape, ...]:
    """The buckets, from the tallest to the widest.

    For every side that is a multiple of `step`, the other one is the largest multiple that keeps the area at or below
    `resolution` squared: no bucket needs more memory than the square. The ratio of the sides is at most `max_aspect`.
    The rule is that of SDXL's multi-aspect training (arXiv 2307.01952, section 2.3): area kept, sides multiples of 64.

    Args:
        resolution: side of the square of the same area, pixels.
        step: every side is a multiple of this, pixels.
        max_aspect: longest side over shortest, at least 1.
    """
    area = resolution * resolution
    shapes: set[Shape] = set()
    for side in range(step, area // step + 1, step):
        other = area // side // step * step
        if other and max(side, other) <= max_aspect * min(side, other):
            shapes |= {(side, other), (other, side)}
    return tuple(sorted(shapes, key=lambda shape: (Fraction(shape[1], shape[0]), shape)))
