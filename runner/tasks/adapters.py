"""The adapters named in a task's settings: found, checked against the base model, and identified by their content."""

from __future__ import annotations

import re
from typing import Any

from runner.errors import SettingsError
from runner.jobs.adapter_file import FIX, AdapterFile, find_adapter, header_of, is_dora
from runner.schema.reading import IsRight
from runner.schema.tasks.adapters import WithAdapters
from runner.system.tensor_file import TOKEN

OF_LORA = re.compile(r"[._]lora[._]")
"""In the names of a LoRA's tensors, whoever wrote the file; LoHa, LoKr and base models lack it."""


def find_adapters(settings: WithAdapters) -> list[AdapterFile]:
    """The named adapters, in the order given.

    Raises:
        SettingsError: one does not exist, holds no LoRA, or was trained for a model of another family.
    """
    found, faults = [], []
    for given in settings.adapter:
        try:
            adapter = find_adapter(given, key="adapter", words=True)
        except SettingsError as error:
            faults.append(str(error))
            continue
        faults += _kind_faults(adapter, f"adapter = {given!r}")
        family = settings.model.family if adapter.job is None else adapter.job.settings.model.family
        if family != settings.model.family:
            faults.append(
                f"adapter = {given!r}: was trained for a model of the family {family}, and model.family is "
                f"{settings.model.family}; choose that model, or leave model to the adapter"
            )
        found.append(adapter)
    if faults:
        raise SettingsError("\n".join(faults))
    return found


def _kind_faults(found: AdapterFile, named: str) -> list[str]:
    header = header_of(found.file, named)
    if TOKEN in header.metadata or any(map(OF_LORA.search, header.tensors)):
        return []
    said = f"tensors such as {min(header.tensors)}" if header.tensors else "nothing"
    return [f"{named}: holds {said}, and no LoRA; {FIX}"]


def adapter_faults(settings: WithAdapters, is_right: IsRight) -> list[str]:
    """Why the named adapters cannot be used, and not with their weights, one reason per line."""
    if not is_right("adapter", "model"):
        return []
    try:
        if is_right("adapter_weight"):
            return mix_faults(settings)
        find_adapters(settings)
    except SettingsError as error:
        return str(error).splitlines()
    return []


def mix_faults(settings: WithAdapters) -> list[str]:
    """Why the named adapters cannot be used with their weights, one reason per line.

    Adapters of weight 0 are ignored.

    Raises:
        SettingsError: one does not exist, or was trained for a model of another family.
    """
    named = zip(settings.weighted, find_adapters(settings), strict=True)
    used = [(given, weight, found) for (given, weight), found in named if weight != 0]
    brought: dict[str, str] = {}
    faults, layered = [], 0
    for given, _, found in used:
        words = _words_of(found)
        faults += [
            f"adapter = {given!r}: brings the word {word}, and so does {brought[word]}; leave out one of the two"
            for word in words
            if word in brought
        ]
        brought |= dict.fromkeys(words, given)
        layered += not is_words_alone(found)
    for given, weight, found in used:
        if is_words_alone(found):
            # A single weight for all adapters may be meant for the others.
            if weight != 1 and (len(settings.adapter_weight) > 1 or not layered):
                faults.append(f"adapter_weight = {weight:g}: has no effect on {given}, which is words alone; give it 1")
        elif is_dora(found.file, f"adapter = {given!r}"):
            if layered > 1:
                faults.append(f"adapter = {given!r}: is a DoRA, which cannot be put together with others; use it alone")
            faults += weight_faults_of_dora(given, weight)
    return faults


def weight_faults_of_dora(given: str, weight: float) -> list[str]:
    """A fault unless the weight of a DoRA is 1: halving its magnitudes does not halve its effect."""
    return [f"adapter_weight = {weight:g}: {given} is a DoRA, which can only have the weight 1"] if weight != 1 else []


def _words_of(found: AdapterFile) -> list[str]:
    """The new words that the adapter brings."""
    said = [header_of(file, str(file)).metadata.get(TOKEN) for file in dict.fromkeys((*found.words, found.file))]
    return [word for word in said if word is not None]


def is_words_alone(found: AdapterFile) -> bool:
    """Whether it has no layers, only new words."""
    return TOKEN in header_of(found.file, str(found.file)).metadata


def contents_of(settings: WithAdapters) -> dict[str, Any]:
    """What represents the adapters in a job's identity."""
    return {"adapters": [adapter.digest for adapter in find_adapters(settings)]}
