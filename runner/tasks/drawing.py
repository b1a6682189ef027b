"""How a task draws, from its settings."""

from __future__ import annotations

from typing import Protocol

from runner.schema.family import Draws
from runner.train.drawing import Sampling


class DrawingTask(Draws, Protocol):
    """Settings of a task that draws: `Draws`, with the knobs of `DrawingSettings` at their top."""

    @property
    def inference_steps(self) -> int:
        """Steps of the sampler."""

    @property
    def guidance_scale(self) -> float:
        """As the sampler takes it."""

    @property
    def guidance_rescale(self) -> float:
        """As the sampler takes it."""

    @property
    def negative_prompt(self) -> str | None:
        """What not to draw."""


def sampling_of(settings: DrawingTask) -> Sampling:
    """How the images of a task are drawn."""
    return Sampling(
        settings.resolution,
        settings.scheduler.name,
        settings.inference_steps,
        settings.guidance_scale,
        settings.guidance_rescale,
        settings.negative_prompt,
        settings.scheduler.eta,
    )
