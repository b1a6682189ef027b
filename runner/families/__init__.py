"""Model families, found by name; adding one takes its own file and an entry in `known.py`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from runner.families.family import Family


def find_family(name: str) -> Family:
    """The family with that name; torch and diffusers are imported only now."""
    return cast("Family", import_module(f"runner.families.{name}"))
