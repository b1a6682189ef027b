"""The settings of an endpoint: `serve.json` beside the model, and those of each request."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import Field, ValidationError

from runner.schema.drawing import GUIDANCE, MOST_GUIDANCE, MOST_PIXELS_SIDE, AdapterWeight, Seed
from runner.schema.family import sampling_faults
from runner.schema.inputs import ModelSettings, Precision
from runner.schema.knob import Settings, knob, section
from runner.schema.messages import nearest, wanted
from runner.schema.training import Sampler
from runner.system.values import as_typed

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

SERVE_FILE, ADAPTERS_FOLDER = "serve.json", "adapters"
"""Names in the model's folder: what is served, and a folder for each adapter."""

Told = TypeVar("Told", bound=Settings)


class Serving(Settings):
    """`serve.json`: the model that an endpoint draws with, and the defaults for requests."""

    model: ModelSettings = section(ModelSettings)
    precision: Precision = knob("fp32", doc="Precision of the denoiser.")
    resolution: int | None = knob(
        None,
        ge=8,
        le=MOST_PIXELS_SIDE,
        multiple_of=8,
        unit="px",
        doc="Side of the images; null is what the model was made for.",
    )
    sampler: Sampler = knob("model", doc="Sampler; `model` is the one saved with the model.")
    inference_steps: int = knob(25, ge=1, le=1000, unit="sampling steps", doc="Steps of the sampler.")
    guidance_scale: float | None = knob(None, ge=0, le=MOST_GUIDANCE, doc=f"Guidance; {GUIDANCE}")
    guidance_rescale: float = knob(0.0, ge=0, le=1, doc="Removes the contrast that guidance adds.")
    negative_prompt: str | None = knob(None, doc="What not to draw.")
    eta: float | None = knob(None, ge=0, le=1, doc="Share of fresh noise in each step, for ddim and tcd (its gamma).")
    adapters: dict[str, AdapterWeight] = knob({}, doc="Adapters and weights for requests that name none.")
    most_images: int = knob(8, ge=1, le=256, unit="images", doc="Most images that one request may ask for.")
    most_waiting: int = knob(
        8, ge=0, le=1000, unit="requests", doc="Most requests that wait behind the current one; more are refused."
    )

    def _faults(self) -> Iterator[str]:
        yield from sampling_faults(self.model.family, self.resolution or self.model.resolution, self.sampler, self)


class Invocation(Settings):
    """A request: what to draw; what it leaves out comes from `serve.json`."""

    prompt: str | None = knob(None, min_length=1, doc="What to draw; or `prompts`, several.")
    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = knob((), doc="One image for each prompt and seed.")
    seed: Seed | None = knob(None, doc="The same seed gives the same image; 0 if none is given. Or `seeds`.")
    seeds: tuple[Seed, ...] = knob((), doc="One image for each prompt and seed.")
    adapters: dict[str, AdapterWeight] | None = knob(None, doc="Adapter -> weight; `{}` is the base model alone.")
    negative_prompt: str | None = knob(None, doc="What not to draw.")
    resolution: int | None = knob(None, ge=8, le=MOST_PIXELS_SIDE, multiple_of=8, unit="px", doc="Side of the images.")
    sampler: Sampler | None = knob(None, doc="Sampler.")
    inference_steps: int | None = knob(None, ge=1, le=200, unit="sampling steps", doc="Steps of the sampler.")
    guidance_scale: float | None = knob(None, ge=0, le=MOST_GUIDANCE, doc="Classifier-free guidance; up to 1 is off.")
    guidance_rescale: float | None = knob(None, ge=0, le=1, doc="Removes the contrast that guidance adds.")
    eta: float | None = knob(None, ge=0, le=1, doc="Share of fresh noise in each step, for ddim and tcd.")

    def _faults(self) -> Iterator[str]:
        if (self.prompt is None) == (not self.prompts):
            said = "has no value" if self.prompt is None else "cannot be combined with prompts"
            yield f"prompt = {as_typed(self.prompt)}: {said}; give either prompt or prompts"
        if self.seed is not None and self.seeds:
            yield f"seed = {self.seed}: cannot be combined with seeds; give one of the two"

    @property
    def count(self) -> int:
        """How many images are asked for; a list of them might not fit in a machine's memory."""
        return max(1, len(self.prompts)) * max(1, len(self.seeds))

    @property
    def wanted(self) -> list[tuple[str, int]]:
        """(prompt, seed) of each image."""
        prompts = self.prompts or (self.prompt or "",)
        return [(prompt, seed) for prompt in prompts for seed in self.seeds or (self.seed or 0,)]


OBJECT = "should be an object, {...}"


def told(kind: type[Told], raw: object) -> tuple[Told | None, list[str]]:
    """(settings from JSON, or None; what is wrong with it, a line each: key, value, fault, fix)."""
    if not isinstance(raw, Mapping):
        return None, ['should be a JSON object, such as {"prompt": "a photo of a dog"}']
    try:
        return kind.model_validate(raw), []
    except ValidationError as error:
        found = error.errors()
    faults = [line for each in found for line in _lines(kind, each)]
    wrong = {str(each["loc"][0]) for each in found if each["loc"]}
    rest = {key: value for key, value in raw.items() if key not in wrong}
    if len(rest) < len(raw):  # wrong values hide faults between the others
        more = told(kind, rest)[1]
        # The key that a wrong one may have been meant to be is not missing.
        about = wrong.union(*(difflib.get_close_matches(key, kind.model_fields, n=1) for key in wrong))
        faults += [line for line in more if not about & set(re.findall(r"\w+", line))]
    return None, faults


def _lines(kind: type[Settings], fault: ErrorDetails) -> list[str]:
    key, value = ".".join(map(str, fault["loc"])), fault["input"]
    if fault["type"] == "extra_forbidden":
        near = nearest(key, kind.model_fields)
        return [f"{key} = {as_typed(value)}: unknown key{near or '; there are ' + ', '.join(kind.model_fields)}"]
    if fault["type"] == "value_error" and isinstance(value, (Mapping, Settings)):
        # A fault of several keys together: each line names its own.
        return [f"{key}.{line}".removeprefix(".") for line in wanted(fault).splitlines()]
    # In JSON's terms, not Python's.
    said = {"tuple_type": "should be a list", "dict_type": OBJECT, "model_type": OBJECT}.get(fault["type"]) or wanted(
        fault
    )
    return [f"{key} = {as_typed(value)}: {said}" if key else said]
