"""What a job does that does not train: draw, measure, merge, export, deploy.

Each task has a room with two files. `check.py`, without torch, has `check(settings)`: what is wrong, and what of the
content of files counts for the job's identity. `work.py` has `work(settings, paths, place, stop=...)`: it does what is
not done yet in the job's folder, and gives the fields of the manifest that say how it went.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from runner.schema.job import JobSettings

Check = Callable[[Any], dict[str, Any]]
Work = Callable[..., dict[str, Any]]


def check_task(settings: JobSettings) -> dict[str, Any]:
    """What of the content of files counts for the identity of a job with these settings.

    Raises:
        SettingsError: every fault that the schema could not see, a line each.
    """
    check: Check = import_module(f"runner.tasks.{settings.task.name}.check").check
    return check(settings)


def work_of(task: str) -> Work:
    """What does the work of a task."""
    work: Work = import_module(f"runner.tasks.{task}.work").work
    return work
