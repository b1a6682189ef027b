"""From a resolved configuration to settings, or to everything that is wrong with it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from runner.schema.defaults import variants_of
from runner.schema.experiment import GROUPS
from runner.schema.knob import VALUES_ALONE
from runner.schema.messages import explain

S = TypeVar("S", bound=BaseModel)

IsRight = Callable[..., bool]
"""Takes keys; returns whether their values are what was typed, and not what stands in for wrong ones."""

SUBJECT = re.compile(r"[\w.]+(?= = |: )")
"""The key that a fault is about, at the beginning of its line."""


def read(kind: type[S], raw: Mapping[str, Any]) -> tuple[S | None, list[str]]:
    """(the settings, or None; a line for each fault); see `read_most`."""
    settings, faults, _ = read_most(kind, raw)
    return None if faults else settings, faults


def read_most(
    kind: type[S], raw: Mapping[str, Any], *, unset: Sequence[str] = ()
) -> tuple[S | None, list[str], list[str]]:
    """(the settings, a line for each fault, the keys that these are about).

    Pydantic compares groups with each other only if each is valid by itself. Here a wrong value does not hide what is
    wrong elsewhere: the rest is validated again without it. If there are faults, the settings have defaults in place of
    the wrong values, or are None if that is not possible.

    Args:
        unset: keys that were reported already, and for which `raw` has no values.
    """
    rest, faults, left_out, is_first = copy.deepcopy(dict(raw)), list[str](), list(unset), True
    while True:
        try:
            return kind.model_validate(rest), faults, left_out
        except ValidationError as error:
            lines, within = explain(error, rest), {str(fault["loc"][0]) for fault in error.errors() if fault["loc"]}
        if not within or is_first:  # what a group lacks once its wrong values are gone is of no interest
            faults += [line for line in lines if not _mentions(line, left_out)]
        is_first = False
        wrong = [match[0] for line in lines if (match := SUBJECT.match(line))]
        if not within:
            return kind.model_validate(rest, context=VALUES_ALONE), faults, [*left_out, *wrong]
        gone = [key for key in map(partial(_leave_out, rest), wrong) if key]
        gone = gone or [key for key in map(partial(_leave_out, rest), within) if key]
        if not gone:
            return None, faults, left_out
        left_out += gone


def all_right(*_: str) -> bool:
    """An `IsRight` for settings without faults."""
    return True


def without(raw: Mapping[str, Any], keys: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """(a copy without values for these keys, the keys that were removed)."""
    rest = copy.deepcopy(dict(raw))
    return rest, [gone for key in keys if (gone := _leave_out(rest, key))]


def _leave_out(raw: dict[str, Any], key: str) -> str | None:
    """Remove a value so that its default applies; the key of what was removed, or None if there was nothing."""
    *holders, last = key.split(".")
    if last == "name" and holders and holders[0] in GROUPS and "" not in variants_of(holders[0]):
        last = holders.pop()  # without its kind a group has no settings
    holder: Any = raw
    for place, name in enumerate(holders):
        inner = holder.get(name)
        if not isinstance(inner, dict):  # a list is left out as a whole, and so is a value with nothing below it
            holders, last = holders[:place], name
            break
        holder = inner
    if last not in holder:
        return None
    del holder[last]
    return ".".join([*holders, last])


def _mentions(line: str, keys: Sequence[str]) -> bool:
    """Whether a fault is about one of these keys, or follows from the default that stood in for it."""
    said = line.partition("did you mean")[0]
    return any(re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", said) for key in keys)
