"""What a job trains on at any step, as a pure function of (seed, global sample index).

Sample g is image `permutation(seed, epoch)[g mod n]` of epoch `g div n`; its crop, latent, noise, timestep and
caption dropout come from one generator keyed by g. The batch of step s is samples s*b .. s*b + b - 1, whoever
computes them, so neither packs nor processes nor a resume change what is seen.

# Shape suffixes: B samples, C h w latents.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.data import Crop, Item
from runner.data.views import crops_of
from runner.families.loading import scale_latents
from runner.families.process import NoiseProcess
from runner.schema import Experiment
from runner.train.noising import Noising, normal
from runner.train.randomness import generator, permutation

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
    perturbation: Tensor | None = None
    """Noise that the denoiser sees beside `noise`, and shall not predict."""
    weights: Tensor | None = None
    """What each sample counts in the loss, `[B]`; 1 where there are none."""
    from_base: tuple[int, ...] = ()
    """Rows whose target is what the base model predicts without an adapter."""

    @property
    def seen_noise(self) -> Tensor:
        """What is added to the latents."""
        return self.noise if self.perturbation is None else self.noise + self.perturbation

    def to(self, device: torch.device) -> Batch:
        """The tensors on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


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
        process: NoiseProcess,
        stream: str = "",
    ) -> None:
        """`stream` names another stream of the same job, with an order and draws of its own."""
        self.seed, self.purpose, self.order_of = experiment.seed, f"{stream}sample", f"{stream}order"
        self.batch_size = experiment.batch_size
        self.caption_dropout = experiment.dataset.caption_dropout
        self.items = tuple(items)
        self.crops = [crops_of(item, experiment) for item in self.items]
        self.posteriors = posteriors
        self.vae_config = vae_config
        self.noising = Noising(experiment, process, stream=stream)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def batch(self, step: int, positions: range) -> Batch:
        """The samples at `positions` (within 0 .. batch_size) of optimizer step `step`."""
        ids = tuple(step * self.batch_size + position for position in positions)
        return collate(ids, [self._sample(index) for index in ids])

    def _image(self, sample: int) -> int:
        epoch, place = divmod(sample, len(self.items))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self.seed, epoch, len(self.items), purpose=self.order_of)
        return int(self._order[place])

    def _sample(self, sample: int) -> Sample:
        image = self._image(sample)
        draw = generator(self.seed, self.purpose, sample)
        # The four numbers are always drawn, in this order: an option must not shift another one's stream.
        variant, dropped, timestep = draw.random(), draw.random(), draw.random()
        item, crops = self.items[image], self.crops[image]
        crop = crops[int(variant * len(crops))]
        mean, std = self.posteriors[item.id, crop]
        raw = mean + std * normal(draw, mean.shape)
        noise = self.noising.noise(draw, sample, mean.shape)
        caption = None if dropped < self.caption_dropout else item.caption
        return Sample(
            scale_latents(self.vae_config, raw),
            noise,
            self.noising.timestep(timestep, mean.shape[1:]),
            crop.time_ids(item),
            caption,
            self.noising.perturbation(sample, mean.shape),
        )


@dataclasses.dataclass
class Sample:
    """One image with its noise, before it is stacked with others."""

    latent: Tensor
    noise: Tensor
    timestep: float
    time_ids: tuple[float, ...]
    caption: Caption
    perturbation: Tensor | None = None


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
    )


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """All samples of a job have one, or none has."""
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
        weights=_joined([(each.weights, torch.ones(len(each.sample_ids))) for each in batches]),
        from_base=tuple(start + row for start, each in zip(starts, batches, strict=False) for row in each.from_base),
        **tensors,
    )


def _joined(parts: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor | None:
    """(tensor, what stands for one that is not there) of each batch as one, unless no batch has any."""
    if all(given is None for given, _ in parts):
        return None
    return torch.cat([usual if given is None else given for given, usual in parts])
