"""How a job is monitored and saved: of this, only `validation` changes what is trained."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from runner.schema.drawing import DrawingSettings
from runner.schema.knob import Settings, knob, spelt


class ValidationSettings(DrawingSettings):
    """Group `validation`: held-out loss and sample images, before, during and after training."""

    every: int = knob(
        0,
        ge=0,
        unit="optimizer steps",
        doc="Period of validation; 0 means only before the first step and after the last.",
    )
    held_out: float = knob(
        0.1,
        ge=0,
        lt=1,
        unit="share of images",
        doc="Images kept out of training to measure the loss on. With fewer than 10 images none are, and the loss is "
        "measured on the training images.",
    )
    timesteps: int = knob(
        8, ge=1, le=1000, doc="Fixed timesteps, evenly spread, at which the held-out loss is measured."
    )
    max_images: int = knob(64, ge=1, unit="images", doc="Measure the loss on at most this many images.")
    prompts: tuple[str, ...] | None = knob(
        None, max_length=64, doc="What to draw; null means the captions of four images, [] draws nothing."
    )

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


def _project_such_as(text: str) -> str:
    entity, _, project = text.rpartition("/")
    named = re.sub(r"[/\\#?%:]+", "-", project)[:128].strip("-") or "lora"
    return f"logger.project={named}" + (f" with logger.entity={entity}" if entity else "")


PROJECT = spelt(r"[^/\\#?%:]{1,128}", "up to 128 characters without / \\ # ? % and :", _project_such_as)
"""What W&B accepts; it rejects other projects only once the training has begun, which then has no mirror."""
TAG = Field(min_length=1, max_length=64)
"""What W&B accepts, as above."""


class LoggerSettings(Settings):
    """Group `logger`: the mirror of `metrics.jsonl` in Weights & Biases."""

    name: Literal["wandb", "none"] = knob("wandb", doc="Where the record is mirrored.")
    mode: Literal["auto", "online", "offline", "disabled"] = knob(
        "auto", doc="`auto` is online where an API key is found, offline otherwise."
    )
    project: Annotated[str, PROJECT] = knob("lora", min_length=1, doc="W&B project.")
    entity: str | None = knob(None, doc="W&B user or team; null is the API key's own.")
    tags: tuple[Annotated[str, TAG], ...] = knob((), doc="Tags of the W&B run.")
    every: int = knob(10, ge=1, unit="optimizer steps", doc="Period of the training metrics.")
    timeout_s: float = knob(30.0, gt=0, unit="seconds", doc="Longest that starting or finishing W&B may block.")
