"""Jobs in a cluster's queue, and what their folders record about it, so that any later command finds them again.

A lot is a pack whose workers run independently of the command that submitted them. Its list of jobs lies in the
experiment's folder, with the ids of its workers; each job's manifest names the list.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from runner.errors import RunnerError, SettingsError
from runner.jobs.job import GOOD, Job, State, known_manifest, read_job, read_manifest, state_of, update_manifest
from runner.jobs.lock import LockedError, lock
from runner.jobs.queue import Queue
from runner.jobs.submission import Submission
from runner.launchers.cluster import Order
from runner.paths import ExperimentPaths, stop_sign
from runner.plan import Pack

log = logging.getLogger(__name__)

UNSETTLED = (State.PENDING, State.SUBMITTED, State.RUNNING)
OPEN_FOR_S = 600.0
"""How long workers wait for more jobs after the last sign of a command that may bring some."""


class Lot:
    """A pack in a cluster's queue.

    Args:
        attempt: how often the same command has submitted its jobs before.
    """

    def __init__(self, pack: Pack, cluster: str, *, attempt: int = 0, queue: Queue | None = None) -> None:
        self.pack, self.cluster, self.attempt = pack, cluster, attempt
        self.jobs = list(pack.jobs)
        self.queue = queue or Queue(_list_of(pack, cluster))
        self.workers: list[str] = []
        self.alive: list[str] = []
        self.is_earlier = False
        """Whether an earlier command submitted it."""
        self.is_ending = False
        """Whether its workers were stopped before the command that now waits for them started."""
        self.is_open = False
        """Whether more jobs may follow, which idle workers wait for."""
        self.states: dict[Path, State] = {}
        self.look()

    def begin(self, jobs: Sequence[Job]) -> None:
        """Mark jobs as submitted before a worker can take one; drops those that somebody else holds or has done."""
        for job in jobs:
            try:
                with lock(job.folder):
                    if (state := state_of(job.folder)) in GOOD:
                        log.info("%s  %s in the meantime by another command", job.id, state.value)
                        self.drop([job])
                    else:
                        submission = Submission(self.cluster, str(self.queue.file), tuple(self.workers))
                        update_manifest(job.folder, state=State.SUBMITTED, submission=submission.data)
            except LockedError:
                self.drop([job])
        self.look()

    def add_worker(self, worker: str) -> None:
        """Record a worker in the list, and in the manifests of the jobs that have not started."""
        self.workers.append(worker)
        self.alive.append(worker)
        self.write()
        for job in self.jobs:
            try:
                with lock(job.folder, patience_s=0.0):
                    manifest = read_manifest(job.folder)
                    if manifest["state"] == State.SUBMITTED:
                        submission = dataclasses.replace(Submission.of(manifest), ids=tuple(self.workers))
                        update_manifest(job.folder, submission=submission.data)
            except LockedError:
                continue  # a worker has it and records that itself

    def find_workers(self) -> None:
        """Adopt the workers that its cluster recorded in the list before it was interrupted."""
        for worker in self.queue.about().get("workers", ()):
            if worker not in self.workers:
                self.add_worker(worker)

    def write(self) -> None:
        """Write the list; an open one must be rewritten within `OPEN_FOR_S`."""
        about = {"workers": self.workers, "at_once": self.pack.at_once, "processes": self.pack.processes}
        folders = [job.folder for job in self.jobs]
        self.queue.write(folders, is_open=self.is_open, open_for_s=OPEN_FOR_S, resumes=True, about=about)

    def order(self, device: str) -> Order:
        """The order for one of its workers."""
        return Order(
            title=self.pack.jobs[0].settings.name,
            queue=self.queue.file,
            at_once=self.pack.at_once,
            processes=self.pack.processes,
            device=device,
        )

    @property
    def was_stopped(self) -> bool:
        """Whether somebody stopped its workers and wants no others in their place."""
        return stop_sign(self.queue.file).exists()

    def look(self) -> list[Job]:
        """Read the states of all jobs; returns those whose state has changed since the last look."""
        before = self.states
        self.states = {job.folder: self._state_of(job) for job in self.jobs}
        return [job for job in self.jobs if before.get(job.folder) != self.states[job.folder]]

    def _state_of(self, job: Job) -> State:
        """The state of a job; if its manifest is damaged, the last known one: its worker will rewrite it."""
        try:
            return state_of(job.folder)
        except SettingsError:
            if job.folder not in self.states:
                raise
            return self.states[job.folder]

    def drop(self, jobs: Iterable[Job]) -> None:
        """Forget jobs that continue elsewhere."""
        gone = {job.folder for job in jobs}
        self.jobs = [job for job in self.jobs if job.folder not in gone]
        self.states = {folder: state for folder, state in self.states.items() if folder not in gone}

    def given_to_others(self) -> list[Job]:
        """Jobs that another command has submitted in the meantime, in its own list or in the same one."""

        def is_ours(job: Job) -> bool:
            submission = Submission.of(known_manifest(job.folder))
            return submission.queue == str(self.queue.file) and set(submission.ids) <= set(self.workers)

        return [job for job in self.in_state(State.SUBMITTED, State.RUNNING) if not is_ours(job)]

    def in_state(self, *states: State) -> list[Job]:
        """The jobs in one of these states, at the last look."""
        return [job for job in self.jobs if self.states[job.folder] in states]

    @property
    def is_unsettled(self) -> bool:
        """Whether anything is still to come; interrupted jobs continue by themselves while there are workers."""
        return bool(self.in_state(*UNSETTLED)) or bool(self.alive and self.in_state(State.INTERRUPTED, *self.given_up))

    @property
    def given_up(self) -> tuple[State, ...]:
        """States set by a command from before the stop; this command came after it and continues such jobs."""
        return (State.CANCELLED,) if self.is_ending else ()

    @property
    def missing(self) -> int:
        """How many workers to submit; beside live ones, only as many as there are unstarted jobs for."""
        if not self.alive:
            return self.pack.workers
        left = len(self.in_state(State.PENDING, State.SUBMITTED, State.INTERRUPTED))
        return max(0, min(self.pack.workers - len(self.alive), -(-left // self.pack.at_once)))

    def part(self, jobs: Sequence[Job], *, why: str) -> Pack:
        """A pack of some of its jobs, with as many workers as they keep busy."""
        workers = max(1, min(self.pack.workers, -(-len(jobs) // self.pack.at_once)))
        return dataclasses.replace(self.pack, jobs=tuple(jobs), workers=workers, why=why, prediction=None)


def recorded_lots(jobs: Iterable[Job], cluster: str) -> list[Lot]:
    """The lots in which any command submitted these jobs, from their folders; all workers are assumed alive."""
    lists: dict[str, list[Job]] = {}
    for job in jobs:
        submission = Submission.of(read_manifest(job.folder))
        # The trials of a tuning job are in none of our lists.
        if submission.cluster == cluster and submission.queue:
            lists.setdefault(submission.queue, []).append(job)
    lots = []
    for file, members in lists.items():
        about = Queue(Path(file)).about()
        if workers := list(about.get("workers", ())):
            pack = Pack(tuple(members), about["at_once"], len(workers), about["processes"], "submitted earlier")
            lot = Lot(pack, cluster, queue=Queue(Path(file)))
            lot.workers, lot.alive, lot.is_earlier = workers, list(workers), True
            lots.append(lot)
    return lots


def jobs_of_workers(lots: Iterable[Lot]) -> dict[str, list[Job]]:
    """The workers that are not known to have ended, and the jobs in each one's list."""
    return {worker: lot.jobs for lot in lots for worker in lot.alive}


def all_given_to(worker: str, jobs: Sequence[Job]) -> list[Job]:
    """These jobs of a worker and all others that it was given, which a command may not know about."""
    queue = Submission.of(known_manifest(jobs[0].folder)).queue
    known, found = {job.folder for job in jobs}, list(jobs)
    try:
        folders = Queue(Path(queue)).read()[0] if queue else []
    except (OSError, ValueError, KeyError):
        folders = []  # the list of a command on another machine
    for folder in folders:
        if folder in known:
            continue
        try:
            if worker in Submission.of(read_manifest(folder)).ids:
                found.append(read_job(folder))
        except RunnerError as error:
            log.debug("%s", error)
    return found


def _list_of(pack: Pack, cluster: str) -> Path:
    """The path of a pack's list: the same jobs have the same list, whenever they are submitted."""
    key = hashlib.sha256(" ".join(sorted(job.id for job in pack.jobs)).encode()).hexdigest()[:8]
    return ExperimentPaths(pack.jobs[0].folder.parent).queue(cluster, key)
