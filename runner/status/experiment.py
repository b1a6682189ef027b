"""All jobs of an experiment at one moment: how they differ, how many are in which state, when they will be done.

Takes folders, returns `ExperimentStatus`; also as plain data for programs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.jobs.job import State
from runner.report.differences import by_task, differing_overrides, differing_settings, told_apart
from runner.report.exports import strict
from runner.report.record import JobRecord, finite
from runner.report.several import cell_for
from runner.report.words import abridged
from runner.schema.metrics import HELD_OUT
from runner.status.look import ACTIVE, DEAD, SILENT_S, JobStatus, WatchedJob, ends_in_s
from runner.system.amounts import MISSING

MAX_COLUMNS = 5
"""More differing settings than this would make a table too wide for a terminal, so they share one column."""
COUNTED = ("completed", "running", "starting", "submitted", "pending", "interrupted", "pruned", "cancelled", "failed")
MAX_CELL = 40
"""Characters; of longer values, only the part that distinguishes them is shown."""
TOGETHER = "settings"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ExperimentStatus:
    """One experiment at one moment."""

    folder: Path
    metric: str
    """The metric that its jobs are compared by."""
    columns: Sequence[str]
    """Dotted keys of the settings in which the jobs differ, or a single name for all of them together."""
    cells: dict[str, list[str]]
    """The jobs' values of these settings, by id."""
    jobs: Sequence[JobStatus]

    @property
    def counts(self) -> dict[str, int]:
        """Number of jobs by state, in the order of a job's life; states without jobs are left out."""
        found = Counter(job.state for job in self.jobs)
        return {state: found[state] for state in (*COUNTED, *sorted(set(found) - set(COUNTED))) if found[state]}

    @property
    def left_s(self) -> float | None:
        """Seconds until everything is done."""
        return ends_in_s(self.jobs)

    @property
    def is_active(self) -> bool:
        """Whether anything will change by itself; also in the pause before a worker takes the next waiting job."""
        if any(job.state in ACTIVE for job in self.jobs):
            return True
        signs_s = [job.silent_s for job in self.jobs if job.silent_s is not None]
        return any(job.state == State.PENDING for job in self.jobs) and min(signs_s, default=math.inf) < SILENT_S

    @property
    def has_losses(self) -> bool:
        """Whether it needs somebody's attention: a job has failed or died."""
        return any(job.state in (State.FAILED, DEAD) for job in self.jobs)

    def data(self) -> dict[str, Any]:
        """The same as plain data; non-finite numbers become null."""
        return {
            "name": self.folder.name,
            "folder": str(self.folder),
            "metric": self.metric,
            "counts": self.counts,
            "left_s": finite(self.left_s),
            "jobs": [self._job_data(job) for job in self.jobs],
        }

    def _job_data(self, job: JobStatus) -> dict[str, Any]:
        return {
            "id": job.record.id,
            "folder": str(job.record.folder),
            "state": job.state,
            "settings": {} if self.columns == [TOGETHER] else {key: job.record.setting(key) for key in self.columns},
            "overrides": job.record.overrides,
            "steps": job.steps,
            "steps_done": job.steps_done,
            "value": finite(job.value),
            "images_per_s": job.images_per_s,
            "left_s": finite(job.left_s),
            "where": job.where,
            "silent_s": finite(job.silent_s),
            "error": job.record.error or None,
            "endpoint": job.record.section("endpoint") or None,
        }


class Watch:
    """Experiments that are looked at repeatedly.

    Args:
        folders: returns the job folders at each look; there may be more of them than last time.
    """

    def __init__(self, folders: Callable[[], Iterable[Path]]) -> None:
        self._folders = folders
        self._jobs: dict[Path, WatchedJob] = {}
        self._told: dict[Path, tuple[list[JobRecord], list[str], dict[str, list[str]]]] = {}

    def look(self) -> list[ExperimentStatus]:
        """All experiments at this moment, by name."""
        experiments: dict[Path, list[JobStatus]] = {}
        for folder in dict.fromkeys(self._folders()):
            if folder not in self._jobs:
                self._jobs[folder] = WatchedJob(folder)
            experiments.setdefault(folder.parent, []).append(self._jobs[folder].look())
        return [self._experiment(folder, experiments[folder]) for folder in sorted(experiments)]

    def _experiment(self, folder: Path, jobs: list[JobStatus]) -> ExperimentStatus:
        records = [job.record for job in jobs]
        known = self._told.get(folder)
        # Comparing a hundred configurations takes a while, and they hardly ever change.
        if known is None or [id(record.config) for record in known[0]] != [id(record.config) for record in records]:
            known = self._told[folder] = (records, *_told_apart(records))
        _, columns, cells = known
        metric = next((str(name) for job in records if (name := job.setting("objective.name"))), HELD_OUT)
        ordered = sorted(jobs, key=lambda job: [*map(_order, cells[job.record.id]), job.record.id])
        return ExperimentStatus(folder=folder, metric=metric, columns=columns, cells=cells, jobs=ordered)


def _told_apart(jobs: list[JobRecord]) -> tuple[list[str], dict[str, list[str]]]:
    """The settings in which jobs differ, and each job's values."""
    if len(jobs) < 2:
        return [], {job.id: [] for job in jobs}
    columns, _ = differing_overrides(jobs)
    resolved = (told_apart(differing_settings(kind)[0], first=()) for kind in by_task(jobs))
    columns = columns or list(dict.fromkeys(one.key for kind in resolved for one in kind))
    shown = [abridged([cell_for(job, key) for job in jobs], MAX_CELL) for key in columns]
    cells = {job.id: [texts[index] for texts in shown] for index, job in enumerate(jobs)}
    if len(columns) <= MAX_COLUMNS:
        return columns, cells
    words = {job_id: list(zip(columns, each, strict=True)) for job_id, each in cells.items()}
    # Settings that a job does not have, such as those of another task, take no space.
    texts = {
        job_id: " ".join(f"{key}={cell}" for key, cell in each if cell != MISSING) for job_id, each in words.items()
    }
    return [TOGETHER], {job_id: [text] for job_id, text in texts.items()}


def _order(cell: str) -> tuple[bool, float, str]:
    """Sort key: numbers by value, before texts."""
    try:
        value = float(cell.replace(",", ""))
    except ValueError:
        return True, 0.0, cell
    return math.isnan(value), value, cell


def as_data(experiments: Sequence[ExperimentStatus]) -> dict[str, Any]:
    """Everything as plain data, for programs."""
    found: dict[str, Any] = strict(
        {"schema_version": SCHEMA_VERSION, "experiments": [each.data() for each in experiments]}
    )
    return found
