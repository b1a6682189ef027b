"""Draws what is asked for and not there yet, a few images at a time, and puts all of them on one sheet."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.errors import Interrupted
from runner.families.control import Control
from runner.paths import JobPaths, atomic_file, write_text
from runner.schema.drawing import DrawingSettings
from runner.schema.tasks.generate import Generate
from runner.studio import contact_sheet
from runner.tasks.adapters import find_adapters
from runner.tasks.drawing import sampling_of
from runner.tasks.studios import studio_of
from runner.train.drawing import Sampling, Wish, write_pictures
from runner.train.place import Place

log = logging.getLogger(__name__)

IMAGES_PER_LOOK = 8
"""Written at once, so that little is lost when the process is killed."""


def work(settings: Generate, paths: JobPaths, place: Place, *, stop: Callable[[], bool]) -> dict[str, Any]:
    """As `runner.tasks` says; images that are there are not drawn again.

    Raises:
        Interrupted: a signal asked to stop; what was drawn stays.
    """
    wishes, folder = wishes_of(settings), paths.samples_at(0)
    left = [wish for wish in wishes if not (folder / wish.name).is_file()]
    write_text(paths.prompts, json.dumps(_about(settings), indent=2) + "\n")
    adapters = [
        (adapter.place, weight) for adapter, (_, weight) in zip(find_adapters(settings), settings.weighted, strict=True)
    ]
    sampling = _sampling(settings)
    for start in range(0, len(left), IMAGES_PER_LOOK):
        if stop():
            raise Interrupted(f"stopped after {len(wishes) - len(left) + start} of {len(wishes)} images")
        studio = studio_of(settings.model, settings.precision, place)
        write_pictures(studio.draw(left[start : start + IMAGES_PER_LOOK], sampling, adapters), folder)
        log.info("%d of %d images", len(wishes) - len(left) + min(start + IMAGES_PER_LOOK, len(left)), len(wishes))
    shown = [(wish.prompt, folder / wish.name) for wish in wishes]
    with atomic_file(paths.sheet) as temporary:
        temporary.write_bytes(contact_sheet(shown, columns=len(settings.seeds)))
    log.info("%s", paths.sheet)
    return {"images": len(wishes), "drawn": len(left)}


def _about(settings: Generate) -> dict[str, Any]:
    """What the images were drawn from, as beside the samples of a training."""
    drawing = {key: getattr(settings, key) for key in DrawingSettings.model_fields}
    return {"prompts": list(settings.prompts), **drawing, "scheduler": settings.scheduler.name}


def wishes_of(settings: Generate) -> list[Wish]:
    """Every prompt with every seed, named as the samples of a training are."""
    return [
        Wish(f"p{index:02d}-s{seed}.png", prompt, seed)
        for index, prompt in enumerate(settings.prompts)
        for seed in settings.seeds
    ]


def _sampling(settings: Generate) -> Sampling:
    """How the images are drawn, and what they follow."""
    control, sampling = settings.control, sampling_of(settings)
    if control.path is None or control.image is None:
        return sampling
    network = Path(control.path).expanduser()
    path = str(network) if network.is_dir() else control.path
    followed = Control(Path(control.image).expanduser(), path, control.scale)
    return dataclasses.replace(sampling, control=followed)
