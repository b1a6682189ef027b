"""Successive halving: whether a job that has reached a rung is among those that continue.

The asynchronous rule of ASHA in its stopping form (Li et al., "A system for massively parallel hyperparameter
tuning", arXiv 1810.05934): at rung k, after first * reduction^k steps, the best 1/reduction of the jobs that have
reached it so far continue. It reads the folders of the experiment, so it needs no coordinator and works in every pack.
"""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from pathlib import Path

from runner.errors import RunnerError
from runner.jobs.job import Job, read_manifest
from runner.schema import PruningSettings
from runner.schema.comparing import MEASURED_BY
from runner.track import MetricsFile

log = logging.getLogger(__name__)


def rungs(settings: PruningSettings, steps: int) -> list[int]:
    """The optimizer steps at which a job of `steps` steps is compared with the others; none when pruning is off."""
    if settings.name == "none":
        return []
    found, step = [], settings.first
    while step < steps:
        found.append(step)
        step *= settings.reduction
    return found


def falls_behind(job: Job, step: int) -> str | None:
    """Why a job does not continue after this rung, or None if it does.

    It is compared with all jobs of the experiment that are measured the same way, at the same step.
    """
    values = _values_at(job, step)
    own = values[job.id]
    objective, reduction = job.experiment.objective, job.experiment.pruning.reduction
    goes_on = max(1, len(values) // reduction)
    sign = 1 if objective.direction == "minimize" else -1
    better = sum(sign * value < sign * own for other, value in values.items() if other != job.id)
    if better < goes_on and not math.isnan(own):
        return None
    return f"{objective.name} {own:.4g} at step {step} is not among the best {goes_on} of {len(values)}"


def _values_at(job: Job, step: int) -> dict[str, float]:
    values = {}
    for folder in sorted(job.folder.parent.iterdir()):
        try:
            value = _value_at(folder, job, step)
        except (RunnerError, OSError) as error:
            if folder == job.folder:
                raise
            _warn(folder, str(error))
            continue
        if value is not None:
            values[folder.name] = value
    return values


def _value_at(folder: Path, job: Job, step: int) -> float | None:
    """The measured value of a folder's job; None if it has no part in the comparison."""
    metrics = folder / job.paths.metrics.name
    if not metrics.is_file():
        return None
    # A job's own manifest says nothing that the job does not know.
    identity = job.identity if folder == job.folder else read_manifest(folder).get("identity", {})
    if any(identity.get(part) != job.identity.get(part) for part in MEASURED_BY):
        return None
    measured = MetricsFile(metrics).values(job.experiment.objective.name)
    return next((value for at, value in reversed(measured) if at == step), None)


@lru_cache(maxsize=1024)  # once: every job looks at every rung
def _warn(folder: Path, why: str) -> None:
    log.warning("%s is not compared with the others: %s", folder, why)
