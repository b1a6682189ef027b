"""Why Hydra could not compose some overrides: its errors, in words that name what to correct."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose
from hydra.errors import HydraException
from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError
from yaml.reader import ReaderError

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValueError, YAMLError, RecursionError)


def reason(error: Exception, overrides: Sequence[str], search: list[str]) -> str:
    """Why Hydra raised an error.

    Args:
        overrides: what it was to compose; the last one is at fault if the others can be composed.
        search: the override that names the folder given with --config-dir, if there is one.
    """
    return of_file(error, search) or of_item(overrides, search) or _of_removal(overrides, error) or first_line(error)


def own_folder(search: list[str]) -> Path:
    """The folder given with --config-dir, which the override in `search` names."""
    return Path(search[0].partition("file://")[2].rstrip("]"))


def of_file(error: Exception, search: list[str]) -> str | None:
    """What is wrong with a file that is not YAML, not UTF-8 or a list, and where; None if that is not the problem."""
    if isinstance(error, UnicodeDecodeError):
        return _of_encoding(error, search)
    if found := re.match(r"In '([^']+)': ConfigTypeError .*\s*Cannot merge DictConfig with ListConfig", str(error)):
        file = own_folder(search) / f"{found[1]}.yaml" if search else Path(f"{found[1]}.yaml")
        return f"{file}: holds a list (- value), where settings with their names belong (key: value); correct the file"
    if isinstance(error, ReaderError):
        return f"{error.name}, character {error.position + 1}: {error.reason}; remove it"
    if not isinstance(error, YAMLError):
        return None
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    mark, began = error.problem_mark, error.context_mark
    # An unclosed bracket or quote is often noticed only on a later line.
    since = f" in line {began.line + 1}" if began is not None and began.line != mark.line else ""
    while_doing = f" ({error.context}{since})" if error.context else ""
    return f"{mark.name}, line {mark.line + 1}: {error.problem}{while_doing}; correct the file"


def _of_encoding(error: UnicodeDecodeError, search: list[str]) -> str | None:
    """The fault of a file that is not UTF-8; the error does not name it: it is the user's file with these bytes."""
    for file in sorted(own_folder(search).rglob("*.yaml")) if search else ():
        before, found, _ = file.read_bytes().partition(error.object)
        if found:
            line = (before + error.object[: error.start]).count(b"\n") + 1
            return f"{file}, line {line}: is not UTF-8 ({error.reason}); save it as UTF-8"
    return None


def of_item(overrides: Sequence[str], search: list[str]) -> str | None:
    """A message about the first setting that Hydra cannot find because it would be in a list; None if there is none."""
    for place, text in enumerate(overrides):
        try:
            compose("config", [*search, *overrides[: place + 1]])
        except (*COMPOSITION_ERRORS, TypeError):  # TypeError if an item of a list is to be removed
            key, given, value = text.lstrip("+~").partition("=")
            said, parts = f"{key} = {value}" if given else text, key.split(".")
            before = compose("config", [*search, *overrides[:place]])
            for depth in range(1, len(parts)):
                holder = ".".join(parts[:depth])
                if isinstance(OmegaConf.select(before, holder), ListConfig):
                    return f"{said}: {holder} is a list, and is set as a whole: '{holder}=[...]'"
            return None
    return None


def _of_removal(overrides: Sequence[str], error: Exception) -> str | None:
    """The fault of a setting that cannot be removed (`~key`), because it is not there or has another value."""
    _, found, said = first_line(error).partition("Could not delete from config. ")
    return f"{overrides[-1]}: {said.removesuffix('.')}; leave it out" if found else None


def first_line(error: Exception) -> str:
    """What an error says, without where Hydra was when it noticed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Such a line only says where; the next one says what is wrong.
    shown = 2 if lines and lines[0].endswith(":") else 1
    return " ".join(lines[:shown]) or type(error).__name__
