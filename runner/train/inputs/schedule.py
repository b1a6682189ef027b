"""Which samples make up the batch of each step, where images have several shapes: a pure function of (seed, step).

All images of an epoch come in the order of its permutation, one epoch after another: sample g is image
`permutation(seed, epoch)[g mod n]` of epoch `g div n`, whatever its shape. Each goes to its bucket, and whenever a
bucket holds a whole batch, that batch is the next step. Images left in a bucket when an epoch ends wait there for
those of the next one. So no sample is lost or added: after any number of epochs every image has been in a batch equally
often, apart from the images waiting in its bucket, which are fewer than a batch. A bucket with fewer images than a
batch gathers them over several epochs, each image equally often. With one shape, the batch of step s is samples
s*b .. s*b + b - 1.

Finding a step takes no walk through the earlier ones: bucket i has filled floor(e * n_i / b) batches before epoch e, so
a search over epochs gives the step's epoch, and that epoch's permutation alone gives the step's place in it.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runner.schema.shapes import Shape
from runner.train.randomness import permutation

EPOCHS_KEPT = 4

Indices = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class _Epoch:
    order: Indices
    """The image at each place."""
    places: tuple[Indices, ...]
    """For each bucket, the places of its images, in order."""


class Schedule:
    """The batches of one job."""

    def __init__(self, seed: int, shapes: Sequence[Shape], batch_size: int, *, purpose: str = "order") -> None:
        """`shapes`: (height, width) in pixels of each training image; `purpose` names the permutations."""
        self.purpose = purpose
        self.seed, self.batch_size, self.num_images = seed, batch_size, len(shapes)
        self.shapes = sorted(set(shapes))
        index = {shape: number for number, shape in enumerate(self.shapes)}
        self._bucket_of = np.array([index[shape] for shape in shapes], dtype=np.int64)
        self._counts = [int(count) for count in np.bincount(self._bucket_of, minlength=len(self.shapes))]
        self._epochs: dict[int, _Epoch] = {}
        self._filled_in: tuple[int, list[tuple[int, int, int]]] = (-1, [])
        self._found: tuple[int, int, tuple[int, ...]] = (-1, 0, ())

    def samples(self, step: int, positions: range | None = None) -> tuple[int, ...]:
        """Global sample indices of a step's batch, all of one shape; the whole batch, or those at `positions`."""
        if positions is None:
            positions = range(self.batch_size)
        if len(self.shapes) == 1:
            return tuple(step * self.batch_size + position for position in positions)
        samples = self._batch(step)[1]
        return tuple(samples[position] for position in positions)

    def shape(self, step: int) -> Shape:
        """The shape of all images of a step, (height, width) in pixels."""
        return self.shapes[0 if len(self.shapes) == 1 else self._batch(step)[0]]

    def image(self, sample: int) -> int:
        """The image that a sample shows."""
        epoch, place = divmod(sample, self.num_images)
        return int(self._epoch(epoch).order[place])

    def order(self, epoch: int) -> Indices:
        """The image at each place of an epoch."""
        return self._epoch(epoch).order

    def _batch(self, step: int) -> tuple[int, tuple[int, ...]]:
        """(bucket, samples) of a step."""
        if self._found[0] != step:
            bucket, number = self._filled(step)
            first = number * self.batch_size
            ids = tuple(self._sample(bucket, first + position) for position in range(self.batch_size))
            self._found = step, bucket, ids
        return self._found[1:]

    def _filled(self, step: int) -> tuple[int, int]:
        """The bucket whose batch is this step, and how many batches that bucket has filled before."""
        enough = (step + len(self.shapes)) * self.batch_size // self.num_images + 1
        epoch = bisect_right(range(enough + 1), step, key=self._steps_before) - 1
        if self._filled_in[0] != epoch:
            self._filled_in = epoch, self._all_filled(epoch)
        _, bucket, number = self._filled_in[1][step - self._steps_before(epoch)]
        return bucket, number

    def _all_filled(self, epoch: int) -> list[tuple[int, int, int]]:
        """(place that fills it, bucket, its number in that bucket) of each batch that an epoch fills, in order."""
        filled: list[tuple[int, int, int]] = []
        for bucket, (count, places) in enumerate(zip(self._counts, self._epoch(epoch).places, strict=True)):
            waiting = epoch * count
            # The bucket's first image that completes a batch, and then every batch_size-th.
            first = self.batch_size - 1 - waiting % self.batch_size
            filled += [
                (int(places[rank]), bucket, (waiting + rank) // self.batch_size)
                for rank in range(first, count, self.batch_size)
            ]
        return sorted(filled)

    def _steps_before(self, epoch: int) -> int:
        return sum(epoch * count // self.batch_size for count in self._counts)

    def _sample(self, bucket: int, number: int) -> int:
        """The global index of a bucket's sample; `number` counts that bucket's samples through all epochs."""
        epoch, rank = divmod(number, self._counts[bucket])
        return epoch * self.num_images + int(self._epoch(epoch).places[bucket][rank])

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            while len(self._epochs) >= EPOCHS_KEPT:
                del self._epochs[next(iter(self._epochs))]
            order = permutation(self.seed, epoch, self.num_images, purpose=self.purpose)
            buckets = self._bucket_of[order]
            places = tuple(np.flatnonzero(buckets == bucket) for bucket in range(len(self.shapes)))
            self._epochs[epoch] = _Epoch(order, places)
        return self._epochs[epoch]
