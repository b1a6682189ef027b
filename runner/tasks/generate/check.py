"""What is wrong with the settings, and what counts of the adapters' content."""

from __future__ import annotations

from typing import Any

from runner.errors import SettingsError
from runner.families.files import resolution_faults
from runner.schema.tasks.generate import Generate
from runner.tasks.adapters import contents_of


def check(settings: Generate) -> dict[str, Any]:
    """As `runner.tasks` says."""
    if faults := resolution_faults(settings.model, settings.resolution):
        raise SettingsError("\n".join(faults))
    return contents_of(settings)
