"""Faults in the user's own YAML files (`--config-dir`) that Hydra does not report in words for users.

Takes the folder and the available choices; knows nothing about values, which the schema checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from runner.command.typed import in_shell
from runner.schema import GROUPS
from runner.schema.defaults import variants_of
from runner.schema.messages import nearest

FIRST_LINE = "# @package _global_"
"""The line by which a recipe says that its settings are top-level."""

Options = Callable[[str], Sequence[str]]
"""The names of a group's choices."""


def faults_of_defaults(folder: Path, group: str, choice: str, options: Options) -> list[str]:
    """Faults in the defaults lists of a choice and of the choices it builds on, one per line."""
    faults: list[str] = []
    way: list[str] = []
    while (file := folder / group / f"{choice}.yaml").is_file():
        way.append(choice)
        entries = _entries(file)
        if group == "recipe" and entries and not _is_global(file):
            return [f"{file}: a recipe of your own begins with the line '{FIRST_LINE}'; add it at the top"]
        faults += [f"{file}: {fault}" for entry in entries for fault in _of_entry(entry, group, options)]
        named = [entry for entry in entries if isinstance(entry, str) and entry != "_self_"]
        if again := next((name for name in named if name in way), None):
            other = "another choice" if again == choice else f"another choice than {again}"
            return [*faults, f"{file}: 'defaults' leads back to this file; name {other}{_kinds(group, way, options)}"]
        choice = named[0] if named else ""
    return faults


def no_choice(group: str, value: str, options: Sequence[str]) -> str:
    """The message about a choice that does not exist."""
    own = f" what you have is named by {in_shell(f'{group}.path', value)};" if "/" in value and _has_path(group) else ""
    return f"{group} = {value}: there is no such choice{nearest(value, options) or ';'}{own} {_all(options)}"


def _has_path(group: str) -> bool:
    return group in GROUPS and any("path" in kind.model_fields for kind in variants_of(group).values())


def _entries(file: Path) -> list[Any]:
    """The defaults list; empty for a file that is not YAML, which Hydra itself reports."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return []
    entries = content.get("defaults") if isinstance(content, dict) else None
    return entries if isinstance(entries, list) else []


def _is_global(file: Path) -> bool:
    lines = file.read_text(encoding="utf-8").splitlines()
    return any("".join(line.split()) == "".join(FIRST_LINE.split()) for line in lines)


def _of_entry(entry: Any, group: str, options: Options) -> Iterator[str]:
    if isinstance(entry, str):
        if entry != "_self_" and not entry.startswith("/") and entry not in (there := options(group)):
            yield f"defaults: {no_choice(group, entry, there)}"
        return
    if group != "recipe" or not isinstance(entry, dict) or len(entry) != 1:
        return
    ((key, value),) = entry.items()
    *before, named = str(key).split()
    other = named.lstrip("/")
    if other.startswith(("hydra", "schema", "recipe")):
        return
    if other not in GROUPS:
        yield f"defaults: {key}: there is no group {other}{nearest(other, GROUPS) or ';'} {_all(GROUPS)}"
    elif before != ["override"] or not named.startswith("/"):
        yield f"defaults: {key}: {value}: a choice is changed by 'override /{other}: {value}'"
    elif isinstance(value, str) and value not in (there := options(other)):
        yield f"defaults: {no_choice(other, value, there)}"


def _all(names: Sequence[str]) -> str:
    return f"there are: {', '.join(sorted(set(names)))}"


def _kinds(group: str, way: Sequence[str], options: Options) -> str:
    return f", such as {names[0]}" if (names := [name for name in options(group) if name not in way]) else ""
