"""Draws the missing images, a few at a time, and puts all of them on one sheet."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from runner.errors import Interrupted
from runner.families.control import Control
from runner.paths import JobPaths, atomic_file, path_of
from runner.schema.tasks.generate import Generate
from runner.studio import contact_sheet
from runner.tasks.adapters import find_adapters
from runner.tasks.studios import studio_of
from runner.train.drawing import Sampling, wishes_of, write_pictures, write_prompts
from runner.train.place import Place

log = logging.getLogger(__name__)

IMAGES_PER_LOOK = 8
"""Drawn and then written together; few, so that little is lost when the process is killed."""


def work(settings: Generate, paths: JobPaths, place: Place, *, stop: Callable[[], bool]) -> dict[str, Any]:
    """See `runner.tasks`; existing images are not drawn again.

    Raises:
        Interrupted: a signal asked to stop; what was drawn stays.
    """
    wishes, folder = wishes_of(settings.prompts, settings.seeds), paths.samples_at(0)
    left = [wish for wish in wishes if not (folder / wish.name).is_file()]
    write_prompts(paths, settings.prompts, settings, settings)
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


def _sampling(settings: Generate) -> Sampling:
    """How the images are drawn, and what they follow."""
    control, sampling = settings.control, Sampling.of(settings, settings)
    if control.path is None or control.image is None:
        return sampling
    network = path_of(control.path)
    path = str(network) if network.is_dir() else control.path
    followed = Control(path_of(control.image), path, control.scale)
    return dataclasses.replace(sampling, control=followed)
