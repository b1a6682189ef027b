"""Where jobs run. A launcher makes every job of a plan completed, and knows nothing of how they are trained.

A new launcher is one file with the functions below, named here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from runner.plan import Plan
from runner.schema import LocalLauncher

LAUNCHERS = {"local": "runner.launchers.local"}


class Launcher(Protocol):
    """What a launcher's module offers."""

    def check(self, settings: LocalLauncher) -> list[str]:
        """What is wrong with the place, a line each, before anything starts."""

    def launch(self, plan: Plan, settings: LocalLauncher) -> None:
        """Work through the plan; the states in the job folders say how it went."""


def find_launcher(name: str) -> Launcher:
    """The launcher of that name; it is imported only now."""
    return cast("Launcher", import_module(LAUNCHERS[name]))
