"""How far every job of an experiment is, from its folder alone. Repeated looks are cheap, and nothing is written.

Takes job folders, returns a `JobStatus` for each. A repeated look reads only the new lines of a record and keeps only
the last ones. Missing or truncated files leave their part empty.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import Any

from runner.jobs.job import State
from runner.jobs.lock import is_held
from runner.jobs.submission import Submission
from runner.paths import JobPaths
from runner.report.record import JobRecord, finite, read_briefly
from runner.schema.metrics import HELD_OUT, IMAGES_PER_S
from runner.track.metrics import parse_line

RECENT_LINES = 20
"""Lines of a record from which the current speed is computed."""
TAIL_BYTES = 16_000
SILENT_S = 60.0
"""A running job whose lock is free is considered dead after this long without a sign of life."""
SILENT_ELSEWHERE_S = 900.0
"""The same for a job on another machine, whose lock may not be visible here."""

STARTING, DEAD = "starting", "dead"
ACTIVE = (STARTING, State.SUBMITTED, State.RUNNING)
"""States that change by themselves."""


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """One job at one moment."""

    record: JobRecord
    state: str
    """The manifest's, or `starting` (pending, held by a worker), `dead` (running, held by nobody), `unknown`."""
    steps: int | None
    """Optimizer steps it is to make in all."""
    steps_done: int
    value: float | None
    """The last value of the metric that jobs are compared by; NaN if it diverged."""
    images_per_s: float | None
    step_s: float | None
    """Wall-clock seconds per step over the last steps, if it is running."""
    where: str
    silent_s: float | None
    """Seconds since the last sign of life."""

    @property
    def left_steps(self) -> int:
        """Optimizer steps still to make; 0 if none will be made."""
        open_states = (*ACTIVE, State.PENDING)
        return max(0, self.steps - self.steps_done) if self.steps and self.state in open_states else 0

    @property
    def left_s(self) -> float | None:
        """Seconds until a running job is done, at its current speed."""
        return None if self.step_s is None else self.left_steps * self.step_s


class _Tail:
    """The end of a growing metrics file, and the last value of one metric."""

    def __init__(self, file: Path, metric: str) -> None:
        self.file, self.metric = file, metric
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT_LINES)
        self.last: float | None = None
        self._read = self._inode = 0

    def look(self) -> None:
        """Read what was written since the last look; a file that was truncated or replaced is reread."""
        try:
            with self.file.open("rb") as stream:
                about = self.file.stat()
                if about.st_ino != self._inode or about.st_size < self._read:
                    self.recent.clear()
                    self.last, self._read, self._inode = None, 0, about.st_ino
                stream.seek(self._read)
                whole, newline, _ = stream.read().rpartition(b"\n")
        except OSError:
            return
        self._read += len(whole) + len(newline)
        self.recent.extend(filter(None, map(parse_line, whole[-TAIL_BYTES:].splitlines()[-RECENT_LINES:])))
        # It is measured rarely, so its last value may be far from the end.
        found = whole.rfind(f'"{self.metric}":'.encode())
        if found >= 0:
            line = parse_line(whole[whole.rfind(b"\n", 0, found) + 1 :].partition(b"\n")[0]) or {}
            value = finite(line.get(self.metric))
            self.last = float("nan") if value is None else value

    @property
    def step_s(self) -> float | None:
        """Seconds per step; the lower median, so that a pause between two attempts does not count."""
        times = ((int(line["step"]), finite(line.get("time"))) for line in self.recent)
        points = {step: time_s for step, time_s in times if time_s is not None}
        steps = sorted(points)
        each = [(points[b] - points[a]) / (b - a) for a, b in pairwise(steps)]
        return median_low(each) if each and min(each) >= 0 else None


class WatchedJob:
    """A job folder that is looked at repeatedly."""

    def __init__(self, folder: Path) -> None:
        self.paths = JobPaths(folder)
        self._seen = self._changes()
        self.record = read_briefly(folder)
        self._tail = _Tail(self.paths.metrics, str(self.record.setting("objective.name") or HELD_OUT))

    def _changes(self) -> list[tuple[int, ...] | None]:
        return [_version(self.paths.config), _version(self.paths.manifest)]

    def look(self) -> JobStatus:
        """The job at this moment."""
        if (changes := self._changes()) != self._seen:
            self._seen, self.record = changes, read_briefly(self.paths.folder)
        self._tail.look()
        record, recent = self.record, self._tail.recent
        state = self._state()
        steps = record.setting("steps")
        last_step = int(recent[-1]["step"]) if recent else 0
        speeds = [line[IMAGES_PER_S] for line in recent if IMAGES_PER_S in line]
        return JobStatus(
            record=record,
            state=state,
            steps=steps if isinstance(steps, int) else None,
            steps_done=max(last_step, record.steps_done),
            value=self._tail.last if self._tail.last is not None else record.objective,
            images_per_s=finite(speeds[-1]) if speeds else None,
            step_s=self._tail.step_s if state == State.RUNNING else None,
            where=_where(record, state),
            silent_s=self._silent_s(),
        )

    def _silent_s(self) -> float | None:
        signs = [_changed(file) for file in (self.paths.metrics, self.paths.log, self.paths.manifest)]
        return max(0.0, time.time() - max(signs)) if max(signs) else None

    def _state(self) -> str:
        state = self.record.state
        if state == State.PENDING and is_held(self.paths.folder):
            return STARTING
        if state == State.RUNNING and not is_held(self.paths.folder):
            limit_s = SILENT_ELSEWHERE_S if self.record.manifest.get("worker") else SILENT_S
            return DEAD if (self._silent_s() or 0.0) > limit_s else state
        return state


def _where(record: JobRecord, state: str) -> str:
    """The device, and the worker or submission by the name its cluster uses."""
    submission = Submission.of(record.manifest)
    if state == State.SUBMITTED:
        return " ".join([submission.cluster, *submission.ids])
    worker, device = record.manifest.get("worker"), str(record.manifest.get("device") or "")
    if state in (State.PENDING, STARTING):
        return ""
    return f"{submission.cluster} {worker}, {device}".strip() if worker else device


def _changed(file: Path) -> float:
    """When a file was last written, in seconds since the epoch; 0 if it does not exist."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _version(file: Path) -> tuple[int, ...] | None:
    """What changes when a file is rewritten, even on file systems with times in seconds; None if there is no file."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def ends_in_s(jobs: Sequence[JobStatus]) -> float | None:
    """Seconds until all jobs are done, if later ones are as fast as those running now; None if none is running."""
    running = [job for job in jobs if job.step_s]
    if not running:
        return None
    steps_per_s = sum(1 / job.step_s for job in running if job.step_s)
    return max(sum(job.left_steps for job in jobs) / steps_per_s, *(job.left_s or 0.0 for job in running))
