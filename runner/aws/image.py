"""Which image containers run."""

from __future__ import annotations

from runner.aws.pushed import last_pushed
from runner.schema.aws import AwsSettings


def image_of(settings: AwsSettings) -> str | None:
    """The image of the settings, or the last that was pushed from here; None where there is none."""
    return settings.image or last_pushed(settings.region)
