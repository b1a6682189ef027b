"""What a training's samples show if nobody has chosen prompts: captions of its own data set."""

from __future__ import annotations

from collections.abc import Sequence

from runner.data.captions import captions_of
from runner.data.dataset import split
from runner.data.item import Item
from runner.schema import Experiment

PROMPTS_FROM_CAPTIONS = 4


def prompts_of(experiment: Experiment, items: Sequence[Item]) -> tuple[str, ...]:
    """The prompts to draw: those of the configuration, or captions of a few images that the loss is measured on.

    Args:
        items: the whole data set.
    """
    chosen = experiment.validation.prompts
    if chosen is not None:
        return chosen
    training, held_out = split(items, held_out=experiment.validation.held_out)
    measured = sorted(held_out or training, key=lambda item: item.file)
    captions = dict.fromkeys(captions_of(item, experiment.dataset)[0] for item in measured)
    return tuple(captions)[:PROMPTS_FROM_CAPTIONS]
