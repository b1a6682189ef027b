"""How good an adapter is: the held-out loss at fixed timesteps and noise, and images of fixed prompts and seeds.

Uses the modules that are being trained and leaves them, their mode and every random state as they were.

# Shape suffixes: B samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from runner.data import Item
from runner.families.loading import decode_latents, scale_latents
from runner.paths import JobPaths, atomic_file, write_text
from runner.schema import Experiment
from runner.train.base import Base
from runner.train.loss import squared_error
from runner.train.randomness import generator
from runner.train.samples import Posteriors, Sample, collate, held_out_crop, normal
from runner.train.text import Conditioner

PIXELS_PER_FORWARD = 8 * 1024 * 1024
MOST_ROWS = 64
PROMPTS_FROM_CAPTIONS = 4

UseRows = Callable[[int], Any]
"""Context in which the given number of rows belong to the job's adapter."""


class HeldOut:
    """The samples the loss is measured on: every image at every fixed timestep, always with the same noise."""

    def __init__(self, experiment: Experiment, items: Sequence[Item], posteriors: Posteriors, base: Base) -> None:
        count = experiment.validation.timesteps
        total = base.noise.num_timesteps
        self.timesteps = [int((index + 0.5) / count * total) for index in range(count)]
        self.chunk = max(1, min(MOST_ROWS, PIXELS_PER_FORWARD // experiment.resolution**2))
        self.samples: list[Sample] = []
        for item in items[: experiment.validation.max_images]:
            crop = held_out_crop(item, experiment)
            mean, _ = posteriors[item.id, crop]
            latent = scale_latents(base.vae_config, mean)
            for timestep in self.timesteps:
                noise = normal(generator(0, "held-out", item.id, timestep), mean.shape)
                self.samples.append(Sample(latent, noise, timestep, crop.time_ids(item), item.caption))

    @torch.no_grad()
    def loss(self, base: Base, conditioner: Conditioner, use_rows: UseRows) -> dict[str, float]:
        """`validation/loss`, and the loss at each timestep; mean squared error without weights, so that runs
        with different losses can be compared.
        """
        errors: list[Tensor] = []
        for start in range(0, len(self.samples), self.chunk):
            part = self.samples[start : start + self.chunk]
            batch = collate(range(len(part)), part).to(base.place.device)
            noisy = base.noise.add_noise(batch.latents, batch.noise, batch.timesteps)
            with use_rows(len(part)):
                text = conditioner.text(batch.captions)
                predicted = base.family.predict(base.denoiser, noisy, batch.timesteps, text, batch.time_ids)
            errors.append(squared_error(predicted, batch, base.noise))
        by_timestep = torch.cat(errors).double().cpu().view(-1, len(self.timesteps)).mean(0)
        losses = {
            f"validation/loss_t{timestep:04d}": float(value)
            for timestep, value in zip(self.timesteps, by_timestep, strict=True)
        }
        return {"validation/loss": float(by_timestep.mean()), **losses}


def prompts_of(experiment: Experiment, items: Sequence[Item]) -> tuple[str, ...]:
    """What to draw: the prompts of the configuration, or the captions of a few images."""
    chosen = experiment.validation.prompts
    if chosen is not None:
        return chosen
    captions = dict.fromkeys(item.caption for item in sorted(items, key=lambda item: item.file))
    return tuple(captions)[:PROMPTS_FROM_CAPTIONS]


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


@torch.no_grad()
def draw(
    experiment: Experiment,
    prompts: Sequence[str],
    base: Base,
    conditioner: Conditioner,
    use_rows: UseRows,
    folder: Path,
) -> list[tuple[Path, str]]:
    """Draw every prompt with every seed into `folder`: (file, prompt) of each image."""
    settings = experiment.validation
    wanted = [(index, prompt, seed) for index, prompt in enumerate(prompts) for seed in settings.seeds]
    chunk = max(1, min(MOST_ROWS, PIXELS_PER_FORWARD // experiment.resolution**2) // 2)
    written = []
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
            file = folder / f"p{index:02d}-s{seed}.png"
            with atomic_file(file) as temporary:
                _picture(image).save(temporary, format="PNG")
            written.append((file, prompt))
    return written


def _typed(text: dict[str, Tensor], base: Base) -> dict[str, Tensor]:
    return {name: tensor.to(base.dtype) for name, tensor in text.items()}


def _picture(image_3HW: Tensor) -> Image.Image:
    array_HW3 = (image_3HW * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(array_HW3)
