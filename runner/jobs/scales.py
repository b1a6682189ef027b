"""What an adapter's files say about its scales, in peft's format; without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from runner.errors import SettingsError
from runner.schema.training import matches_layer
from runner.system.tensor_file import METADATA, config_of_peft
from runner.system.values import as_typed

Config = Mapping[str, Any]
"""peft's configuration of an adapter on one component."""

TAKEN_FROM_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Prefixes of peft's initializations that take an adapter's initial weights out of its base."""


def configs_in(file: Path, metadata: Mapping[str, str], *, denoiser: str = "") -> dict[str, Config]:
    """Component -> its configuration, which diffusers keeps in a file's metadata and peft in a file beside its own.

    Args:
        denoiser: the name of the component that such a file of peft's applies to.

    Raises:
        SettingsError: they are damaged, or what was trained is not a sum of the base and the adapter.
    """
    if beside := config_of_peft(file):
        return {denoiser: _checked(file, beside.name, _object(file, beside.name, beside.read_bytes()))}
    configs: dict[str, dict[str, Any]] = {}
    for key, value in _object(file, METADATA, metadata.get(METADATA, "{}")).items():
        component, _, name = key.partition(".")
        configs.setdefault(component, {})[name] = value
    return {component: _checked(file, METADATA, config) for component, config in configs.items()}


def alpha_in(config: Config, names: Iterable[str]) -> float | None:
    """Alpha of a layer known by these names; None if the configuration has none."""
    listed = list(names)
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    found = (alpha for key, alpha in patterns.items() if any(matches_layer(key, name) for name in listed))
    own = next(found, None)
    return config.get("lora_alpha") if own is None else own


def _object(file: Path, said_in: str, text: str | bytes) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{file}: its {said_in} is damaged ({error})") from error
    if not isinstance(said, dict):
        raise SettingsError(f"{file}: its {said_in} is damaged (no settings, but {str(said)[:40]!r})")
    return said


def _checked(file: Path, said_in: str, config: dict[str, Any]) -> Config:
    if wrong := _damage(config):
        raise SettingsError(f"{file}: its {said_in} is damaged ({wrong})")
    start = config.get("init_lora_weights")
    if str(start).lower().startswith(TAKEN_FROM_THE_BASE):
        raise SettingsError(
            f"{file}: starts as a part of its base (init_lora_weights = {start!r}), which it does not add to but takes "
            "the place of; save it as a LoRA with path_initial_model_for_weight_conversion of peft's save_pretrained"
        )
    return config


def _damage(config: Config) -> str:
    """Why a configuration does not determine the scales of layers; empty if it does."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        return f"alpha_pattern = {as_typed(patterns)}"
    for key, alpha in {"lora_alpha": config.get("lora_alpha"), **patterns}.items():
        if alpha is not None and not isinstance(alpha, (int, float)):
            return f"{key} = {as_typed(alpha)}"
        try:
            re.compile(key)
        except re.error as error:
            return f"{key} is not a regular expression: {error}"
    return ""
