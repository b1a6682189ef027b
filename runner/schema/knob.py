"""How a setting is declared: once, with its type, default, unit and one line of meaning."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from runner.system.values import as_typed

VALUES_ALONE: dict[str, Any] = {}
"""Validation context in which each value is checked by itself, and not how values go together."""


class Settings(BaseModel):
    """Base of all groups: frozen, and an undeclared key is an error."""

    # Validators are built when something is first validated: --cfg job only asks for the defaults.
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Make knobs that take numbers reject true and false, which pydantic would take for 1 and 0."""
        super().__pydantic_init_subclass__(**kwargs)
        for field in cls.model_fields.values():
            # Not one validator for all fields: pydantic allows none on the name that tells a group's kinds apart.
            refusal = REFUSALS.get(_kind_of_number(field.annotation))
            if refusal is not None and refusal not in field.metadata:
                field.metadata.append(refusal)

    def faults(self) -> list[str]:
        """What is wrong between values that are each right alone: `key = value: reason; fix` for each fault."""
        return list(self._faults())

    def _faults(self) -> Iterator[str]:
        """These faults, one after the other; a group that checks for some overrides this."""
        yield from ()

    @model_validator(mode="after")
    def _goes_together(self, info: ValidationInfo) -> Self:
        if info.context is not VALUES_ALONE and (faults := self.faults()):
            raise ValueError("\n".join(faults))
        return self

    def chosen(self, *keys: str) -> dict[str, Any]:
        """The settings among `keys`, or among all, that are not at their defaults."""
        fields = type(self).model_fields
        values = {key: getattr(self, key) for key in keys or fields}
        return {
            key: value for key, value in values.items() if value != fields[key].get_default(call_default_factory=True)
        }

    def idle(self, *keys: str, because: str, fix: str = "remove it", where: str = "") -> Iterator[str]:
        """A fault for each of `keys`, or of all settings, that was chosen although it has no effect.

        Args:
            where: prefix of the keys, for callers outside these settings.
        """
        for key, value in self.chosen(*keys).items():
            value = value.chosen() if isinstance(value, Settings) else value
            yield f"{where}{key} = {as_typed(value)}: has no effect {because}; {fix}"


def _kind_of_number(annotation: Any) -> type | None:
    """The kind of number that a knob takes; None if it takes none, or truth values too."""
    kinds = set(kinds_in(annotation))
    if bool in kinds:
        return None
    return next((kind for kind in (float, int) if kind in kinds), None)


def kinds_in(annotation: Any) -> Iterator[Any]:
    """A type, and all that it is made of."""
    yield annotation
    for inner in get_args(annotation):
        yield from kinds_in(inner)


def _refusal(of: str) -> BeforeValidator:
    def refuse(value: object) -> object:
        if isinstance(value, bool):
            raise ValueError(f"should be a {of}, not true or false")
        if isinstance(value, Mapping):
            for key, each in value.items():
                if isinstance(each, bool):
                    raise ValueError(f"{key} = {as_typed(each)}: should be a {of}, not true or false")
        elif isinstance(value, (list, tuple)) and any(isinstance(each, bool) for each in value):
            raise ValueError(f"should hold {of}s, not true or false")
        return value

    return BeforeValidator(refuse)


REFUSALS: dict[type | None, BeforeValidator] = {int: _refusal("whole number"), float: _refusal("number")}


def knob(default: Any = ..., *, doc: str, unit: str = "", identity: bool = True, **limits: Any) -> Any:
    """Declare one setting.

    Args:
        default: its value when nobody chooses; without a default, the configuration must choose.
        doc: what it does, in one sentence.
        unit: the unit of the number, for the reference page.
        identity: False if the value cannot change what a job trains, so that it stays out of the job id.
        limits: pydantic constraints (`ge`, `le`, `pattern`, `min_length`, ...).
    """
    return Field(default, description=doc, json_schema_extra={"unit": unit, "identity": identity}, **limits)


def spelt(pattern: str, wanted: str, such_as: Callable[[str], str]) -> AfterValidator:
    """An annotation for how a text must be spelt; unlike a bare `pattern`, it rejects a text in words.

    Args:
        pattern: a regular expression for the whole text.
        wanted: what it should be, to follow "should be".
        such_as: returns something that can be set instead of a wrong text.
    """

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"should be {wanted}, such as {such_as(text)}")
        return text

    return AfterValidator(check)


def in_a_list(value: object) -> object:
    """A before-validator for a list of texts: a text that stands alone becomes a list of one."""
    return (value,) if isinstance(value, str) else value


def dashed(text: str, longest: int) -> str:
    """The text with dashes for everything but letters and digits; empty if nothing is left."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:longest].rstrip("-")


def section(kind: type[Settings]) -> Any:
    """Declare a group of settings, with its defaults when nobody chooses."""
    return Field(default_factory=kind)
