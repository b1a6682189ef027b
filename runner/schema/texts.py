"""Texts in a configuration that cannot be intended: secrets, values still to be filled in, broken characters."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from runner.errors import SettingsError
from runner.schema.reading import without
from runner.system.printable import whole

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
SECRET_MIN_LENGTH = 8
MISSING = "???"
"""How YAML marks a value that the user must give."""


def readable(raw: Mapping[str, Any]) -> tuple[list[str], dict[str, Any], list[str]]:
    """(a line for each text that cannot be intended, the configuration without them, their keys).

    Raises:
        SettingsError: it holds a secret, which no further check may be given.
    """
    if faults := secret_faults(raw):
        raise SettingsError("\n".join(faults))
    texts = list(_strings(raw, ""))
    faults = [f"{key}: has no value; set {key}=..." for key, text in texts if text == MISSING]
    faults += [
        f"{key} = {text!r}: contains what is not UTF-8; type it again, in a terminal with a UTF-8 locale"
        for key, text in texts
        if whole(text) != text
    ]
    if not faults:
        return [], dict(raw), []
    # A list is set as a whole.
    keys = [key.partition("[")[0] for key, text in texts if text == MISSING or whole(text) != text]
    return faults, *without(raw, keys)


def secret_faults(raw: Mapping[str, Any]) -> list[str]:
    """A line for every value that holds the content of a secret-looking environment variable."""
    secrets = {
        value: name
        for name, value in os.environ.items()
        # The path of a key is no secret; a value that only looks like a path may be one: AWS's may begin with a slash.
        if SECRET_NAME.search(name) and len(value) >= SECRET_MIN_LENGTH and not os.path.exists(value)
    }
    return [
        f"{key}: holds the value of the environment variable {name}; remove it"
        for key, text in _strings(raw, "")
        for value, name in secrets.items()
        if value in text
    ]


def _strings(node: object, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, Mapping):
        for name, child in node.items():
            yield from _strings(child, f"{key}.{name}" if key else str(name))
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from _strings(child, f"{key}[{index}]")
