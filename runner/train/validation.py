"""How good an adapter is: the held-out loss at fixed timesteps and noise, and what it draws.

Uses the modules that are being trained; leaves them, their mode and every random state unchanged.

# Shape suffixes: B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from runner.data import Item
from runner.data.views import held_out_crop
from runner.families.loading import scale_latents
from runner.schema import Experiment
from runner.schema.experiment import loss_timesteps
from runner.schema.metrics import EARLIER, HELD_OUT
from runner.train.base import Base
from runner.train.drawing import (
    MOST_ROWS,
    PIXELS_PER_FORWARD,
    Picture,
    Sampling,
    UseRows,
    Wish,
    draw,
    wishes_of,
    write_pictures,
)
from runner.train.inputs.noising import normal
from runner.train.inputs.samples import Posteriors, Sample, collate
from runner.train.inputs.text import Conditioner
from runner.train.loss import residual, squared_error
from runner.train.memory import within_memory
from runner.train.randomness import generator

if TYPE_CHECKING:
    from runner.train.job_run import JobRun

Found = TypeVar("Found")

VALIDATED_KEPT = 64
"""Number of results of the untrained base to keep: jobs that share one come soon after each other, and a worker may
train hundreds of jobs, each with its own images and prompts.
"""


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


def validate(run: JobRun, use_rows: UseRows, *, pictures: bool = True) -> dict[str, float]:
    """Measure and record a job's held-out losses, and draw its samples; call it in the main process only.

    Raises:
        Interrupted: a signal came before it finished; it must be repeated.
    """
    materials, base = run.materials, run.base
    with run.clock.charging("validate", [run]), base.place.heeding():
        held_out, conditioner = materials.held_out_samples, materials.conditioner
        losses = _shared(run, held_out.key, lambda: held_out.loss(base, conditioner, use_rows))
        if materials.kept is not None:
            losses = losses | {EARLIER: materials.kept.loss(base, conditioner, use_rows)}
        run.record(losses)
        if materials.prompts and pictures:
            drawing = run.settings.validation
            wishes, sampling = wishes_of(materials.prompts, drawing.seeds), Sampling.of(run.settings, drawing)
            key = ("samples", tuple(wishes), sampling)
            drawn = _shared(run, key, lambda: _draw(run, wishes, sampling, use_rows))
            written = write_pictures(drawn, run.paths.samples_at(run.step))
            if run.mirror is not None:
                run.mirror.images(run.step, written)
    return losses


def _draw(run: JobRun, wishes: Sequence[Wish], sampling: Sampling, use_rows: UseRows) -> list[Picture]:
    with run.clock.drawing(len(wishes) * sampling.passes(run.base.settings)):
        return draw(wishes, sampling, run.base, run.materials.conditioner, use_rows)


def _shared(run: JobRun, key: Hashable, find: Callable[[], Found]) -> Found:
    """A validation result; adapters have no effect before the first step, so the base's result is found once."""
    if run.adapter.has_effect:
        return find()
    known = run.base.validated
    found: Found = known.pop(key) if key in known else find()
    known[key] = found  # most recently used last
    while len(known) > VALIDATED_KEPT:
        del known[next(iter(known))]
    return found
