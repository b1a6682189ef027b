"""Which images were pushed from this machine: what the launcher takes where the settings name none."""

from __future__ import annotations

import json
from pathlib import Path

from runner.paths import cache_dir, write_text


def pushed_file() -> Path:
    """Where they are noted; deleting it loses nothing but the default of `launcher.image`."""
    return cache_dir() / "pushed-images.json"


def note_pushed(region: str, reference: str) -> None:
    """Remember the image that was pushed last in a region."""
    known = _noted()
    known.pop(region, None)
    write_text(pushed_file(), json.dumps(known | {region: reference}, indent=2) + "\n")


def last_pushed(region: str | None) -> str | None:
    """The reference of the image that was pushed last in a region, or anywhere; None where none was."""
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
