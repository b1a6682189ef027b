"""Which image containers run."""

from __future__ import annotations

import re

from runner.aws.pushed import last_pushed
from runner.schema.aws import AwsSettings

ECR_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/(?P<name>[^:@]+)"
    r"(?::(?P<tag>[^@]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


def image_of(settings: AwsSettings) -> str | None:
    """The image of the settings, or the last that was pushed from here; None where there is none."""
    return settings.image or last_pushed(settings.region)
