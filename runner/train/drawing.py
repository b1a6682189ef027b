"""Images of fixed prompts and seeds: the samples of a job, and the class images that the base model generates.

Uses the modules that are being trained; leaves them, their mode and every random state unchanged.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from runner.errors import SettingsError
from runner.families.control import Control, controlled_by
from runner.families.family import Text
from runner.families.known import FAMILIES
from runner.families.loading import decode_latents, noise_options
from runner.paths import JobPaths, atomic_file, sample_name, write_text
from runner.schema import Experiment
from runner.schema.drawing import DrawingSettings
from runner.schema.family import Draws
from runner.schema.inputs import ModelSettings
from runner.schema.method import DreamBooth
from runner.train.base import Base
from runner.train.inputs.samples import Caption
from runner.train.inputs.text import Conditioner
from runner.train.memory import within_memory

PIXELS_PER_FORWARD = 8 * 1024 * 1024
MOST_ROWS = 64

TOGETHER_ON_CPU, PIXELS_ON_CPU = 4, 4 * 64 * 64
"""Images per forward pass on a CPU, and their pixels in total: images this small take half as long together as one by
one (measured on the miniature at 64 px); larger ones are drawn one at a time."""

UseRows = Callable[[int], Any]
"""Makes a context in which the given number of rows belong to the job's adapter."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How images are drawn."""

    resolution: int
    sampler: str
    inference_steps: int
    guidance_scale: float
    guidance_rescale: float = 0.0
    negative_prompt: str | None = None
    eta: float | None = None
    """Share of fresh noise in each step, for samplers that support it (DDIM, and TCD, whose paper calls it gamma, arXiv
    2402.19159); None means the sampler's default."""
    control: Control | None = None

    @classmethod
    def of(cls, settings: Draws, drawing: DrawingSettings) -> Sampling:
        """From a job's settings: `drawing` holds a training's settings for samples, or those of a task that draws."""
        return cls(
            settings.resolution,
            settings.scheduler.name,
            drawing.inference_steps,
            FAMILIES[settings.model.family].guidance(drawing.guidance_scale),
            drawing.guidance_rescale,
            drawing.negative_prompt,
            settings.scheduler.eta,
        )

    def rows(self, model: ModelSettings) -> int:
        """Rows of one image in a pass through the denoiser."""
        return FAMILIES[model.family].rows(self.guidance_scale)

    def passes(self, model: ModelSettings) -> int:
        """How often one image passes through the denoiser, guidance included."""
        return self.inference_steps * self.rows(model)

    @classmethod
    def of_class(cls, experiment: Experiment) -> Sampling:
        """How the class images of a DreamBooth job are drawn."""
        method = experiment.method
        assert isinstance(method, DreamBooth), method
        sampler = experiment.scheduler
        return cls(
            experiment.resolution,
            sampler.name,
            method.class_inference_steps,
            FAMILIES[experiment.model.family].guidance(method.class_guidance_scale),
            eta=sampler.eta,
        )


