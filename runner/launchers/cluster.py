"""What a cluster is to the project: a queue that workers are put into, and that says how they ended.

`runner.launchers.dispatch` does everything else, so that one more kind of cluster is one small class
(docs/clusters.md has one from beginning to end).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from runner.errors import RunnerError
from runner.jobs.job import Job
from runner.launchers.worker import worker_command


class NotSubmitted(RunnerError):
    """The cluster has refused a worker; the message is what it said."""


class NoRoom(NotSubmitted):
    """It cannot take a worker at this moment, and may later."""


class NotStopped(RunnerError):
    """Some workers could not be asked to end; the message has a line for each, with how to end it."""

    def __init__(self, message: str, workers: Sequence[str]) -> None:
        super().__init__(message)
        self.workers = tuple(workers)


class OutOfReach(RunnerError):
    """Some workers are where nobody is asked, so that it is not known how they are; all others were looked at."""

    def __init__(self, message: str, workers: Sequence[str]) -> None:
        super().__init__(message)
        self.workers = tuple(workers)


@dataclass(frozen=True, kw_only=True)
class Order:
    """A worker to be put into a cluster's queue."""

    title: str
    """For the people who look at that queue: the experiment's name."""
    queue: Path
    """The list that it takes jobs from."""
    at_once: int
    """Most jobs that it trains together."""
    processes: int
    device: str
    """auto, cpu or cuda."""

    @property
    def key(self) -> str:
        """A hash of the jobs in the list."""
        return self.queue.stem.rpartition("-")[2]

    @property
    def command(self) -> list[str]:
        """What the worker is, where all its processes are on one node."""
        return worker_command(self.queue, at_once=self.at_once, processes=self.processes, device=self.device)


@dataclass(frozen=True, kw_only=True)
class Gone:
    """A worker that neither waits nor runs any more."""

    words: str
    """How it ended, in the cluster's words."""
    reason: Literal["ended", "cancelled", "taken"] = "ended"
    """`cancelled` by somebody, `taken` by the cluster (preempted, out of time, a broken node), or `ended` by itself:
    done, or crashed, which only the jobs that it leaves behind can tell."""
    began: bool | None = None
    """Whether it has begun to work, where the cluster knows."""


class Cluster(Protocol):
    """A cluster's queue."""

    name: str
    """Also the name of the folder in an experiment's that its workers' lists and logs lie in."""
    shares_files: bool
    """Whether workers read and write the files that are here: they can then be given further jobs at any time."""

    def submit(self, order: Order, *, after: str | None) -> str:
        """Put a worker into the queue, to start when another one has ended, if `after` names one; its id.

        Raises:
            NotSubmitted: the cluster has refused it; `NoRoom` if it may take it later.
        """

    def gone(self, workers: Mapping[str, Sequence[Job]]) -> Mapping[str, Gone]:
        """Those of these workers that have ended. Asked often: it may remember the last answer for a while.

        Where the cluster shares no files with this machine, what its workers have written is brought here before.

        Args:
            workers: their ids, and the jobs in the list of each.

        Raises:
            OutOfReach: some of them cannot be asked about from here.
        """

    def log(self, worker: str, folder: Path) -> Path:
        """Where a worker's output is; its list lies in that folder."""

    def cancel(self, workers: Sequence[str]) -> None:
        """Ask workers to save and end, those that wait too.

        Raises:
            NotStopped: not all of them could be asked; all others were.
        """

    def how_to_cancel(self, workers: Sequence[str]) -> str:
        """The command that ends these workers."""


def gone_in_reach(
    cluster: Cluster, workers: Mapping[str, Sequence[Job]]
) -> tuple[Mapping[str, Gone], OutOfReach | None]:
    """(those that have ended, what is to be said of those that are out of reach)."""
    try:
        return cluster.gone(workers), None
    except OutOfReach as error:
        return cluster.gone({name: jobs for name, jobs in workers.items() if name not in error.workers}), error


@runtime_checkable
class Searching(Protocol):
    """What a cluster is besides that starts workers by itself, for searches of its own."""

    def has_ended(self, search: str, folder: Path) -> bool:
        """Whether all results of a search are known to be here, in its experiment's folder."""

    def cancel_searches(self, searches: Sequence[str]) -> None:
        """Ask searches to end, after all their workers have saved.

        Raises:
            NotStopped: as `Cluster.cancel`.
        """
