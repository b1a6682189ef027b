"""Where jobs run. A launcher makes every job of a plan completed, and knows nothing of how they are trained.

A new launcher is one file with the functions below, named here.
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
"""Asked for so many further jobs, whose folders are ready for workers, when places are free; fewer or none mean that
there are no more at this moment."""


class Launcher(Protocol):
    """What a launcher's module offers. `settings` is the section `launcher` of its kind."""

    def check(self, settings: Any) -> list[str]:
        """What is wrong with the place, a line each, before anything starts."""

    def machine(self, settings: Any) -> Machine:
        """What jobs would run on."""

    def launch(self, plan: Plan, settings: Any, more: MoreJobs | None = None) -> None:
        """Work through the plan, and through what `more` gives; the job folders say how it went.

        Raises:
            Interrupted: a signal asked to stop; every job that was training has saved its work, or goes on elsewhere.
            Detached: jobs go on without this command, as was asked for.
        """

    def collect(self, jobs: Sequence[Job], settings: Any) -> None:
        """Bring into the job folders what became of jobs that an earlier command has left to run elsewhere."""

    def cluster(self, settings: Any) -> Cluster | None:
        """The queue that workers wait in; None where they are processes of the command."""

    def preview(self, plan: Plan, settings: Any) -> list[str]:
        """What a dry run shows besides the plan, a line each."""


def find_launcher(name: str) -> Launcher:
    """The launcher of that name; it is imported only now."""
    return cast("Launcher", import_module(LAUNCHERS[name]))
