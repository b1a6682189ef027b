"""Drawing for the page: turns a form into pictures, one request at a time, and keeps the last pictures.

Takes the fields of a form as text and returns `Drawn`; the model is loaded on first use.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from runner.errors import SettingsError
from runner.gallery.shelf import BaseModel, Shelf
from runner.schema.drawing import MOST_PIXELS_SIDE, MOST_SEEDS, Seed
from runner.schema.family import sampling_faults
from runner.schema.knob import Settings, knob
from runner.schema.messages import wanted
from runner.schema.training import Sampler

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from runner.studio import Studio

WEIGHT = "weight:"
"""Prefix of the sliders' names, before the path of the adapter's job."""
MOST_WEIGHT = 1.5
MOST_KEPT, MOST_KEPT_BYTES = 200, 1 << 29
"""How many pictures are kept, and how much memory they may take: one of 4096 px takes tens of MB."""
MOST_WAITING = 8
SAMPLERS = tuple(Sampler.__args__)  # type: ignore[attr-defined]


class Asked(Settings):
    """What the form asks for, except for the adapters."""

    prompt: str = knob(min_length=1, max_length=4000, doc="What to draw.")
    negative_prompt: str | None = knob(None, max_length=4000, doc="What not to draw.")
    seed: Seed = knob(0, doc="Of the first image; each further one has the next.")
    images: int = knob(1, ge=1, le=8, doc="How many.")
    steps: int = knob(25, ge=1, le=200, doc="Steps of the sampler.")
    guidance: float = knob(5.0, ge=0, le=30, doc="Classifier-free guidance.")
    guidance_rescale: float = knob(0.0, ge=0, le=1, doc="Takes back the contrast that guidance adds.")
    sampler: Sampler = knob("model", doc="Sampler.")
    size: int = knob(64, ge=8, le=MOST_PIXELS_SIDE, multiple_of=8, doc="Side of the images, in pixels.")
    base: str = knob("", doc="Which base model.")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A picture, and how it was made."""

    number: int
    png: bytes
    asked: Asked
    seed: int
    mix: tuple[tuple[str, str, float], ...]
    """(path of the adapter, its name, its weight)."""
    took_s: float

    @property
    def again(self) -> str:
        """The form fields that reproduce it, as JSON."""
        # The seed is text: a JavaScript number has 53 bits, a seed 64.
        fields = self.asked.model_dump(exclude={"images"}) | {"seed": str(self.seed), "images": 1}
        return json.dumps({"fields": fields, "weights": {path: weight for path, _, weight in self.mix}})


