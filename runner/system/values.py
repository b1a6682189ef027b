"""Values of settings as a person would type them, on the command line or in YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PLAIN = re.compile(r"[A-Za-z_/.][\w./@+: -]*", re.ASCII)
"""Text that needs no quotes in a list, unless YAML takes it for something else."""


def as_typed(value: Any) -> str:
    """A value in a message: null, true, 0.5, 'text', [a, b] or {a: 1}; a text inside has quotes if it needs them."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_inside(key)}: {_inside(each)}' for key, each in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_inside(each) for each in value)}]"
    return repr(value)


def _inside(value: Any) -> str:
    import yaml  # missing where only an image is built, which shows no such values

    is_plain = isinstance(value, str) and PLAIN.fullmatch(value) and yaml.safe_load(value) == value
    return value if is_plain else as_typed(value)
