"""Which image of its own class accompanies each sample, where subjects belong to several classes: a pure function of
(seed, sample).

The subjects' samples of one class are numbered through all epochs, in the order of the epochs' permutations. Number k
goes with image `permutation(seed, turn)[k mod n]` of that class's n images, in turn k div n, so the images of a class
all come equally often. With one class, and images of one shape, k is the index of the sample.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from runner.schema.shapes import Shape
from runner.train.inputs.schedule import Schedule


class Pairing:
    """The images of several classes in the order of the subjects' samples."""

    def __init__(self, own: Schedule, classes: Sequence[int], sizes: Sequence[int], *, purpose: str) -> None:
        """Take the subjects' samples and their classes.

        Args:
            own: the batches of the subjects' images.
            classes: the class of each of these images.
            sizes: how many images each class has; their numbers run through all classes, one class after another.
            purpose: names the permutations of the turns.
        """
        self.own = own
        self._class_of = np.array(classes, dtype=np.int64)
        self._counts = [int(count) for count in np.bincount(self._class_of, minlength=len(sizes))]
        self._starts = [0, *itertools.accumulate(sizes)]
        self._turns = [Schedule(own.seed, [(0, 0)] * size, own.batch_size, purpose=purpose) for size in sizes]

    def samples(self, step: int, positions: range) -> tuple[int, ...]:
        """The class samples that accompany those at `positions` of a step."""
        return tuple(step * self.own.batch_size + position for position in positions)

    def shape(self, step: int) -> Shape:
        """The shape of the subjects' images."""
        return self.own.shape(step)

    def image(self, sample: int) -> int:
        """The image, among those of all classes, that a sample shows."""
        step, position = divmod(sample, self.own.batch_size)
        (beside,) = self.own.samples(step, range(position, position + 1))
        epoch, place = divmod(beside, self.own.num_images)
        classes = self._class_of[self.own.order(epoch)]
        chosen = int(classes[place])
        before = int(np.count_nonzero(classes[:place] == chosen))
        return self._starts[chosen] + self._turns[chosen].image(epoch * self._counts[chosen] + before)
