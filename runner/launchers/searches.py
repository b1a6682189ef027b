"""Searches that a cluster runs by itself: recorded in their experiment's folder before they start.

Their trials become jobs only when a command learns of them; until then only the record leads to a search.
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
    """A search that a command has started."""

    name: str
    """Its name on the cluster."""
    settings: LauncherSettings
    experiment: Path
    """The folder of its experiment."""


def note(search: Search, cluster: str) -> None:
    """Record a search before requesting it, so that it is found again whatever happens to this process."""
    text = SETTINGS.dump_json(search.settings, indent=2).decode()
    write_text(ExperimentPaths(search.experiment).search(cluster, search.name), text + "\n")


def strike_out(search: Search, cluster: str) -> None:
    """Remove the record of a search that was rejected."""
    ExperimentPaths(search.experiment).search(cluster, search.name).unlink(missing_ok=True)


def searches_of(experiments: Iterable[Path]) -> list[Search]:
    """All searches ever started for these experiments; only their clusters know whether they have ended."""
    found = []
    for experiment in experiments:
        for file in ExperimentPaths(experiment).searches:
            try:
                settings = SETTINGS.validate_json(file.read_text(encoding="utf-8"))
            except (OSError, ValidationError) as error:
                log.warning("%s: cannot be read, so no cluster can be asked about this search (%s)", file, error)
                continue
            found.append(Search(file.stem, settings, experiment))
    return found
