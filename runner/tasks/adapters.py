"""The adapters that a task's settings name: found, compared with the base model, and known by their content."""

from __future__ import annotations

from typing import Any

from runner.adapter_file import AdapterFile, find_adapter
from runner.errors import SettingsError
from runner.schema.tasks.adapters import WithAdapters


def find_adapters(settings: WithAdapters) -> list[AdapterFile]:
    """The named adapters, in their order.

    Raises:
        SettingsError: one is not there, or was trained for a model of another family.
    """
    found, faults = [], []
    for given in settings.adapter:
        try:
            adapter = find_adapter(given, key="adapter", words=True)
        except SettingsError as error:
            faults.append(str(error))
            continue
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


def contents_of(settings: WithAdapters) -> dict[str, Any]:
    """What stands for the adapters in a job's identity."""
    return {"adapters": [adapter.digest for adapter in find_adapters(settings)]}
