"""Time accounting: every second of a worker is charged to one job, or shared among the jobs it was spent for.

The charges of all jobs add up to the time of their process, so a sweep's time can be read from its folders.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

PHASES = ("load", "cache", "train", "validate", "artifacts")


class Charged(Protocol):
    """Something that time can be charged to."""

    timings: dict[str, float]
    """Seconds by phase: this job's own share."""
    trained_s: float
    """Seconds during which the job was training, whatever its share."""


class Clock:
    """Seconds since the last charge, and the jobs they belong to by default."""

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self.training: Mapping[Charged, int] = {}
        """The jobs that are training, and each one's rows in a batch, which determine its share."""
        self.trained_s: defaultdict[int, float] = defaultdict(float)
        """Seconds of training by the total number of rows of all jobs."""
        self.drawn_s, self.drawn_passes = 0.0, 0
        """Seconds of drawing, and how often an image passed through the denoiser."""

    def _elapsed(self) -> float:
        now = time.perf_counter()
        elapsed, self._mark = now - self._mark, now
        return elapsed

    def charge_training(self) -> None:
        """Share the time since the last charge among the jobs that are training."""
        elapsed = self._elapsed()
        rows = sum(self.training.values())
        self.trained_s[rows] += elapsed
        for run, count in self.training.items():
            run.timings["train"] += elapsed * count / rows
            run.trained_s += elapsed

    @contextmanager
    def drawing(self, passes: int) -> Iterator[None]:
        """In this context, images are drawn with so many passes of one image through the denoiser."""
        start = time.perf_counter()
        yield
        self.drawn_s += time.perf_counter() - start
        self.drawn_passes += passes

    @property
    def forward_s(self) -> float:
        """Seconds of drawing for each of those passes; 0 if nothing was drawn."""
        return self.drawn_s / self.drawn_passes if self.drawn_passes else 0.0

    @contextmanager
    def charging(self, phase: str, runs: Sequence[Charged]) -> Iterator[None]:
        """Charge the time spent in this context evenly to these jobs, and the time before it to training."""
        self.charge_training()
        try:
            yield
        finally:
            elapsed = self._elapsed()
            for run in runs:
                run.timings[phase] += elapsed / len(runs)
