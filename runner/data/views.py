"""Which crops of which images a job encodes and trains on; knows the settings, but not the seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.data.buckets import bucket_table, training_shape
from runner.data.crops import Crop, crops_for
from runner.data.dataset import split
from runner.data.item import Item
from runner.schema.shapes import Shape

if TYPE_CHECKING:
    from runner.schema import Experiment


@dataclass(frozen=True)
class View:
    """One crop of one image."""

    item: Item
    crop: Crop

    @property
    def key(self) -> tuple[str, Crop]:
        """What the pixels depend on."""
        return self.item.id, self.crop


def shape_of(item: Item, experiment: Experiment) -> Shape:
    """The shape cut from an image, (height, width) in pixels: the square of the experiment, or the image's bucket."""
    return training_shape(item.height_px, item.width_px, experiment.dataset, experiment.resolution)


def crops_of(item: Item, experiment: Experiment, *, shape: Shape | None = None) -> tuple[Crop, ...]:
    """The crops of an image that a job trains on; in the given shape, or else in the image's own."""
    data = experiment.dataset
    return crops_for(
        item, shape=shape or shape_of(item, experiment), mode=data.crop, variants=data.variants, flip=data.flip
    )


def held_out_crop(item: Item, experiment: Experiment) -> Crop:
    """The one crop of an image that the loss is measured on."""
    return crops_for(item, shape=shape_of(item, experiment), mode="center", variants=1, flip=False)[0]


def repeated(items: Sequence[Item]) -> tuple[Item, ...]:
    """The images of one epoch, each repeated as often as it must come."""
    return tuple(item for item in items for _ in range(item.repeats))


def views_of(items: Sequence[Item], experiment: Experiment) -> list[View]:
    """All crops that a job needs: of the images it trains on and of those it measures the loss on."""
    training, held_out = split(items, held_out=experiment.validation.held_out)
    views = [View(item, crop) for item in training for crop in crops_of(item, experiment)]
    return views + [View(item, held_out_crop(item, experiment)) for item in held_out or training]


def class_views_of(class_items: Sequence[Item], items: Sequence[Item], experiment: Experiment) -> list[View]:
    """All crops of class images; they are trained along with the subject's images, so in each of their shapes."""
    training, _ = split(items, held_out=experiment.validation.held_out)
    shapes = sorted({shape_of(item, experiment) for item in training})
    return [
        View(item, crop) for item in class_items for shape in shapes for crop in crops_of(item, experiment, shape=shape)
    ]


def held_out_lines(items: Sequence[Item], experiment: Experiment) -> Iterator[str]:
    """For people: the sources whose images are all held out. Images are chosen by content and not by source, so that a
    data set is split the same way wherever it lies.
    """
    training, held_out = split(items, held_out=experiment.validation.held_out)
    for source in sorted({item.source for item in held_out} - {item.source for item in training}):
        yield (
            f"sources.{source}: every image of it is held out, and none is trained on; give it more images, or set "
            "validation.held_out=0"
        )


def buckets_of(items: Sequence[Item], experiment: Experiment) -> list[dict[str, Any]]:
    """How full each bucket is with the images that a job trains on (`bucket_table`); empty without buckets."""
    if not experiment.dataset.buckets:
        return []
    training, _ = split(items, held_out=experiment.validation.held_out)
    shapes = [shape_of(item, experiment) for item in repeated(training)]
    return bucket_table(shapes, batch_size=experiment.batch_size, steps=experiment.steps)
