"""What a job trains on at any step, as a pure function of (seed, global sample index).

Sample g is image `permutation(seed, epoch)[g mod n]` of epoch `g div n`; its crop, latent, noise, timestep and
caption dropout come from one generator keyed by g. The batch of step s is samples s*b .. s*b + b - 1, whichever process
computes them, so packing, the number of processes and resuming do not change what the model sees. If images have
several shapes, `runner.train.inputs.schedule` gathers the samples instead.

# Shape suffixes: B samples, C h w latents.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from runner.data import Crop, Item
from runner.data.captions import captions_of
from runner.data.views import crops_of, shape_of
from runner.families.loading import scale_latents
from runner.families.process import NoiseProcess
from runner.schema import Experiment
from runner.schema.shapes import Shape
from runner.train.inputs.noising import Noising, normal
from runner.train.inputs.pairing import Pairing
from runner.train.inputs.schedule import Schedule
from runner.train.place import sent
from runner.train.randomness import generator

Caption = str | None
"""None if the caption was dropped or no prompt is given; the model decides what that means."""


@dataclasses.dataclass
class Batch:
    """Some samples, ready for the denoiser; captions are still text."""

    sample_ids: tuple[int, ...]
    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    time_ids: Tensor
    captions: tuple[Caption, ...]
    perturbation: Tensor | None = None
    """Noise that the denoiser sees in addition to `noise` but does not have to predict."""
    weights: Tensor | None = None
    """The weight of each sample in the loss, `[B]`; None means 1."""
    masks: Tensor | None = None
    """`[B, 1, h, w]` in [0, 1], what counts in the loss; None if everything does."""
    from_base: tuple[int, ...] = ()
    """Rows whose target is the prediction of the base model without an adapter."""

    @property
    def seen_noise(self) -> Tensor:
        """What is added to the latents."""
        return self.noise if self.perturbation is None else self.noise + self.perturbation

    def to(self, device: torch.device) -> Batch:
        """The tensors on a device."""
        moved: dict[str, Any] = {
            field.name: sent(value, device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


Posteriors = Mapping[tuple[str, Crop], tuple[Tensor, Tensor]]
"""Mean and standard deviation of every crop's latent, by image and crop."""


class PosteriorsInMemory(dict[tuple[str, Crop], tuple[Tensor, Tensor]]):
    """A class rather than a dict, so that jobs can share one by weak reference."""


EMPTY = ""
"""The empty caption, which is a text like any other."""


class Samples:
    """One job's stream of training samples."""

    def __init__(
        self,
        experiment: Experiment,
        items: Sequence[Item],
        posteriors: Posteriors,
        *,
        vae_config: dict[str, object],
        process: NoiseProcess,
        masks: Mapping[tuple[str, Crop], Tensor] | None = None,
        stream: str = "",
        schedule: Schedule | Pairing | None = None,
    ) -> None:
        """Take the images and the settings for sampling them.

        Args:
            masks: `[1, h, w]` by mask and crop, if the loss is masked.
            stream: names a second stream of the same job, with its own order and draws. Its captions are used as they
                are, and its images in the shapes that are requested.
            schedule: which image comes when; by default each comes once per epoch.
        """
        self.seed, self.purpose = experiment.seed, f"{stream}sample"
        self.batch_size = experiment.batch_size
        self.caption_dropout = experiment.dataset.caption_dropout
        self.items = tuple(items)
        self.experiment = experiment
        self._crops: dict[tuple[int, Shape], tuple[Crop, ...]] = {}
        self.captions = [item.captions if stream else captions_of(item, experiment.dataset) for item in self.items]
        self.masks = masks
        self.posteriors = posteriors
        self.vae_config = vae_config
        self.noising = Noising(experiment, process, stream=stream)
        square = experiment.resolution, experiment.resolution
        shapes = [square if stream else shape_of(item, experiment) for item in self.items]
        usual = Schedule(self.seed, shapes, self.batch_size, purpose=f"{stream}order")
        self.schedule: Schedule | Pairing = schedule or usual

    def shape(self, step: int) -> Shape:
        """The shape that all images of a step's batch share, (height, width) in pixels."""
        return self.schedule.shape(step)

    def batch(self, step: int, positions: range, shape: Shape | None = None) -> Batch:
        """The samples at `positions` (within 0 .. batch_size) of optimizer step `step`.

        Args:
            shape: what they are cut to, if not to the step's own shape.
        """
        ids = self.schedule.samples(step, positions)
        return collate(ids, [self._sample(index, shape or self.shape(step)) for index in ids])

    def _crops_in(self, image: int, shape: Shape) -> tuple[Crop, ...]:
        if (image, shape) not in self._crops:
            self._crops[image, shape] = crops_of(self.items[image], self.experiment, shape=shape)
        return self._crops[image, shape]

    def _sample(self, sample: int, shape: Shape) -> Sample:
        image = self.schedule.image(sample)
        draw = generator(self.seed, self.purpose, sample)
        # All three numbers are always drawn, in this order: an option must not shift another one's stream.
        variant, dropped, timestep = draw.random(), draw.random(), draw.random()
        item, crops = self.items[image], self._crops_in(image, shape)
        crop = crops[int(variant * len(crops))]
        mean, std = self.posteriors[item.id, crop]
        raw = mean + std * normal(draw, mean.shape)
        noise = self.noising.noise(draw, sample, mean.shape)
        caption = None if dropped < self.caption_dropout else self._caption(image, sample)
        return Sample(
            scale_latents(self.vae_config, raw),
            noise,
            self.noising.timestep(timestep, mean.shape[1:]),
            crop.time_ids(item),
            caption,
            self.noising.perturbation(sample, mean.shape),
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
    timestep: float
    time_ids: tuple[float, ...]
    caption: Caption
    perturbation: Tensor | None = None
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
        perturbation=_stacked([sample.perturbation for sample in samples]),
        masks=_stacked([sample.mask for sample in samples]),
    )


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """The tensors stacked; either all samples of a job have one, or none has."""
    given = [tensor for tensor in tensors if tensor is not None]
    assert len(given) in (0, len(tensors)), "some samples of a job lack what others have"
    return torch.stack(given) if given else None


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
    starts = itertools.accumulate((len(batch.sample_ids) for batch in batches), initial=0)
    return Batch(
        sample_ids=ids,
        captions=captions,
        perturbation=_joined([(each.perturbation, torch.zeros_like(each.noise)) for each in batches]),
        masks=_joined([(each.masks, torch.ones_like(each.latents[:, :1])) for each in batches]),
        weights=_joined([(each.weights, torch.ones(len(each.sample_ids))) for each in batches]),
        from_base=tuple(start + row for start, each in zip(starts, batches, strict=False) for row in each.from_base),
        **tensors,
    )


def _joined(parts: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor | None:
    """Join the batches' tensors, given as (tensor, default for a missing one); None if no batch has any."""
    if all(given is None for given, _ in parts):
        return None
    return torch.cat([usual if given is None else given for given, usual in parts])
