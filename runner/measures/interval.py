"""A figure and its uncertainty: the bootstrap over images, the same for the same images at every call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SEED = 0
LEAST_TO_RESAMPLE = 2
"""A single image resampled is always itself: an interval of zero width would claim that the figure is certain."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured value, the ends of its interval (None if it has none), and the number of images."""

    value: float
    low: float | None
    high: float | None
    n: int

    def as_data(self) -> dict[str, Any]:
        """The form stored in a manifest."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Resampling:
    """How intervals are computed: `count` times, as many images are drawn with replacement (Efron's bootstrap).

    Args:
        confidence: share of the resampled figures inside the interval; the rest is cut off evenly at both ends.
    """

    confidence: float = 0.95
    count: int = 1000

    def weights(self, *sizes: int, count: int | None = None) -> Iterator[tuple[Tensor, ...]]:
        """How often each image of each set is drawn, per resampling: vectors of these sizes, fp64, that sum to them."""
        random = np.random.default_rng(SEED)
        for _ in range(count or self.count):
            yield tuple(torch.from_numpy(random.multinomial(n, np.full(n, 1 / n)).astype(np.float64)) for n in sizes)

    def figure(
        self,
        value: float,
        sizes: Sequence[int],
        again: Callable[..., float],
        *,
        centred: bool = False,
        count: int | None = None,
        least: int = LEAST_TO_RESAMPLE,
    ) -> Figure:
        """The value with the percentiles of `again` over resampled images.

        Args:
            value: the figure for all images.
            sizes: sizes of the sets, which are resampled independently; the figure's `n` is the first.
            again: the same figure under weights, one vector per set; nan if it is undefined for them.
            centred: shift the interval so that the mean of the resampled figures lies on the value. For figures that
                resampling raises, since a copy of an image adds no information: the interval then shows the spread of
                the value, but not its bias.
            count: number of resamplings, if not the usual one.
            least: number of images in a set below which there is no interval.
        """
        if min(sizes) < least:
            return Figure(value, None, None, sizes[0])
        found = np.array([again(*weights) for weights in self.weights(*sizes, count=count)])
        found = found[np.isfinite(found)]
        if centred:
            found += value - found.mean()
        outside = (1 - self.confidence) / 2
        low, high = np.quantile(found, [outside, 1 - outside])
        return Figure(value, float(low), float(high), sizes[0])
