"""Which crops of which images a job encodes and trains on; knows the settings, not the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.data.crops import Crop, crops_for
from runner.data.dataset import split
from runner.data.item import Item

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


def crops_of(item: Item, experiment: Experiment) -> tuple[Crop, ...]:
    """The crops of an image that a job trains on."""
    data = experiment.dataset
    return crops_for(item, resolution=experiment.resolution, mode=data.crop, variants=data.variants, flip=data.flip)


def held_out_crop(item: Item, experiment: Experiment) -> Crop:
    """The one crop of an image that the loss is measured on."""
    return crops_for(item, resolution=experiment.resolution, mode="center", variants=1, flip=False)[0]


def views_of(items: Sequence[Item], experiment: Experiment) -> list[View]:
    """All crops that a job needs, of the images it trains on and of those it measures the loss on."""
    training, held_out = split(items, held_out=experiment.validation.held_out)
    views = [View(item, crop) for item in training for crop in crops_of(item, experiment)]
    return views + [View(item, held_out_crop(item, experiment)) for item in held_out or training]
