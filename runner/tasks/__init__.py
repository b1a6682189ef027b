"""What jobs do besides training: draw, measure, merge, export, deploy.

Each task has a package with two modules. `check.py`, which does not import torch, has `check(settings)`: it raises what
is wrong, and returns the file contents that count towards the job's identity; and `faults(settings, is_right)`: what is
wrong with the files that the settings name, as far as those settings are right. `work.py` has `work(settings, paths,
place, stop=...)`: it does whatever is still missing in the job's folder, and returns the manifest fields that describe
the result.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from runner.schema.job import JobSettings
from runner.schema.reading import IsRight

Check = Callable[[Any], dict[str, Any]]
Faults = Callable[[Any, IsRight], list[str]]
Work = Callable[..., dict[str, Any]]


def check_task(settings: JobSettings) -> dict[str, Any]:
    """The file contents that count towards the identity of a job with these settings.

    Raises:
        SettingsError: every fault that the schema could not see, one per line.
    """
    check: Check = import_module(f"runner.tasks.{settings.task.name}.check").check
    return check(settings)


def faults_beside(settings: JobSettings, is_right: IsRight) -> list[str]:
    """What else is wrong with settings that have faults of their own, one fault per line."""
    faults: Faults = import_module(f"runner.tasks.{settings.task.name}.check").faults
    return faults(settings, is_right)


def work_of(task: str) -> Work:
    """The function that does the work of a task."""
    work: Work = import_module(f"runner.tasks.{task}.work").work
    return work
