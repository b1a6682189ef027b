"""How images are drawn: the same knobs for the samples of a training and for the tasks that draw."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from runner.schema.knob import Settings, knob

MOST_PIXELS_SIDE, MOST_GUIDANCE = 4096, 100
"""Limits for what an endpoint draws."""
GUIDANCE = (
    "classifier-free (up to 1 is off), but FLUX.1 takes it as an input instead. Null is the family's usual value: 7.5 "
    "(sd), 5 (sdxl), 7 (sd3), 3.5 (flux)."
)
MOST_SEEDS = 2**64
Seed = Annotated[int, Field(ge=0, lt=MOST_SEEDS)]
"""The range of torch's generators; other programs draw seeds from all of it."""
AdapterWeight = Annotated[float, Field(ge=-10, le=10)]
"""How strong an adapter is; 1 is as it was trained."""


class DrawingSettings(Settings):
    """What the sampler is told besides the prompts."""

    negative_prompt: str | None = knob(
        None, doc="What not to draw; null leaves it out (SDXL then uses zeros, not the empty caption)."
    )
    guidance_scale: float | None = knob(None, ge=0, doc=f"Guidance of the sample images; {GUIDANCE}")
    guidance_rescale: float = knob(
        0.0,
        ge=0,
        le=1,
        doc="Removes the contrast that guidance adds (arXiv 2305.08891; 0.7 is usual with `model.zero_terminal_snr`); "
        "0 is off.",
    )
    inference_steps: int = knob(25, ge=1, le=1000, unit="sampling steps", doc="Steps of the sampler.")
    seeds: tuple[Seed, ...] = knob((0,), min_length=1, max_length=64, doc="One image per prompt and seed.")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("should name each seed once")
        return value
