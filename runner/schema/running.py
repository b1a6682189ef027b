"""How a job is watched and kept: nothing here changes what is trained but `validation`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from runner.schema.knob import Settings, knob


class ValidationSettings(Settings):
    """Group `validation`: held-out loss and sample images, before, during and after training."""

    every: int = knob(
        0,
        ge=0,
        unit="optimizer steps",
        doc="Period of validation; 0 means only before the first and after the last.",
    )
    held_out: float = knob(
        0.1,
        ge=0,
        lt=1,
        unit="share of images",
        doc="Images kept out of training to measure the loss on; none where there are fewer than 10 images, "
        "and then the loss is measured on the training images.",
    )
    timesteps: int = knob(
        8, ge=1, le=1000, doc="Fixed timesteps, evenly spread, at which the held-out loss is measured."
    )
    max_images: int = knob(64, ge=1, unit="images", doc="Measure the loss on at most this many images.")
    prompts: tuple[str, ...] | None = knob(
        None, max_length=64, doc="What to draw; null means the captions of four images, [] draws nothing."
    )
    negative_prompt: str | None = knob(
        None, doc="What not to draw; null leaves it out (SDXL then uses zeros, not the empty caption)."
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = knob(
        (0,), min_length=1, max_length=64, doc="One image per prompt and seed."
    )
    guidance_scale: float = knob(
        5.0,
        ge=0,
        doc="Guidance of the sample images: classifier-free, and up to 1 is off; FLUX.1 is told it (3.5 is usual).",
    )
    guidance_rescale: float = knob(
        0.0,
        ge=0,
        le=1,
        doc="Takes back the contrast that guidance adds (arXiv 2305.08891; 0.7 is usual with "
        "`model.zero_terminal_snr`); 0 is off.",
    )
    inference_steps: int = knob(25, ge=1, le=1000, unit="sampling steps", doc="Steps of the sampler.")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("should name each seed once")
        return value

    @field_validator("prompts")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and any(not prompt.strip() for prompt in value):
            raise ValueError("should not contain an empty prompt")
        return value


class CheckpointSettings(Settings):
    """Section `checkpoint`: what a killed job can continue from."""

    every: int = knob(
        500,
        ge=0,
        unit="optimizer steps",
        doc="Period of checkpoints; 0 means only when a signal asks to stop.",
    )
    keep: int = knob(2, ge=1, unit="checkpoints", doc="How many to keep; older ones are removed.")


class LoggerSettings(Settings):
    """Group `logger`: the mirror of `metrics.jsonl` in Weights & Biases."""

    name: Literal["wandb", "none"] = knob("wandb", doc="Where the record is mirrored.")
    mode: Literal["auto", "online", "offline", "disabled"] = knob(
        "auto", doc="`auto` is online where an API key is found, offline otherwise."
    )
    project: str = knob("lora", min_length=1, doc="W&B project.")
    entity: str | None = knob(None, doc="W&B user or team; null is the key's own.")
    tags: tuple[str, ...] = knob((), doc="Tags of the W&B run.")
    every: int = knob(10, ge=1, unit="optimizer steps", doc="Period of the training metrics.")
    timeout_s: float = knob(30.0, gt=0, unit="seconds", doc="Longest that starting or ending W&B may block.")
