"""How good an adapter is: the held-out loss at fixed timesteps and noise.

Uses the modules that are being trained; leaves them, their mode and every random state unchanged.

# Shape suffixes: B samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from runner.data import Item
from runner.data.views import held_out_crop
from runner.families.loading import scale_latents
from runner.schema import Experiment
from runner.schema.experiment import loss_timesteps
from runner.schema.metrics import HELD_OUT
from runner.train.base import Base
from runner.train.drawing import MOST_ROWS, PIXELS_PER_FORWARD, UseRows
from runner.train.inputs.noising import normal
from runner.train.inputs.samples import Posteriors, Sample, collate
from runner.train.inputs.text import Conditioner
from runner.train.loss import residual, squared_error
from runner.train.memory import within_memory
from runner.train.randomness import generator


class HeldOut:
    """The samples that the loss is measured on: every image at every fixed timestep, always with the same noise."""

    def __init__(self, experiment: Experiment, items: Sequence[Item], posteriors: Posteriors, base: Base) -> None:
        count = experiment.validation.timesteps
        total = base.noise.num_timesteps
        self.timesteps = loss_timesteps(count, total)
        self.chunk = max(1, min(MOST_ROWS, PIXELS_PER_FORWARD // experiment.resolution**2))
        measured = items[: experiment.validation.max_images]
        views = [(item, held_out_crop(item, experiment)) for item in measured]
        self.key = ("loss", count, tuple((item.id, item.caption, crop) for item, crop in views))
        """What the loss depends on besides the model."""
        self.samples: list[Sample] = []
        for item, crop in views:
            mean, _ = posteriors[item.id, crop]
            latent = scale_latents(base.vae_config, mean)
            for timestep in self.timesteps:
                noise = normal(generator(0, "held-out", item.id, timestep), mean.shape)
                self.samples.append(Sample(latent, noise, timestep, crop.time_ids(item), item.caption))

    def loss(self, base: Base, conditioner: Conditioner, use_rows: UseRows) -> dict[str, float]:
        """`validation/loss`, and the loss at each timestep; the unweighted mean squared error, so that runs with
        different training losses can be compared.
        """
        return within_memory(
            lambda rows: self._loss(base, conditioner, use_rows, rows), self.chunk, collect=base.collect
        )

    @torch.no_grad()
    def _loss(self, base: Base, conditioner: Conditioner, use_rows: UseRows, rows: int) -> dict[str, float]:
        errors: list[Tensor] = []
        for part in self._portions(rows):
            base.place.heed()
            batch = collate(range(len(part)), part).to(base.place.device)
            noisy = base.noise.add_noise(batch.latents, batch.noise, batch.timesteps)
            with use_rows(len(part)):
                text = conditioner.text(batch.captions)
                predicted = base.family.predict(base.denoiser, noisy, batch.timesteps, text, batch.time_ids)
            errors.append(squared_error(residual(predicted, batch, base.noise)))
        by_timestep = torch.cat(errors).double().cpu().view(-1, len(self.timesteps)).mean(0)
        losses = {
            f"validation/loss_t{timestep:04d}": float(value)
            for timestep, value in zip(self.timesteps, by_timestep, strict=True)
        }
        return {HELD_OUT: float(by_timestep.mean()), **losses}

    def _portions(self, rows: int) -> Iterator[list[Sample]]:
        """At most `rows` samples of one shape at a time; those of one image stay adjacent, in order."""
        shapes: dict[torch.Size, list[Sample]] = {}
        for sample in self.samples:
            shapes.setdefault(sample.latent.shape, []).append(sample)
        for samples in shapes.values():
            yield from (samples[start : start + rows] for start in range(0, len(samples), rows))
