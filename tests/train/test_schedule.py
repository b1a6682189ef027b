"""The order of images of several shapes: none is lost or repeated, and any step is found without the others."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from runner.data.buckets import Shape
from runner.train.inputs.schedule import Schedule
from runner.train.randomness import permutation

SHAPES: list[Shape] = [(64, 64), (48, 80), (80, 48), (56, 72)]


def walked(seed: int, shapes: list[Shape], batch_size: int, epochs: int) -> list[tuple[int, ...]]:
    """The batches, found by going through all images one after the other."""
    waiting: dict[Shape, list[int]] = {shape: [] for shape in shapes}
    batches = []
    for epoch in range(epochs):
        for place, image in enumerate(permutation(seed, epoch, len(shapes))):
            bucket = waiting[shapes[image]]
            bucket.append(epoch * len(shapes) + place)
            if len(bucket) == batch_size:
                batches.append(tuple(bucket))
                bucket.clear()
    return batches


@pytest.mark.parametrize("case", range(40))
def test_no_image_is_lost_and_none_comes_too_often(case: int) -> None:
    draw = random.Random(case)
    shapes = draw.choices(SHAPES[: draw.randint(1, 4)], weights=None, k=draw.randint(1, 40))
    batch_size, epochs = draw.randint(1, 9), 6
    schedule, expected = Schedule(case, shapes, batch_size), walked(case, shapes, batch_size, epochs)

    batches = [schedule.samples(step) for step in range(len(expected))]

    assert batches == expected
    samples = [sample for batch in batches for sample in batch]
    assert len(samples) == len(set(samples))
    for step, batch in enumerate(batches):
        assert {shapes[schedule.image(sample)] for sample in batch} == {schedule.shape(step)}
    left = set(range(epochs * len(shapes))) - set(samples)
    waiting = Counter(shapes[schedule.image(sample)] for sample in left)
    assert all(count < batch_size for count in waiting.values())
    used = Counter(schedule.image(sample) for sample in samples)
    for image, shape in enumerate(shapes):
        assert epochs - waiting[shape] <= used[image] <= epochs


def test_a_step_is_found_without_those_before() -> None:
    shapes = [SHAPES[index * index % 4] for index in range(23)]
    in_turn = Schedule(3, shapes, 5)
    batches = [in_turn.samples(step) for step in range(400)]
    for step in (399, 7, 180, 0, 398):
        assert Schedule(3, shapes, 5).samples(step) == batches[step]
    assert Schedule(4, shapes, 5).samples(180) != batches[180]


def test_images_of_one_shape_are_taken_as_they_come() -> None:
    schedule = Schedule(0, [(64, 64)] * 7, 3)

    assert [schedule.samples(step) for step in range(3)] == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    assert sorted(schedule.image(sample) for sample in range(7, 14)) == list(range(7))


def test_a_lonely_image_counts_as_much_as_the_others() -> None:
    """An image alone in its bucket, in batches of four: every fourth epoch, it fills a batch by itself."""
    shapes = [*[(64, 64)] * 8, (48, 80)]
    schedule = Schedule(0, shapes, 4)
    steps = 9 * 5  # twenty epochs of nine images, four at a time

    used = Counter(schedule.image(sample) for step in range(steps) for sample in schedule.samples(step))

    assert used == dict.fromkeys(range(9), 20)
    assert sum(schedule.shape(step) == (48, 80) for step in range(steps)) == 5
