"""What the project needs from a cluster: a queue that accepts workers and says how they ended.

`runner.launchers.dispatch` does everything else, so that supporting another kind of cluster takes one small class
(docs/clusters.md has a complete example).
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
    """The cluster rejected a worker; the message is the cluster's own."""


class NoRoom(NotSubmitted):
    """The cluster cannot take a worker now, but may later."""


class NotStopped(RunnerError):
    """Some workers could not be asked to end; the message says for each, on its own line, how to end it."""

    def __init__(self, message: str, workers: Sequence[str]) -> None:
        super().__init__(message)
        self.workers = tuple(workers)


class OutOfReach(RunnerError):
    """Some workers are beyond this machine's reach, so their state is unknown; all others were checked."""

    def __init__(self, message: str, workers: Sequence[str]) -> None:
        super().__init__(message)
        self.workers = tuple(workers)


@dataclass(frozen=True, kw_only=True)
class Order:
    """A worker to submit to a cluster's queue."""

    title: str
    """What people who look at the queue see: the experiment's name."""
    queue: Path
    """The list it takes jobs from."""
    at_once: int
    """The most jobs it trains together."""
    processes: int
    device: str
    """auto, cpu or cuda."""

    @property
    def key(self) -> str:
        """A hash of the jobs in the list."""
        return self.queue.stem.rpartition("-")[2]

    @property
    def command(self) -> list[str]:
        """The command that runs the worker, if all its processes are on one node."""
        return worker_command(self.queue, at_once=self.at_once, processes=self.processes, device=self.device)


@dataclass(frozen=True, kw_only=True)
class Gone:
    """A worker that is no longer waiting or running."""

    words: str
    """How it ended, in the cluster's words."""
    reason: Literal["ended", "cancelled", "taken"] = "ended"
    """`cancelled` by a person, `taken` by the cluster (preempted, out of time, a broken node), or `ended` by itself:
    done or crashed, which only the jobs it leaves behind can tell."""
    began: bool | None = None
    """Whether it had started to work; None if the cluster does not know."""


class Cluster(Protocol):
    """A cluster's queue."""

    name: str
    """Also the name of the subfolder of an experiment that holds its workers' lists and logs."""
    shares_files: bool
    """Whether workers share this machine's files, so that they can be given more jobs at any time."""

    def submit(self, order: Order, *, after: str | None) -> str:
        """Submit a worker, to start after the worker `after` has ended if one is named; returns its id.

        Raises:
            NotSubmitted: the cluster rejected it; `NoRoom` if it may take it later.
        """

    def gone(self, workers: Mapping[str, Sequence[Job]]) -> Mapping[str, Gone]:
        """Which of these workers have ended. Called often, so the last answer may be cached for a while.

        If the cluster shares no files with this machine, the workers' files are brought here first.

        Args:
            workers: their ids, and the jobs in each one's list.

        Raises:
            OutOfReach: the state of some cannot be queried from here.
        """

    def log(self, worker: str, folder: Path) -> Path:
        """The file with a worker's output; `folder` is the one with its list."""

    def cancel(self, workers: Sequence[str]) -> None:
        """Ask workers to save and end, including those that are waiting.

        Raises:
            NotStopped: some could not be asked; all others were.
        """

    def how_to_cancel(self, workers: Sequence[str]) -> str:
        """The command that ends these workers."""


def gone_in_reach(
    cluster: Cluster, workers: Mapping[str, Sequence[Job]]
) -> tuple[Mapping[str, Gone], OutOfReach | None]:
    """(those that have ended, the error about those that are out of reach)."""
    try:
        return cluster.gone(workers), None
    except OutOfReach as error:
        return cluster.gone({name: jobs for name, jobs in workers.items() if name not in error.workers}), error


@runtime_checkable
class Searching(Protocol):
    """What else a cluster offers if it starts workers by itself, for its own searches."""

    def has_ended(self, search: str, folder: Path) -> bool:
        """Whether all results of a search are known to be in its experiment's folder here."""

    def cancel_searches(self, searches: Sequence[str]) -> None:
        """Ask searches to end once all their workers have saved.

        Raises:
            NotStopped: as in `Cluster.cancel`.
        """
