"""From a resolved configuration to settings, or to everything that is wrong with it."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from runner.schema.experiment import GROUPS
from runner.schema.messages import explain

S = TypeVar("S", bound=BaseModel)

SUBJECT = re.compile(r"[\w.]+(?= = |: )")
"""The key that a fault is about, at the beginning of its line."""


def read(kind: type[S], raw: Mapping[str, Any]) -> tuple[S | None, list[str]]:
    """(the settings, or None; a line for each fault).

    Pydantic compares groups with each other only where each is right by itself. Here a wrong value does not hide what
    is wrong elsewhere: the rest is looked at once more without it.
    """
    rest, faults, left_out = copy.deepcopy(dict(raw)), list[str](), list[str]()
    while True:
        try:
            settings = kind.model_validate(rest)
        except ValidationError as error:
            lines, within = explain(error, rest), {str(fault["loc"][0]) for fault in error.errors() if fault["loc"]}
        else:
            return None if faults else settings, faults
        if not within or not left_out:  # what a group lacks without its wrong values is of no interest
            faults += [line for line in lines if not _mentions(line, left_out)]
        if not within:
            return None, faults
        wrong = [match[0] for line in lines if (match := SUBJECT.match(line))]
        gone = [key for key in map(partial(_leave_out, rest), wrong) if key]
        gone = gone or [key for key in map(partial(_leave_out, rest), within) if key]
        if not gone:
            return None, faults
        left_out += gone


def _leave_out(raw: dict[str, Any], key: str) -> str | None:
    """Remove a value, so that there is a default for it; the key of what is gone, or None where nothing was."""
    *holders, last = key.split(".")
    if last == "name" and holders and holders[0] in GROUPS:
        last = holders.pop()  # without a kind there are no settings of it
    holder: Any = raw
    for place, name in enumerate(holders):
        inner = holder.get(name)
        if not isinstance(inner, dict):  # a list is left out as a whole, and so is a value that has nothing below it
            holders, last = holders[:place], name
            break
        holder = inner
    if last not in holder:
        return None
    del holder[last]
    return ".".join([*holders, last])


def _mentions(line: str, keys: Sequence[str]) -> bool:
    """Whether a fault is about one of these, or follows from it: in place of each there was a default."""
    return any(re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", line) for key in keys)
