"""`task=generate`: images of given prompts, by a base model with any mix of trained adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import field_validator

from runner.paths import SAMPLES_NAME
from runner.schema.drawing import DrawingSettings
from runner.schema.family import TRANSFORMERS, drawing_faults
from runner.schema.knob import Settings, in_a_list, knob, section
from runner.schema.tasks.adapters import WithAdapters
from runner.schema.training import SchedulerSettings

NO_PROMPT = "has no value; set prompts='a photo of ...', or a list of them"


class ControlSettings(Settings):
    """Section `control`: an image that the drawn ones follow by means of a ControlNet (arXiv 2302.05543)."""

    path: str | None = knob(None, min_length=1, doc="ControlNet: folder in diffusers layout, or Hub id; null is none.")
    image: str | None = knob(
        None,
        min_length=1,
        identity=False,
        doc="Image to follow, of the kind that the ControlNet expects, such as edges.",
    )
    scale: float = knob(1.0, ge=0, le=2, doc="How strictly it is followed.")

    def _faults(self) -> Iterator[str]:
        if (self.path is None) != (self.image is None):
            missing, given = ("image", "path") if self.image is None else ("path", "image")
            yield f"{missing} = null: control.{given} needs it; set control.{missing}=..."
        elif self.path is None:
            yield from self.idle("scale", because="without control.path and control.image")


class Generate(WithAdapters, DrawingSettings):
    """`task=generate`: draw images with trained adapters."""

    result_files: ClassVar[tuple[str, ...]] = (f"{SAMPLES_NAME}/*/*.png",)
    local_files: ClassVar[tuple[str, ...]] = ("control.path", "control.image")
    prompts: tuple[str, ...] = knob((), max_length=1000, doc="What to draw: one text, or a list of them.")
    resolution: int = knob(64, ge=8, le=8192, multiple_of=8, unit="px", doc="Side of the square images.")
    scheduler: SchedulerSettings = section(SchedulerSettings)
    control: ControlSettings = section(ControlSettings)

    _one_prompt = field_validator("prompts", mode="before")(in_a_list)

    @field_validator("prompts")
    @classmethod
    def _some_prompt(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError(NO_PROMPT)
        if any(not prompt.strip() for prompt in value):
            raise ValueError("should not contain an empty prompt")
        return value

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        yield from drawing_faults(self, self)
        if self.control.path is not None and self.model.family in TRANSFORMERS:
            yield (
                f"control.path = {self.control.path!r}: ControlNets are used with model.family=sd and sdxl only; "
                "remove it and control.image"
            )
        elif self.control.path is not None:
            yield from self.idle("guidance_rescale", because="with control.path")
