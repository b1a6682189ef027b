"""A job's objective on this process's output whenever it is measured, where a tuner's regular expression finds it."""

from __future__ import annotations

import math
import sys
from contextlib import AbstractContextManager

from runner.container.repeating import repeating
from runner.jobs.job import Job
from runner.track import MetricsFile

POLL_S = 2.0


def objective_line(name: str, value: float) -> str:
    """The line, which nothing else that is printed looks like."""
    return f"{name}={value!r}"


class ObjectiveLines:
    """Follows the metrics of the only job. Its last value is said at the end (`runner.container.ending`)."""

    def __init__(self, job: Job) -> None:
        self.job, self.name = job, job.experiment.objective.name
        # What an earlier container has measured was said then.
        lines = MetricsFile(self.job.paths.metrics).read()
        self._said_step = max((int(line["step"]) for line in lines), default=0)

    def following(self) -> AbstractContextManager[None]:
        """Say what is measured while the block runs."""
        return repeating(self.say, every_s=POLL_S, name="says the objective")

    def say(self) -> None:
        """Say what is new. Before the first step all trials are the same: a tuner must not compare them there."""
        for step, value in MetricsFile(self.job.paths.metrics).values(self.name):
            if math.isfinite(value) and self._said_step < step < self.job.experiment.steps:
                self._said_step = step
                sys.stdout.write(objective_line(self.name, value) + "\n")
                sys.stdout.flush()
