"""Checks the settings, and finds the content of adapters, ControlNet and its image that counts for the identity."""

from __future__ import annotations

from typing import Any

from runner.data.decode import UnreadableImage, inspect
from runner.errors import SettingsError
from runner.families.files import resolution_faults
from runner.families.layout import CONFIG, part_faults
from runner.families.prediction import sampler_faults
from runner.hub import hub_faults
from runner.paths import path_of
from runner.schema.reading import IsRight, all_right
from runner.schema.tasks.generate import NO_PROMPT, Generate
from runner.system.hashes import file_hash, folder_hash
from runner.tasks.adapters import adapter_faults, contents_of


def check(settings: Generate) -> dict[str, Any]:
    """See `runner.tasks`."""
    if found := faults(settings, all_right):
        raise SettingsError("\n".join(found))
    contents, control = contents_of(settings), settings.control
    if control.image is not None:
        contents["control"] = file_hash(path_of(control.image))
    if control.path is not None and (folder := path_of(control.path)).is_dir():
        contents["controlnet"] = folder_hash(folder)
    return contents


def faults(settings: Generate, is_right: IsRight) -> list[str]:
    """See `runner.tasks`."""
    found = resolution_faults(settings.model, settings.resolution) if is_right("model", "resolution") else []
    found += sampler_faults(settings.model, settings.scheduler.name) if is_right("model", "scheduler.name") else []
    # The schema only sees prompts that are given, and with ~prompts or task.name=generate there are none.
    found += [f"prompts = []: {NO_PROMPT}"] if not settings.prompts and is_right("prompts") else []
    found += adapter_faults(settings, is_right)
    control = settings.control
    found += _image_faults(control.image) if control.image is not None and is_right("control.image") else []
    found += _network_faults(control.path) if control.path is not None and is_right("control.path") else []
    return found


def _image_faults(given: str) -> list[str]:
    image, said = path_of(given), f"control.image = {given!r}"
    if not image.is_file():
        return [f"{said}: is not a file; give the image to follow"]
    try:
        found = inspect(image.read_bytes())
    except (OSError, UnreadableImage) as error:
        return [f"{said}: cannot be read as an image ({error}); give the image to follow"]
    if found.width_px != found.height_px:  # the pipeline would stretch it
        return [f"{said}: is {found.width_px} x {found.height_px}, and what is drawn is square; cut it to a square"]
    return []


def _network_faults(given: str) -> list[str]:
    folder = path_of(given)
    if not folder.is_dir():
        return hub_faults("control.path", given, CONFIG, None, ask=True, lacks=part_faults)
    said = f"control.path = {given!r}"
    if not (folder / CONFIG).is_file():
        why = f"the folder has no {CONFIG}, so it is not a ControlNet in diffusers layout"
        return [f"{said}: {why}; name the folder that save_pretrained wrote"]
    return [f"{said}: {reason}" for reason in part_faults(folder)]
