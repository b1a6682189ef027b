"""Checks the settings, the adapter, and the permissions on the Hub."""

from __future__ import annotations

from typing import Any

from runner.errors import SettingsError
from runner.families.known import FAMILIES
from runner.hub import is_hub_id
from runner.jobs.adapter_file import AdapterFile, is_dora
from runner.schema.reading import IsRight, all_right
from runner.schema.tasks.export import Export
from runner.system.values import as_typed
from runner.tasks.adapters import contents_of, find_adapters, is_words_alone, weight_faults_of_dora
from runner.tasks.export.hub import hub_faults


def check(settings: Export) -> dict[str, Any]:
    """See `runner.tasks`."""
    if found := faults(settings, all_right):
        raise SettingsError("\n".join(found))
    return contents_of(settings)


def faults(settings: Export, is_right: IsRight) -> list[str]:
    """See `runner.tasks`."""
    wrong = _of_the_family(settings) if is_right("model", "formats") else []
    if is_right("model", "adapter"):
        try:
            (found,) = find_adapters(settings)
            wrong += _format_faults(settings, found, is_right)
        except SettingsError as error:
            wrong += str(error).splitlines()
    if settings.hub.push and is_right("hub", "model"):
        if base_model(settings) is None:
            wrong.append(
                f"hub.base_model: has no value, and model.path = {settings.model.path!r} is not a Hub id; set "
                "hub.base_model=owner/name, which the card names"
            )
        wrong += hub_faults(settings.hub)
    return wrong


def base_model(settings: Export) -> str | None:
    """The base's id on the Hub, if the settings give it."""
    if settings.hub.base_model is not None:
        return settings.hub.base_model
    path = settings.model.path
    return path if is_hub_id(path) else None


def _of_the_family(settings: Export) -> list[str]:
    """Chosen formats that no adapter for such a model can have."""
    if FAMILIES[settings.model.family].original_layout or "kohya_alpha" not in settings.formats:
        return []
    said = (
        f"formats = {as_typed(settings.formats)}: no program reads alpha tensors of a {settings.model.family} adapter; "
    )
    return [said + "take kohya"]


def _format_faults(settings: Export, found: AdapterFile, is_right: IsRight) -> list[str]:
    """Chosen formats, and changes, that are not possible for this adapter."""
    given, faults = settings.adapter[0], list[str]()
    weight = settings.weighted[0][1] if is_right("adapter_weight") else 1
    reduced = [key for key in ("rank", "keep_energy") if getattr(settings, key) is not None and is_right(key)]
    if found.file in found.words:
        chosen = filter(is_right, ("rank", "keep_energy", "adapter_weight", "formats"))
        return list(settings.idle(*chosen, because=f"on {given}, which is words alone"))
    if is_words_alone(found):
        return [f"adapter = {given!r}: is a new word, not weights of layers; name the folder of its job to export it"]
    if not is_dora(found.file, f"adapter = {given!r}"):
        return faults
    if set(settings.formats) != {"diffusers"} and is_right("formats"):
        faults.append(
            f"formats = {as_typed(settings.formats)}: {given} is a DoRA, which other programs read differently from "
            "how it is trained; set formats=[diffusers]"
        )
    faults += weight_faults_of_dora(given, weight)
    faults += [
        f"{key} = {getattr(settings, key)}: {given} is a DoRA, which cannot be reduced; remove it" for key in reduced
    ]
    return faults
