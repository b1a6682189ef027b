"""A task done in this process, on settings given as a dictionary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.paths import JobPaths
from runner.schema.tasks import TASKS
from runner.tasks import check_task, work_of
from tests.train.bench import CPU, family_of


def do(
    task: str, folder: Path, model: Path, /, *, stop: Callable[[], bool] = lambda: False, **given: Any
) -> dict[str, Any]:
    """Check the settings and do the work in a folder; what the manifest would say."""
    about = {"path": str(model), "family": family_of(model), **given.pop("model", {})}
    settings = TASKS[task].model_validate({"task": {"name": task}, "model": about, **given})
    folder.mkdir(parents=True, exist_ok=True)
    check_task(settings)
    return work_of(task)(settings, JobPaths(folder), CPU, stop=stop)