class Easel:
    """Draws for the page."""

    def __init__(self, shelf: Shelf, device: str) -> None:
        self.shelf, self._device = shelf, device
        self.drawn: OrderedDict[int, Drawn] = OrderedDict()
        """The last pictures, by number."""
        self._count = self._inside = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="easel")
        self._studio: tuple[tuple[str, str], Studio] | None = None

    async def draw(self, form: Mapping[str, str]) -> list[Drawn]:
        """Draw the pictures that a form asks for, once it is its turn.

        Raises:
            SettingsError: the form asks for something that is not possible.
        """
        bases = self.shelf.bases()
        if not bases:
            raise SettingsError("there is no completed training to draw with yet")
        asked = _asked(form)
        base = next((each for each in bases if each.key == asked.base), None if asked.base else bases[0])
        if base is None:
            raise SettingsError("the trainings on this base model are no longer here; reload the page")
        if faults := list(sampling_faults(base.settings.family, asked.size, asked.sampler, asked)):
            raise SettingsError("\n".join(faults))
        asked, mix = asked.model_copy(update={"base": base.key}), _mix(form, base)
        if self._inside > MOST_WAITING:
            raise SettingsError(f"{self._inside} drawings are waiting already")
        self._inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._draw, asked, base, mix)
        finally:
            self._inside -= 1

    def _draw(self, asked: Asked, base: BaseModel, mix: list[tuple[str, str, Path, float]]) -> list[Drawn]:
        from runner.train.drawing import Sampling, Wish

        start = time.perf_counter()
        seeds = range(asked.seed, asked.seed + asked.images)
        sampling = Sampling(
            asked.size,
            asked.sampler,
            asked.steps,
            asked.guidance,
            asked.guidance_rescale,
            asked.negative_prompt or None,
        )
        studio = self._studio_of(base, _precision(base, mix))
        studio.check_resolution(asked.size)
        pictures = studio.draw(
            [Wish(f"{seed}.png", asked.prompt, seed) for seed in seeds],
            sampling,
            [(folder, weight) for _, _, folder, weight in mix],
        )
        took_s = (time.perf_counter() - start) / len(pictures)
        named = tuple((path, name, weight) for path, name, _, weight in mix)
        new = []
        for seed, picture in zip(seeds, pictures, strict=True):
            self._count += 1
            drawn = Drawn(number=self._count, png=picture.png, asked=asked, seed=seed, mix=named, took_s=took_s)
            self.drawn[drawn.number] = drawn
            new.append(drawn)
        # The new ones are always kept: the page requests them next.
        while len(self.drawn) > len(new) and (len(self.drawn) > MOST_KEPT or self._kept_bytes > MOST_KEPT_BYTES):
            self.drawn.popitem(last=False)
        return new[::-1]

    @property
    def _kept_bytes(self) -> int:
        return sum(len(drawn.png) for drawn in self.drawn.values())

    def _studio_of(self, base: BaseModel, precision: str) -> Studio:
        """The studio for a base model; replaces one for another model or precision."""
        from runner.studio import Studio
        from runner.train.place import Place

        key = (base.key, precision)
        if self._studio is None or self._studio[0] != key:
            self._studio = None
            gc.collect()  # modules refer to each other and would hold memory that the next model needs
            self._studio = key, Studio(base.settings, precision, Place.here(self._device))  # type: ignore[arg-type]
        return self._studio[1]


def _asked(form: Mapping[str, str]) -> Asked:
    given = {key: value for key, value in form.items() if key in Asked.model_fields and value.strip() != ""}
    try:
        asked = Asked.model_validate(given)
    except ValidationError as error:
        lines = [_line(fault) for fault in error.errors()]
        raise SettingsError("\n".join(lines)) from error
    last = asked.seed + asked.images - 1
    if last >= MOST_SEEDS:
        raise SettingsError(f"seed = {asked.seed}: {asked.images} images need seeds up to {last}; take a smaller one")
    return asked


def _line(fault: ErrorDetails) -> str:
    key = str(fault["loc"][0])
    if fault["type"] == "missing":
        return "Say what to draw." if key == "prompt" else f"{key} is missing"
    return f"{key} = {fault['input']}: {wanted(fault)}"


def _precision(base: BaseModel, mix: list[tuple[str, str, Path, float]]) -> str:
    """The precision in which the first adapter was trained: used alone, it then gives the picture its training drew."""
    said = {usable.path: usable.precision for usable in base.adapters}
    return next(filter(None, (said[path] for path, _, _, _ in mix)), base.precision)


def _mix(form: Mapping[str, str], base: BaseModel) -> list[tuple[str, str, Path, float]]:
    known = {usable.path: usable for usable in base.adapters}
    mix = []
    for key, text in form.items():
        if not key.startswith(WEIGHT):
            continue
        path = key.removeprefix(WEIGHT)
        try:
            weight = float(text)
        except ValueError:
            raise SettingsError(f"weight of {path} = {text!r}: should be a number") from None
        if weight == 0:
            continue
        if not 0 <= weight <= MOST_WEIGHT:
            raise SettingsError(f"weight of {path} = {weight}: should be from 0 to {MOST_WEIGHT}")
        if path not in known:
            raise SettingsError(f"{path}: is not a completed adapter of {base.name} in this folder")
        mix.append((path, known[path].name, known[path].folder, weight))
    return mix
