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
PATHS = (
    "path", "config", "vae", "class_data_dir", "init_from", "real", "inception", "clip", "dino", "adapter", "image",
)  # fmt: skip
"""The last parts of keys whose values may be paths."""
LONGEST_NAME, LONGEST_PATH = 255, 4000
"""What a file system takes, in bytes; of the 4096 for a path, some are for the names of files in a folder."""


class Unresolved(str):
    """A value such as `${lora.rnk}`, as it was typed, that refers to nothing: `why` says what it was to be."""

    why = ""


def readable(raw: Mapping[str, Any]) -> tuple[list[str], dict[str, Any], list[str]]:
    """(a line for each text that cannot be intended, the configuration without them, their keys).

    Raises:
        SettingsError: it holds a secret, which no further check may be given.
    """
    if faults := secret_faults(raw):
        raise SettingsError("\n".join(faults))
    texts = list(_strings(raw, ""))
    wrong = [(key, text, said) for key, text in texts if (said := _fault(key, text))]
    if not wrong:
        return [], dict(raw), []
    faults = [f"{key}: {said}" if text == MISSING else f"{key} = {text!r}: {said}" for key, text, said in wrong]
    # A list is set as a whole.
    return faults, *without(raw, [key.partition("[")[0] for key, *_ in wrong])


def _fault(key: str, text: str) -> str:
    """What is wrong with a text, and the fix; empty if nothing is."""
    if text == MISSING:
        return f"has no value; set {key}=..."
    if isinstance(text, Unresolved):
        return text.why
    if whole(text) != text:
        return "contains what is not UTF-8; type it again, in a terminal with a UTF-8 locale"
    if "\0" in text:
        return "holds a NUL character; remove it"
    if re.sub(r"\[\d+\]$", "", key).rpartition(".")[2] not in PATHS or "://" in text:
        return ""
    name = max(text.split("/"), key=lambda part: len(part.encode()))
    for kind, part, most in (("has a name", name, LONGEST_NAME), ("is a path", text, LONGEST_PATH)):
        if (long := len(part.encode())) > most:
            return f"{kind} of {long} bytes, and {most} is the most; correct it"
    return ""


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
