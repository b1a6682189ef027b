"""What a DreamBooth job trains along with its subject, so that the class is preserved (arXiv 2208.12242).

Each image of the subject is paired with one of its class in the same forward pass. The loss is that of the subject
plus `method.prior_loss_weight` times that of the class, each a mean over `batch_size` samples. Subjects from several
sources may belong to several classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch

from runner.schema.shapes import Shape
from runner.train.inputs.samples import Batch, Samples, join


class Stream(Protocol):
    """A job's training samples."""

    def batch(self, step: int, positions: range) -> Batch:
        """The samples at `positions` (within 0 .. batch_size) of optimizer step `step`."""

    def shape(self, step: int) -> Shape:
        """The shape that all images of a step share, (height, width) in pixels."""


class OfImages:
    """Images of the classes, with their own order and noise."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def beside(self, own: Batch, step: int, positions: range, shape: Shape) -> Batch:
        """One image of its class for each of the subject, cut to the same shape."""
        return self.samples.batch(step, positions, shape)


class OfBase:
    """The subject's noisy images under their class prompts: the target is what the base model predicts for them."""

    def __init__(self, own: Samples, prompts: Sequence[str]) -> None:
        """`prompts`: the class prompt of each of the subject's images."""
        self.own, self.prompts = own, tuple(prompts)

    def beside(self, own: Batch, step: int, positions: range, shape: Shape) -> Batch:
        """The same samples, captioned with their class prompts."""
        count = len(own.sample_ids)
        # The class should be preserved everywhere, not only where the mask shows the subject.
        called = tuple(self.prompts[self.own.schedule.image(sample)] for sample in own.sample_ids)
        return dataclasses.replace(own, captions=called, from_base=tuple(range(count)), masks=None)


class WithPrior:
    """A job's samples, followed by those that preserve their class."""

    def __init__(self, own: Samples, prior: OfImages | OfBase, *, weight: float) -> None:
        self.own, self.prior, self.weight = own, prior, weight

    def shape(self, step: int) -> Shape:
        """The shape of the subject's images, which those of the class share."""
        return self.own.shape(step)

    def batch(self, step: int, positions: range) -> Batch:
        """The samples of the subject, `[B]`, then those of the class, `[B]`."""
        own = self.own.batch(step, positions)
        beside = self.prior.beside(own, step, positions, self.own.shape(step))
        # These key the dropout: a sample of the subject and its class sample must not get the same mask.
        ids = tuple(-1 - sample for sample in own.sample_ids)
        weights = torch.full((len(ids),), self.weight)
        return join([own, dataclasses.replace(beside, sample_ids=ids, weights=weights)])
