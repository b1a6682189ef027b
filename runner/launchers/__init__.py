"""Where jobs run. A launcher brings every job of a plan to completion, and knows nothing about how jobs are trained.

A new launcher is one file with the functions below, listed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from runner.jobs.job import Job
from runner.launchers.cluster import Cluster
from runner.plan import Plan
from runner.system.machine import Machine

LAUNCHERS = {
    "local": "runner.launchers.local",
    "slurm": "runner.launchers.slurm",
    "sagemaker": "runner.launchers.sagemaker",
}

MoreJobs = Callable[[int], Sequence[Job]]
"""Called with the number of jobs wanted when places are free; the folders of the returned jobs are ready for workers.
Fewer or none means that there are no more at the moment."""


class Launcher(Protocol):
    """The interface of a launcher's module. `settings` is the `launcher` section of its kind."""

    def check(self, settings: Any) -> list[str]:
        """The faults of the place, one per line, before anything starts."""

    def machine(self, settings: Any) -> Machine:
        """The machine that jobs would run on."""

    def launch(self, plan: Plan, settings: Any, more: MoreJobs | None = None) -> None:
        """Work through the plan and whatever `more` returns; the job folders record the outcome.

        Raises:
            Interrupted: a signal asked to stop; every job that was training has saved its work, or continues elsewhere.
            Detached: jobs continue without this command, as requested.
        """

    def collect(self, jobs: Sequence[Job], settings: Any) -> None:
        """Update the folders of jobs that an earlier command left to run elsewhere."""

    def cluster(self, settings: Any) -> Cluster | None:
        """The queue that workers wait in; None if they are processes of the command."""

    def preview(self, plan: Plan, settings: Any) -> list[str]:
        """What a dry run shows besides the plan, one item per line."""


def find_launcher(name: str) -> Launcher:
    """The launcher of that name, imported on demand."""
    return cast("Launcher", import_module(LAUNCHERS[name]))
