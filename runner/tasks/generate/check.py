"""What is wrong with the settings, and what counts of the adapters' content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.errors import SettingsError
from runner.families.files import file_hash, resolution_faults
from runner.schema.tasks.generate import Generate
from runner.tasks.adapters import contents_of


def check(settings: Generate) -> dict[str, Any]:
    """As `runner.tasks` says."""
    faults = resolution_faults(settings.model, settings.resolution)
    contents: dict[str, Any] = {}
    try:
        contents = contents_of(settings)
    except SettingsError as error:
        faults += str(error).splitlines()
    if settings.control.image is not None:
        image = Path(settings.control.image).expanduser()
        if not image.is_file():
            faults.append(f"control.image = {settings.control.image!r}: is no file; give the image to follow")
        else:
            contents["control"] = file_hash(image)
    if faults:
        raise SettingsError("\n".join(faults))
    return contents
