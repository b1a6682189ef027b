"""Base models that come as archives: unpacked before anything is trained, beside what was sent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.archive import BadArchive, is_archive, lay_out
from runner.errors import SettingsError
from runner.families.files import check_layout
from runner.schema import ModelSettings


def with_open_models(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A configuration in which `model.path` and `model.vae` are folders where they were archives.

    Args:
        raw: with paths of this machine.
        folder: where archives are unpacked, each once; it goes when the container ends.

    Raises:
        SettingsError: an archive is damaged, or holds no model of this family.
    """
    model = dict(raw.get("model") or {})
    for key in ("path", "vae"):
        archive = model.get(key)
        if isinstance(archive, str) and is_archive(archive):
            place = folder / hashlib.sha256(archive.encode()).hexdigest()[:20]
            try:
                model[key] = str(lay_out(Path(archive), place))
            except BadArchive as error:
                raise SettingsError(f"model.{key}: {error}") from error
            if key == "path":
                check_layout(ModelSettings.model_validate(model | {"vae": None}))
    return {**raw, "model": model}
