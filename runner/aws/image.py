"""Which image containers run: the one in the settings, or the one last pushed from this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

from runner.paths import cache_dir, write_text
from runner.schema.aws import AwsSettings

REGISTRY = re.compile(r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?")
"""The host of an account's images."""
ECR_IMAGE = re.compile(REGISTRY.pattern + r"/(?P<name>[^:@]+)(?::(?P<tag>[^@]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?")


def image_of(settings: AwsSettings) -> str | None:
    """The image in the settings, or the one last pushed from here; None if there is neither."""
    return settings.image or last_pushed(settings.region)


def pushed_file() -> Path:
    """The record of pushed images; deleting it loses only the default of `launcher.image`."""
    return cache_dir() / "pushed-images.json"


def note_pushed(region: str, reference: str) -> None:
    """Record the image that was last pushed in a region."""
    known = _noted()
    known.pop(region, None)
    write_text(pushed_file(), json.dumps(known | {region: reference}, indent=2) + "\n")


def last_pushed(region: str | None) -> str | None:
    """The reference of the image last pushed in a region, or in any; None if none was pushed."""
    known = _noted()
    if region is not None:
        return known.get(region)
    return next(reversed(known.values()), None)


def _noted() -> dict[str, str]:
    try:
        found = json.loads(pushed_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
