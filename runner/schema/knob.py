"""How a setting is written down: once, with its type, default, unit and one line of meaning."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Base of all groups: frozen, and a key that is not declared is an error."""

    # Validators are built when something is first validated: --cfg job only asks for the defaults.
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )


def default_of(settings: Settings, key: str) -> object:
    """The declared default of one knob."""
    return type(settings).model_fields[key].default


def knob(default: Any = ..., *, doc: str, unit: str = "", identity: bool = True, **limits: Any) -> Any:
    """Declare one setting.

    Args:
        default: its value when nobody chooses; none given means that the configuration must choose.
        doc: what it does, in one sentence.
        unit: the unit of the number, for the reference page.
        identity: False where the value cannot change what a job trains, so that it stays out of the job id.
        limits: pydantic constraints (`ge`, `le`, `pattern`, `min_length`, ...).
    """
    return Field(default, description=doc, json_schema_extra={"unit": unit, "identity": identity}, **limits)


def section(kind: type[Settings]) -> Any:
    """Declare a group of settings, at its defaults when nobody chooses."""
    return Field(default_factory=kind)
