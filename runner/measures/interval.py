"""A figure and how sure it is: the bootstrap over images, the same for the same images at every call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SEED = 0
LEAST_TO_RESAMPLE = 2
"""One image resampled is always itself: an interval of no width would say that the figure is certain."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured value, the ends of its interval (None where there is none), and of how many images it is."""

    value: float
    low: float | None
    high: float | None
    n: int

    def as_data(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Resampling:
    """How intervals are made: so many times as many images are drawn with replacement (Efron's bootstrap).

    Args:
        confidence: share of the resampled figures that the interval holds; their outer parts are cut off evenly.
    """

    confidence: float = 0.95
    count: int = 1000

    def weights(self, *sizes: int, count: int | None = None) -> Iterator[tuple[Tensor, ...]]:
        """How often each image of each set is drawn, for each time: vectors of these sizes, fp64, that sum to them."""
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
        """The value with the percentiles of what `again` gives for resampled images.

        Args:
            value: of all images.
            sizes: of the sets that are resampled independently of each other; the first is counted in the figure.
            again: the same figure under weights, one vector for each set; nan where these leave it without meaning.
            centred: move the interval so that the mean of the resampled figures lies on the value. For figures that
                resampling raises, as a copy of an image tells nothing new: the interval then says how far the value
                spreads, and nothing of its bias.
            count: another number of times than usual.
            least: images of a set, below which there is no interval.
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
