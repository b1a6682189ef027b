"""Which image jobs run in."""

from __future__ import annotations

from runner.image.pushed import last_pushed
from runner.schema import SageMakerLauncher


def image_of(settings: SageMakerLauncher) -> str | None:
    """The image of the settings, or the last that was pushed from here; None where there is none."""
    return settings.image or last_pushed(settings.region)
