"""Checks the settings, and finds the content of the adapters that counts for the identity."""

from __future__ import annotations

from typing import Any

from runner.errors import SettingsError
from runner.families.known import FAMILIES
from runner.jobs.adapter_file import AdapterFile, is_dora
from runner.schema.reading import IsRight, all_right
from runner.schema.tasks.merge import Merge
from runner.tasks.adapters import contents_of, find_adapters, is_words_alone, weight_faults_of_dora


def check(settings: Merge) -> dict[str, Any]:
    """See `runner.tasks`."""
    if found := faults(settings, all_right):
        raise SettingsError("\n".join(found))
    return contents_of(settings)


def faults(settings: Merge, is_right: IsRight) -> list[str]:
    """See `runner.tasks`."""
    if not is_right("model"):
        return []
    wrong = _of_the_family(settings) if is_right("output") else []
    if not is_right("adapter"):
        return wrong
    try:
        adapters = find_adapters(settings)
    except SettingsError as error:
        return [*wrong, *str(error).splitlines()]
    for given, found in zip(settings.adapter, adapters, strict=True):
        wrong += _words_faults(given, found)
        if not found.words and is_dora(found.file, f"adapter = {given!r}"):
            wrong += _dora_faults(settings, given, is_right)
    return wrong


def _of_the_family(settings: Merge) -> list[str]:
    family = settings.model.family
    if settings.output != "single_file" or FAMILIES[family].original_layout:
        return []
    said = f"only Stable Diffusion 1.x and XL are written so, and model.family is {family}; take output=folder"
    return [f"output = 'single_file': {said}"]


def _words_faults(given: str, found: AdapterFile) -> list[str]:
    """Why an adapter that was taught words cannot be merged."""
    if not found.words:
        said = "is a new word, which is not weights of layers; there is nothing else in it to merge"
        return [f"adapter = {given!r}: {said}"] if is_words_alone(found) else []
    words = ", ".join(file.stem for file in found.words)
    fix = f"to merge its layers alone, name {found.file}, and keep the words' files beside"
    fix = fix if found.file not in found.words else "there is nothing else in it to merge"
    return [f"adapter = {given!r}: was taught words ({words}), which are not weights of layers; {fix}"]


def _dora_faults(settings: Merge, given: str, is_right: IsRight) -> list[str]:
    """What cannot be done with a DoRA, as far as these settings are right."""
    faults = []
    if len(settings.adapter) > 1:
        faults.append(f"adapter = {given!r}: is a DoRA, which cannot be put together with others; merge it alone")
    if is_right("adapter_weight"):
        faults += weight_faults_of_dora(given, dict(settings.weighted)[given])
    if is_right("output") and settings.output == "adapter":
        faults.append(f"output = 'adapter': {given} is a DoRA, which cannot be reduced; take output=folder")
    return faults