@dataclasses.dataclass(frozen=True)
class Wish:
    """An image to draw."""

    name: str
    prompt: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawn image."""

    name: str
    prompt: str
    png: bytes


def wishes_of(prompts: Sequence[str], seeds: Sequence[int]) -> list[Wish]:
    """Every prompt with every seed."""
    return [Wish(sample_name(index, seed), prompt, seed) for index, prompt in enumerate(prompts) for seed in seeds]


def draw(
    wishes: Sequence[Wish], sampling: Sampling, base: Base, conditioner: Conditioner, use_rows: UseRows
) -> list[Picture]:
    """Draw every requested image, as many at a time as fit in memory.

    On a CPU every pass has the same size, padded if fewer images are requested: the rounding of matrix products depends
    on their shape, so this keeps an image identical to the last bit whatever else is drawn.

    Raises:
        SettingsError: the sampling settings do not suit this model.
        Interrupted: a signal asked to stop, in a context that heeds it (`runner.train.place`).
    """
    chunk = max(1, min(MOST_ROWS, PIXELS_PER_FORWARD // sampling.resolution**2) // 2)
    on_cpu = base.place.device.type == "cpu"
    if on_cpu:
        chunk = max(1, min(TOGETHER_ON_CPU, PIXELS_ON_CPU // sampling.resolution**2))
    filled = [*wishes, *list(wishes[-1:]) * (-len(wishes) % chunk if on_cpu else 0)]
    pictures = within_memory(
        lambda images: _draw(filled, sampling, base, conditioner, use_rows, images), chunk, collect=base.collect
    )
    return pictures[: len(wishes)]


@torch.no_grad()
def _draw(
    wishes: Sequence[Wish],
    sampling: Sampling,
    base: Base,
    conditioner: Conditioner,
    use_rows: UseRows,
    chunk: int,
) -> list[Picture]:
    pictures = []
    for start in range(0, len(wishes), chunk):
        part = wishes[start : start + chunk]
        pipeline = base.family.pipeline(
            denoiser=base.denoiser, text=None, vae=base.vae, scheduler=base.sampler(sampling.sampler)
        )
        if fault := base.noise.sampler_fault(pipeline.scheduler):
            raise SettingsError(f"the sampler {sampling.sampler!r}: {fault}; take ddim, or another that is named")
        options = noise_options(sampling.eta, sampling.inference_steps, sampling.sampler, pipeline.scheduler)
        if sampling.control is not None:
            pipeline, controlled = controlled_by(sampling.control, pipeline, base.family, base.controlnet)
            options |= controlled
        pipeline.set_progress_bar_config(disable=True)
        with use_rows(1):
            positive_text = _one_by_one([wish.prompt for wish in part], conditioner)
            negative_text = _one_by_one([sampling.negative_prompt] * len(part), conditioner)
        # Pipelines of transformers do not have this argument, and the schema rejects the setting for them.
        rescaled = {"guidance_rescale": sampling.guidance_rescale} if sampling.guidance_rescale else {}
        with use_rows(len(part) * sampling.rows(base.settings)):
            latents = pipeline(
                **base.family.prompt_arguments(_typed(positive_text, base), _typed(negative_text, base)),
                height=sampling.resolution,
                width=sampling.resolution,
                num_inference_steps=sampling.inference_steps,
                guidance_scale=sampling.guidance_scale,
                **rescaled,
                **options,
                generator=[torch.Generator("cpu").manual_seed(wish.seed) for wish in part],
                output_type="latent",
                callback_on_step_end=partial(_heed, base),
            ).images
        for wish, image in zip(part, decode_latents(base.vae, latents).cpu(), strict=True):
            pictures.append(Picture(wish.name, wish.prompt, _png(image)))
    return pictures


def _heed(base: Base, _pipeline: Any, _step: int, _timestep: Any, changed: dict[str, Any]) -> dict[str, Any]:
    base.place.heed()
    return changed


def _one_by_one(prompts: Sequence[Caption], conditioner: Conditioner) -> Text:
    """The embeddings of prompts, `[B, ...]`; each computed by itself, as with frozen encoders, to get the same bits."""
    texts = {prompt: conditioner.text([prompt]) for prompt in dict.fromkeys(prompts)}
    return {name: torch.cat([texts[prompt][name] for prompt in prompts]) for name in texts[prompts[0]]}


def write_prompts(
    paths: JobPaths, prompts: Sequence[str], settings: Draws, drawing: DrawingSettings, **also: Sequence[str]
) -> None:
    """Record beside a job's images what they were drawn from.

    Args:
        also: further prompts, by name.
    """
    told = {key: getattr(drawing, key) for key in DrawingSettings.model_fields}
    told["guidance_scale"] = FAMILIES[settings.model.family].guidance(drawing.guidance_scale)
    about = {"prompts": prompts, **also, **told, "scheduler": settings.scheduler.name}
    write_text(paths.prompts, json.dumps(about, indent=2) + "\n")


def write_pictures(pictures: Sequence[Picture], folder: Path) -> list[tuple[Path, str]]:
    """Write images into a folder; returns (file, prompt) of each."""
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
