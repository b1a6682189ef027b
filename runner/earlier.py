"""The adapter that a job starts from (`lora.init_from`): whether it is of the rank and scale that the job asks for.

It may be named by the folder of the job that trained it, which then also says what it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.adapter_file import FIX, AdapterFile, find_adapter, header_of
from runner.errors import SettingsError
from runner.schema import LoraSettings

DOWN = ".lora_A.weight"


def find_earlier(settings: LoraSettings) -> AdapterFile | None:
    """The adapter that a job starts from; None if it starts anew.

    Raises:
        SettingsError: there is none, or it is of another rank or scale than the settings say.
    """
    if settings.init_from is None:
        return None
    earlier = find_adapter(settings.init_from, key="lora.init_from")
    _check_fits(earlier.file, settings, f"lora.init_from = {settings.init_from!r}")
    return earlier


def _check_fits(file: Path, settings: LoraSettings, named: str) -> None:
    header = header_of(file, named)
    ranks = {int(about["shape"][0]) for key, about in header.items() if key.endswith(DOWN)}
    if not ranks:
        raise SettingsError(f"{named}: holds no LoRA under peft's names (...{DOWN}); {FIX}")
    if settings.rank_pattern is None and ranks != {settings.rank}:
        found = ", ".join(map(str, sorted(ranks)))
        fix = f"lora.rank={found}" if len(ranks) == 1 else "lora.rank and lora.rank_pattern as in that training"
        raise SettingsError(f"lora.rank = {settings.rank}: {settings.init_from} has rank {found}; set {fix}")
    config = json.loads(header.get("__metadata__", {}).get("lora_adapter_metadata", "{}"))
    alpha = settings.rank if settings.alpha is None else settings.alpha
    _check_same(settings, "alpha", alpha, _said(config, ".lora_alpha", settings.rank))
    _check_same(settings, "rslora", settings.rslora, _said(config, ".use_rslora", False))
    _check_same(settings, "dora", settings.dora, _said(config, ".use_dora", False))


def _said(config: Mapping[str, Any], ending: str, usual: Any) -> Any:
    """What a file's configuration says of its first component, or what readers take where it says nothing."""
    return next((value for key, value in config.items() if key.endswith(ending)), usual)


def _check_same(settings: LoraSettings, key: str, here: Any, there: Any) -> None:
    if here != there:
        shown = str(there).lower() if isinstance(there, bool) else f"{there:g}"
        raise SettingsError(
            f"lora.{key} = {getattr(settings, key)}: {settings.init_from} was trained with {shown}; set "
            f"lora.{key}={shown}"
        )
