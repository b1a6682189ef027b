"""`task=generate`: images of given prompts, by a base model with any mix of trained adapters."""

from __future__ import annotations

from typing import ClassVar

from pydantic import field_validator

from runner.schema.drawing import DrawingSettings
from runner.schema.knob import knob, section
from runner.schema.tasks.adapters import WithAdapters
from runner.schema.training import SchedulerSettings


class Generate(WithAdapters, DrawingSettings):
    """`task=generate`: draw images with trained adapters."""

    result_files: ClassVar[tuple[str, ...]] = ("images/*.png",)
    prompts: tuple[str, ...] = knob((), max_length=1000, doc="What to draw: one text, or a list of them.")
    resolution: int = knob(64, ge=8, le=8192, multiple_of=8, unit="px", doc="Side of the square images.")
    scheduler: SchedulerSettings = section(SchedulerSettings)

    @field_validator("prompts", mode="before")
    @classmethod
    def _one_prompt(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("prompts")
    @classmethod
    def _some_prompt(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("has no value; set prompts='a photo of ...', or a list of them")
        if any(not prompt.strip() for prompt in value):
            raise ValueError("should not contain an empty prompt")
        return value
