"""Checks the settings, and finds the content of the adapters that counts for the identity."""

from __future__ import annotations

from typing import Any

from runner.errors import SettingsError
from runner.families.known import FAMILIES
from runner.jobs.adapter_file import AdapterFile, is_dora
from runner.schema.tasks.merge import Merge
from runner.tasks.adapters import contents_of, find_adapters, weight_faults_of_dora


def check(settings: Merge) -> dict[str, Any]:
    """See `runner.tasks`."""
    faults, adapters = [], list[AdapterFile]()
    if settings.output == "single_file" and not FAMILIES[settings.model.family].original_layout:
        faults.append(
            f"output = 'single_file': only Stable Diffusion 1.x and XL are written so, and model.family is "
            f"{settings.model.family}; take output=folder"
        )
    try:
        adapters = find_adapters(settings)
    except SettingsError as error:
        faults += str(error).splitlines()
    for found, (given, weight) in zip(adapters, settings.weighted, strict=False):  # no adapters if one was not found
        if found.words:
            words = ", ".join(file.stem for file in found.words)
            fix = f"to merge its layers alone, name {found.file}, and keep the words' files beside"
            fix = fix if found.file not in found.words else "there is nothing else in it to merge"
            faults.append(f"adapter = {given!r}: was taught words ({words}), which are not weights of layers; {fix}")
            continue
        if not is_dora(found.file, f"adapter = {given!r}"):
            continue
        if len(settings.adapter) > 1:
            faults.append(f"adapter = {given!r}: is a DoRA, which cannot be put together with others; merge it alone")
        faults += weight_faults_of_dora(given, weight)
        if settings.output == "adapter":
            faults.append(f"output = 'adapter': {given} is a DoRA, which cannot be reduced; take output=folder")
    if faults:
        raise SettingsError("\n".join(faults))
    return contents_of(settings)
