"""What a job trains on at any step, as a pure function of (seed, global sample index).

Sample g is image `permutation(seed, epoch)[g mod n]` of epoch `g div n`; its crop, latent, noise, timestep and
caption dropout come from one generator keyed by g. The batch of step s is samples s*b .. s*b + b - 1, or where images
have several shapes those that `runner.train.schedule` gathers, whoever computes them, so neither packs nor processes
nor a resume change what is seen.

# Shape suffixes: B samples, C h w latents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from runner.data import Crop, Item
from runner.data.captions import captions_of
from runner.data.views import crops_of, shape_of
from runner.families.loading import scale_latents
from runner.schema import Experiment
from runner.schema.shapes import Shape
from runner.train.randomness import generator
from runner.train.schedule import Schedule

Caption = str | None
"""None where the caption was dropped, or no prompt is given: what that means, the model decides."""


@dataclasses.dataclass
class Batch:
    """Some samples, ready for the denoiser; captions are still text."""

    sample_ids: tuple[int, ...]
    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    time_ids: Tensor
    captions: tuple[Caption, ...]
    masks: Tensor | None = None
    """`[B, 1, h, w]` in [0, 1], what counts in the loss; None where all of every sample does."""

    def to(self, device: torch.device) -> Batch:
        """The tensors on a device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("latents", "noise", "timesteps", "time_ids")
        }
        masks = None if self.masks is None else self.masks.to(device, non_blocking=True)
        return dataclasses.replace(self, **moved, masks=masks)


class Posteriors(dict[tuple[str, Crop], tuple[Tensor, Tensor]]):
    """Mean and deviation of every crop, by image and crop; a class of its own, so that jobs can share one weakly."""


EMPTY = ""
"""The empty caption, which is text like any other."""


class Samples:
    """One job's stream of training samples."""

    def __init__(
        self,
        experiment: Experiment,
        items: Sequence[Item],
        posteriors: Posteriors,
        *,
        vae_config: dict[str, object],
        num_timesteps: int,
        masks: Mapping[tuple[str, Crop], Tensor] | None = None,
    ) -> None:
        """`masks`: `[1, h, w]` by mask and crop, where the loss is masked."""
        self.seed = experiment.seed
        self.batch_size = experiment.batch_size
        self.caption_dropout = experiment.dataset.caption_dropout
        self.noise_offset = experiment.loss.noise_offset
        self.items = tuple(items)
        self.crops = [crops_of(item, experiment) for item in self.items]
        self.captions = [captions_of(item, experiment.dataset) for item in self.items]
        self.posteriors = posteriors
        self.vae_config = vae_config
        self.num_timesteps = num_timesteps
        self.masks = masks
        self.schedule = Schedule(self.seed, [shape_of(item, experiment) for item in self.items], self.batch_size)

    def shape(self, step: int) -> Shape:
        """The shape that all images of a step's batch have, (height, width) in pixels."""
        return self.schedule.shape(step)

    def batch(self, step: int, positions: range) -> Batch:
        """The samples at `positions` (within 0 .. batch_size) of optimizer step `step`."""
        ids = self.schedule.samples(step, positions)
        return collate(ids, [self._sample(index) for index in ids])

    def _sample(self, sample: int) -> Sample:
        image = self.schedule.image(sample)
        draw = generator(self.seed, "sample", sample)
        # The four numbers are always drawn, in this order: an option must not shift another one's stream.
        variant, dropped, timestep = draw.random(), draw.random(), draw.random()
        item, crops = self.items[image], self.crops[image]
        crop = crops[int(variant * len(crops))]
        mean, std = self.posteriors[item.id, crop]
        raw = mean + std * normal(draw, mean.shape)
        noise = normal(draw, mean.shape)
        if self.noise_offset:
            noise = noise + self.noise_offset * normal(draw, (mean.shape[0], 1, 1))
        caption = None if dropped < self.caption_dropout else self._caption(image, sample)
        return Sample(
            scale_latents(self.vae_config, raw),
            noise,
            int(timestep * self.num_timesteps),
            crop.time_ids(item),
            caption,
            self._mask(item, crop, mean),
        )

    def _mask(self, item: Item, crop: Crop, latent: Tensor) -> Tensor | None:
        if self.masks is None:
            return None
        return torch.ones_like(latent[:1]) if item.mask is None else self.masks[item.mask.id, crop]

    def _caption(self, image: int, sample: int) -> str:
        captions = self.captions[image]
        if len(captions) == 1:
            return captions[0]
        return captions[int(generator(self.seed, "caption", sample).random() * len(captions))]


@dataclasses.dataclass
class Sample:
    """One image with its noise, before it is stacked with others."""

    latent: Tensor
    noise: Tensor
    timestep: int
    time_ids: tuple[float, ...]
    caption: Caption
    mask: Tensor | None = None


def collate(ids: Sequence[int], samples: Sequence[Sample]) -> Batch:
    """Stack samples along a new first dimension."""
    return Batch(
        sample_ids=tuple(ids),
        latents=torch.stack([sample.latent for sample in samples]),
        noise=torch.stack([sample.noise for sample in samples]),
        timesteps=torch.tensor([sample.timestep for sample in samples]),
        time_ids=torch.tensor([sample.time_ids for sample in samples], dtype=torch.float32),
        captions=tuple(sample.caption for sample in samples),
        masks=_stacked_masks(samples),
    )


def _stacked_masks(samples: Sequence[Sample]) -> Tensor | None:
    masks = [sample.mask for sample in samples if sample.mask is not None]
    assert len(masks) in (0, len(samples)), "a job masks all of its samples or none"
    return torch.stack(masks) if masks else None


def join(batches: Sequence[Batch]) -> Batch:
    """Several jobs' batches as one, in their order."""
    if len(batches) == 1:
        return batches[0]
    tensors = {
        name: torch.cat([getattr(batch, name) for batch in batches])
        for name in ("latents", "noise", "timesteps", "time_ids")
    }
    ids = tuple(index for batch in batches for index in batch.sample_ids)
    captions = tuple(caption for batch in batches for caption in batch.captions)
    return Batch(sample_ids=ids, captions=captions, masks=_joined_masks(batches), **tensors)


def _joined_masks(batches: Sequence[Batch]) -> Tensor | None:
    """The masks of all batches; of a job without masks everything counts."""
    if all(batch.masks is None for batch in batches):
        return None
    every = [torch.ones_like(batch.latents[:, :1]) if batch.masks is None else batch.masks for batch in batches]
    return torch.cat(every)


def normal(draw: np.random.Generator, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, fp32."""
    return torch.from_numpy(draw.standard_normal(tuple(shape), dtype=np.float32))
