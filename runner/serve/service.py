"""What an endpoint draws with: the model and the adapters in a folder, and one thread that uses them.

Takes validated requests and returns pictures; knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from runner.errors import RunnerError, SettingsError
from runner.families.known import FAMILIES
from runner.schema.messages import nearest
from runner.schema.serving import ADAPTERS_FOLDER, SERVE_FILE, Invocation, Serving, told
from runner.studio import Studio
from runner.studio.adapters import find
from runner.train.drawing import Picture, Sampling, Wish
from runner.train.memory import is_full
from runner.train.place import Place

log = logging.getLogger(__name__)

Found = TypeVar("Found")

ASKED = (
    "resolution",
    "sampler",
    "inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "negative_prompt",
    "eta",
)
"""Drawing settings that a request may override; their defaults are in `serve.json`."""


class Busy(Exception):
    """Too many requests are waiting: this one would wait too long."""


class Gone(Exception):
    """Nobody is waiting for the answer any more."""


class Broken(Exception):
    """The GPU no longer computes anything for this process; it may for another one."""


class Service:
    """The model in a folder, used by one request at a time because there is one GPU.

    Args:
        folder: holds `serve.json`, and a folder for each adapter in `adapters`.

    Raises:
        SettingsError: `serve.json` is missing or wrong, or an adapter cannot be read.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.serving = read_serving(folder)
        self.adapters = find_served(folder)
        self._refuse_unknown(self.serving.adapters, SERVE_FILE)
        self._device = device
        self._studio: Studio | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="studio")
        self._inside, self._turn = 0, asyncio.Lock()
        self._is_broken = False

    @property
    def ready(self) -> bool:
        """Whether the model is loaded, and the GPU can be used."""
        return self._studio is not None and not self._is_broken

    async def load(self) -> None:
        """Load the whole model."""

        def load() -> Studio:
            studio = Studio(self.serving.model, self.serving.precision, Place.here(self._device), keep_prompts=False)
            studio.load()
            return studio

        self._studio = await asyncio.get_running_loop().run_in_executor(self._thread, load)
        log.info("%s is loaded; %d adapters", self.serving.model.path, len(self.adapters))

    async def draw(self, wanted: Invocation, *, is_gone: Callable[[], Awaitable[bool]]) -> list[Picture]:
        """Draw the images of a request, once it is its turn.

        Args:
            is_gone: whether the caller has hung up; SageMaker does so after a minute, and its clients then retry.

        Raises:
            Gone: the caller hung up before it was its turn.
            RunnerError: the request asks for something that is not possible.
            Busy: too many requests are waiting already.
            Broken: the GPU has failed: neither this request nor any other can be drawn here.
        """
        studio, serving = self._studio, self.serving
        assert studio is not None
        if wanted.count > serving.most_images:
            raise SettingsError(
                f"prompts, seeds: ask for {wanted.count} images, and this endpoint draws at most {serving.most_images} "
                "in one request; ask for them in several"
            )
        wishes = [Wish(f"{index}.png", prompt, seed) for index, (prompt, seed) in enumerate(wanted.wanted)]
        named = serving.adapters if wanted.adapters is None else wanted.adapters
        self._refuse_unknown(named, "adapters")
        sampling = self.sampling(wanted)
        studio.check_resolution(sampling.resolution)
        mix = [(self.adapters[name], weight) for name, weight in named.items()]
        return await self._in_turn(lambda: studio.draw(wishes, sampling, mix), is_gone)

    def sampling(self, wanted: Invocation) -> Sampling:
        """How the images of a request are drawn.

        Raises:
            SettingsError: the model's family does not support it.
        """
        asked = {key: value for key in ASKED if (value := getattr(wanted, key)) is not None}
        if asked.get("sampler", self.serving.sampler) != self.serving.sampler:
            asked.setdefault("eta", None)  # the one in serve.json is meant for another sampler
        said = self.serving.model_copy(update=asked)
        if faults := said.faults():
            raise SettingsError("\n".join(faults))
        return Sampling(
            said.resolution or said.model.resolution,
            said.sampler,
            said.inference_steps,
            FAMILIES[said.model.family].guidance(said.guidance_scale),
            said.guidance_rescale,
            said.negative_prompt,
            said.eta,
        )

    def _refuse_unknown(self, named: dict[str, float], key: str) -> None:
        for name, weight in named.items():
            if name not in self.adapters:
                there = ", ".join(self.adapters) or "none"
                raise SettingsError(
                    f"{key}.{name} = {weight}: no such adapter{nearest(name, self.adapters)}; there are: {there}"
                )

    async def _in_turn(self, action: Callable[[], Found], is_gone: Callable[[], Awaitable[bool]]) -> Found:
        if self._inside > self.serving.most_waiting:
            raise Busy(f"{self._inside} requests are waiting or at work; try again later")
        self._inside += 1
        try:
            async with self._turn:
                if await is_gone():
                    raise Gone
                return await asyncio.get_running_loop().run_in_executor(self._thread, action)
        except RuntimeError as error:
            if is_full(error) or not _is_of_gpu(error):  # the next one may be drawn
                raise
            self._is_broken = True
            raise Broken(f"the GPU cannot be used any more: {str(error).splitlines()[0]}") from error
        finally:
            self._inside -= 1


def read_serving(folder: Path) -> Serving:
    """The content of `serve.json`; a relative model path is looked up next to it.

    Raises:
        SettingsError: the file is missing or wrong.
    """
    file = folder / SERVE_FILE
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"{file}: is not there; it says which model is served (docs/after-training.md)") from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: cannot be read ({error})") from error
    serving, faults = told(Serving, raw)
    if serving is None:
        raise SettingsError("\n".join(f"{file}: {fault}" for fault in faults))
    beside = folder / serving.model.path
    if beside.exists() and serving.model.path != "embedded":
        model = serving.model.model_copy(update={"path": str(beside.absolute())})
        return serving.model_copy(update={"model": model})
    return serving


def find_served(folder: Path) -> dict[str, Path]:
    """Name -> folder of the adapters that a request may name.

    Raises:
        SettingsError: one of the folders holds no adapter.
    """
    # Editors and file managers leave hidden folders, such as .ipynb_checkpoints.
    found = (folder / ADAPTERS_FOLDER).glob("*")
    places = sorted(each for each in found if each.is_dir() and not each.name.startswith("."))
    faults = []
    for place in places:
        try:
            find(place)
        except RunnerError as error:
            faults.append(str(error))
    if faults:
        raise SettingsError("\n".join(faults))
    return {place.name: place for place in places}


def _is_of_gpu(error: RuntimeError) -> bool:
    """Whether an error means that the GPU has failed; torch has its own class for this since 2.8."""
    return isinstance(error, getattr(torch, "AcceleratorError", ())) or str(error).startswith("CUDA error")
