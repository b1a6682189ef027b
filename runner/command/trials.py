"""What every search of a command needs: its settings, examples of its jobs, and what all jobs share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from runner.check import Checker
from runner.errors import SettingsError, not_started
from runner.jobs.job import Job
from runner.launch.door import Config, check_all
from runner.schema.knob import Settings
from runner.schema.reading import read
from runner.search import Parameter

S = TypeVar("S", bound=Settings)

WITHOUT_EFFECT = ("launcher", "logger", "checkpoint", "objective", "hydra", "name")
"""Sections that all jobs share and no result depends on: another value does not make it another search."""


def checked_settings(kind: type[S], settings: Mapping[str, Any]) -> S:
    """The keys of `hydra.sweeper` as settings.

    Raises:
        SettingsError: some are wrong; all faults at once.
    """
    checked, faults = read(kind, settings)
    if checked is None:
        raise not_started("The configuration is invalid", [f"hydra.sweeper.{line}" for line in faults])
    return checked


def first_values(space: Sequence[Parameter]) -> dict[str, str]:
    """A value for everything that is searched, by its key."""
    return {parameter.key: parameter.examples()[0] for parameter in space}


def other_values(space: Sequence[Parameter]) -> list[tuple[str, str]]:
    """(key, value) of everything else worth trying: the other ends, and all other choices."""
    return [(parameter.key, text) for parameter in space for text in parameter.examples()[1:]]


def examples(space: Sequence[Parameter], compose: Callable[[Sequence[str]], Config]) -> list[Config]:
    """Every setting at each of its ends or values, the others at their first, to reveal faults before the start.

    The first example has the first value of every setting; the others come in the order of `other_values`.
    """
    first = first_values(space)
    chosen = [first, *({**first, key: text} for key, text in other_values(space))]
    return [compose([f"{key}={text}" for key, text in each.items()]) for each in chosen]


def fixed_settings(config: Mapping[str, Any], space: Sequence[Parameter]) -> dict[str, Any]:
    """The settings of a job that the search does not choose, by dotted key."""
    chosen = {parameter.key for parameter in space}
    return {
        key: value
        for key, value in flat(config).items()
        if key.partition(".")[0] not in WITHOUT_EFFECT
        and not any(key == name or key.startswith(f"{name}.") for name in chosen)
    }


def checked_trainings(checker: Checker, found: Sequence[Config]) -> list[Job]:
    """The jobs of some configurations.

    Raises:
        SettingsError: they are not trainings, or some are wrong.
    """
    require_trainings(found[0][0])
    return check_all(checker, found)


def require_trainings(config: Mapping[str, Any]) -> None:
    """Raises SettingsError if jobs have no objective for a search to optimize."""
    task = config.get("task", {}).get("name")
    if task != "train":
        raise SettingsError(
            f"task = {task!r}: cannot be searched, only trainings have an objective; sweep its values without "
            "hydra/sweeper, or search trainings that are measured by evaluation.metrics=[...]"
        )


def contents_of(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """The content of the files that jobs read, by the part of their identity: it may change under the same names."""
    found: dict[str, set[str]] = {}
    for job in jobs:
        for part, content in job.identity.items():
            if not part.startswith("settings."):
                found.setdefault(part, set()).add(json.dumps(content, sort_keys=True))
    return {part: sorted(contents) for part, contents in found.items()}


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
