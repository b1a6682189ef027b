"""Searches that a cluster conducts by itself: noted in their experiment's folder before they begin.

Their trials become jobs only when a command hears of them; a search that has none yet is found by its note alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from runner.paths import ExperimentPaths, write_text
from runner.schema import LauncherSettings

log = logging.getLogger(__name__)

SETTINGS = TypeAdapter[LauncherSettings](LauncherSettings)


@dataclass(frozen=True)
class Search:
    """A search that a command has begun."""

    name: str
    """By which its cluster knows it."""
    settings: LauncherSettings
    experiment: Path
    """The folder of its experiment."""


def note(search: Search, cluster: str) -> None:
    """Note a search before it is asked for: whatever becomes of this process, it is found again."""
    text = SETTINGS.dump_json(search.settings, indent=2).decode()
    write_text(ExperimentPaths(search.experiment).search(cluster, search.name), text + "\n")


def strike_out(search: Search, cluster: str) -> None:
    """Take back the note of a search that was refused."""
    ExperimentPaths(search.experiment).search(cluster, search.name).unlink(missing_ok=True)


def searches_of(experiments: Iterable[Path]) -> list[Search]:
    """All that were ever begun for these experiments; whether they have ended, their clusters know."""
    found = []
    for experiment in experiments:
        for file in ExperimentPaths(experiment).searches:
            try:
                settings = SETTINGS.validate_json(file.read_text(encoding="utf-8"))
            except (OSError, ValidationError) as error:
                log.warning("%s: cannot be read, so that nobody can be asked about this search (%s)", file, error)
                continue
            found.append(Search(file.stem, settings, experiment))
    return found
