"""Prints a job's objective to stdout whenever it is measured, for a tuner's regular expression to find."""

from __future__ import annotations

import math
import sys
from contextlib import AbstractContextManager

from runner.container.repeating import repeating
from runner.jobs.job import Job
from runner.track import MetricsFile

POLL_S = 2.0


def objective_line(name: str, value: float) -> str:
    """The line; nothing else that is printed looks like it."""
    return f"{name}={value!r}"


class ObjectiveLines:
    """Follows the metrics of the only job. The last value is printed at the end (`runner.container.ending`)."""

    def __init__(self, job: Job) -> None:
        self.job, self.name = job, job.experiment.objective.name
        # An earlier container has already printed what it measured.
        lines = MetricsFile(self.job.paths.metrics).read()
        self._said_step = max((int(line["step"]) for line in lines), default=0)

    def following(self) -> AbstractContextManager[None]:
        """Inside the context, print each new value."""
        return repeating(self.say, every_s=POLL_S, name="says the objective")

    def say(self) -> None:
        """Print what is new. Before the first step all trials are alike, so a tuner must not compare them there."""
        for step, value in MetricsFile(self.job.paths.metrics).values(self.name):
            if math.isfinite(value) and self._said_step < step < self.job.experiment.steps:
                self._said_step = step
                sys.stdout.write(objective_line(self.name, value) + "\n")
                sys.stdout.flush()
