"""How good an adapter is: the held-out loss at fixed timesteps and noise, and images of fixed prompts and seeds.

Uses the modules that are being trained and leaves them, their mode and every random state as they were.

# Shape suffixes: B samples.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from runner.data import Item
from runner.data.captions import captions_of
from runner.data.views import held_out_crop
from runner.families.loading import decode_latents, scale_latents
from runner.paths import JobPaths, atomic_file, write_text
from runner.schema import Experiment
from runner.schema.experiment import loss_timesteps
from runner.train.base import Base
from runner.train.loss import squared_error
from runner.train.memory import within_memory
from runner.train.randomness import generator
from runner.train.samples import Posteriors, Sample, collate, normal
from runner.train.text import Conditioner

PIXELS_PER_FORWARD = 8 * 1024 * 1024
MOST_ROWS = 64

UseRows = Callable[[int], Any]
"""Context in which the given number of rows belong to the job's adapter."""


class HeldOut:
    """The samples the loss is measured on: every image at every fixed timestep, always with the same noise."""

    def __init__(self, experiment: Experiment, items: Sequence[Item], posteriors: Posteriors, base: Base) -> None:
        count = experiment.validation.timesteps
        total = base.noise.num_timesteps
        self.timesteps = loss_timesteps(count, total)
        self.chunk = max(1, min(MOST_ROWS, PIXELS_PER_FORWARD // experiment.resolution**2))
        measured = items[: experiment.validation.max_images]
        views = [(item, held_out_crop(item, experiment), captions_of(item, experiment.dataset)[0]) for item in measured]
        self.key = ("loss", count, tuple((item.id, crop, caption) for item, crop, caption in views))
        """What the loss depends on besides the model."""
        self.samples: list[Sample] = []
        for item, crop, caption in views:
            mean, _ = posteriors[item.id, crop]
            latent = scale_latents(base.vae_config, mean)
            for timestep in self.timesteps:
                noise = normal(generator(0, "held-out", item.id, timestep), mean.shape)
                self.samples.append(Sample(latent, noise, timestep, crop.time_ids(item), caption))

    def loss(self, base: Base, conditioner: Conditioner, use_rows: UseRows) -> dict[str, float]:
        """`validation/loss`, and the loss at each timestep; mean squared error without weights, so that runs
        with different losses can be compared.
        """
        return within_memory(
            lambda rows: self._loss(base, conditioner, use_rows, rows), self.chunk, collect=base.collect
        )

    @torch.no_grad()
    def _loss(self, base: Base, conditioner: Conditioner, use_rows: UseRows, rows: int) -> dict[str, float]:
        errors: dict[int, Tensor] = {}
        for places in self._portions(rows):
            part = [self.samples[place] for place in places]
            batch = collate(range(len(part)), part).to(base.place.device)
            noisy = base.noise.add_noise(batch.latents, batch.noise, batch.timesteps)
            with use_rows(len(part)):
                text = conditioner.text(batch.captions)
                predicted = base.family.predict(base.denoiser, noisy, batch.timesteps, text, batch.time_ids)
            errors |= zip(places, squared_error(predicted, batch, base.noise).unbind(), strict=True)
        in_order = torch.stack([errors[place] for place in range(len(self.samples))])
        by_timestep = in_order.double().cpu().view(-1, len(self.timesteps)).mean(0)
        losses = {
            f"validation/loss_t{timestep:04d}": float(value)
            for timestep, value in zip(self.timesteps, by_timestep, strict=True)
        }
        return {"validation/loss": float(by_timestep.mean()), **losses}

    def _portions(self, rows: int) -> Iterator[list[int]]:
        """Places of at most so many samples of one shape."""
        shapes: dict[torch.Size, list[int]] = {}
        for place, sample in enumerate(self.samples):
            shapes.setdefault(sample.latent.shape, []).append(place)
        for places in shapes.values():
            yield from (places[start : start + rows] for start in range(0, len(places), rows))


def write_prompts(experiment: Experiment, prompts: Sequence[str], paths: JobPaths) -> None:
    """Say beside the images what they were drawn from."""
    settings = experiment.validation
    about = {
        "prompts": list(prompts),
        "seeds": list(settings.seeds),
        "negative_prompt": settings.negative_prompt,
        "guidance_scale": settings.guidance_scale,
        "inference_steps": settings.inference_steps,
        "scheduler": experiment.scheduler.name,
    }
    write_text(paths.prompts, json.dumps(about, indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawn sample."""

    name: str
    prompt: str
    png: bytes


def drawing_key(experiment: Experiment, prompts: Sequence[str]) -> tuple[Any, ...]:
    """What the samples depend on besides the model."""
    settings = experiment.validation
    how = (settings.negative_prompt, settings.guidance_scale, settings.inference_steps, experiment.scheduler.name)
    return ("samples", experiment.resolution, tuple(prompts), settings.seeds, *how)


def draw(
    experiment: Experiment,
    prompts: Sequence[str],
    base: Base,
    conditioner: Conditioner,
    use_rows: UseRows,
) -> list[Picture]:
    """Every prompt with every seed."""
    chunk = max(1, min(MOST_ROWS, PIXELS_PER_FORWARD // experiment.resolution**2) // 2)
    return within_memory(
        lambda images: _draw(experiment, prompts, base, conditioner, use_rows, images), chunk, collect=base.collect
    )


@torch.no_grad()
def _draw(
    experiment: Experiment,
    prompts: Sequence[str],
    base: Base,
    conditioner: Conditioner,
    use_rows: UseRows,
    chunk: int,
) -> list[Picture]:
    settings = experiment.validation
    wanted = [(index, prompt, seed) for index, prompt in enumerate(prompts) for seed in settings.seeds]
    pictures = []
    for start in range(0, len(wanted), chunk):
        part = wanted[start : start + chunk]
        pipeline = base.family.pipeline(
            denoiser=base.denoiser, text=None, vae=base.vae, scheduler=base.sampler(experiment.scheduler.name)
        )
        pipeline.set_progress_bar_config(disable=True)
        with use_rows(len(part)):
            positive_text = conditioner.text([prompt for _, prompt, _ in part])
            negative_text = conditioner.text([settings.negative_prompt] * len(part))
        guided = settings.guidance_scale > 1
        with use_rows(len(part) * (1 + guided)):
            latents = pipeline(
                **base.family.prompt_arguments(_typed(positive_text, base), _typed(negative_text, base)),
                height=experiment.resolution,
                width=experiment.resolution,
                num_inference_steps=settings.inference_steps,
                guidance_scale=settings.guidance_scale,
                generator=[torch.Generator("cpu").manual_seed(seed) for _, _, seed in part],
                output_type="latent",
            ).images
        for (index, prompt, seed), image in zip(part, decode_latents(base.vae, latents).cpu(), strict=True):
            pictures.append(Picture(f"p{index:02d}-s{seed}.png", prompt, _png(image)))
    return pictures


def write_pictures(pictures: Sequence[Picture], folder: Path) -> list[tuple[Path, str]]:
    """Write samples into a folder: (file, prompt) of each."""
    written = []
    for picture in pictures:
        with atomic_file(folder / picture.name) as temporary:
            temporary.write_bytes(picture.png)
        written.append((folder / picture.name, picture.prompt))
    return written


def _typed(text: dict[str, Tensor], base: Base) -> dict[str, Tensor]:
    return {name: tensor.to(base.dtype) for name, tensor in text.items()}


def _png(image_3HW: Tensor) -> bytes:
    array_HW3 = (image_3HW * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(array_HW3).save(stream, format="PNG")
    return stream.getvalue()
