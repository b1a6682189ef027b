"""Jobs that are in a cluster's queue, and what their folders say of it, so that any later command finds them again.

A lot is a pack whose workers run without the command that has submitted them. Its list of jobs lies in the experiment's
folder, with the ids of its workers; each job's manifest names the list.
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
"""Workers wait for further jobs for so long after the last sign of a command that may bring some."""


class Lot:
    """A pack in a cluster's queue.

    Args:
        attempt: how often its jobs were submitted before by the same command.
    """

    def __init__(self, pack: Pack, cluster: str, *, attempt: int = 0, queue: Queue | None = None) -> None:
        self.pack, self.cluster, self.attempt = pack, cluster, attempt
        self.jobs = list(pack.jobs)
        self.queue = queue or Queue(_list_of(pack, cluster))
        self.workers: list[str] = []
        self.alive: list[str] = []
        self.is_earlier = False
        """Whether an earlier command has submitted it."""
        self.is_ending = False
        """Whether its workers had been stopped before the command began that waits for them now."""
        self.is_open = False
        """Whether further jobs may follow, for which idle workers wait."""
        self.states: dict[Path, State] = {}
        self.look()

    def begin(self, jobs: Sequence[Job]) -> None:
        """Mark jobs as submitted, before a worker could take one; what somebody else holds or has done is not ours."""
        for job in jobs:
            try:
                with lock(job.folder):
                    if (state := state_of(job.folder)) in GOOD:
                        log.info("%s  %s meanwhile, by another command", job.id, state.value)
                        self.drop([job])
                    else:
                        submission = Submission(self.cluster, str(self.queue.file), tuple(self.workers))
                        update_manifest(job.folder, state=State.SUBMITTED, submission=submission.data)
            except LockedError:
                self.drop([job])
        self.look()

    def add_worker(self, worker: str) -> None:
        """Take note of a worker, in the list and in the manifests of the jobs that it has not begun with yet."""
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
                continue  # a worker has it, and says so itself

    def find_workers(self) -> None:
        """Take note of those that its cluster has noted in the list before it was broken off."""
        for worker in self.queue.about().get("workers", ()):
            if worker not in self.workers:
                self.add_worker(worker)

    def write(self) -> None:
        """Write the list; one that is open must be written again before `OPEN_FOR_S` are over."""
        about = {"workers": self.workers, "at_once": self.pack.at_once, "processes": self.pack.processes}
        folders = [job.folder for job in self.jobs]
        self.queue.write(folders, is_open=self.is_open, open_for_s=OPEN_FOR_S, resumes=True, about=about)

    def order(self, device: str) -> Order:
        """One of its workers, to be submitted."""
        return Order(
            title=self.pack.jobs[0].settings.name,
            queue=self.queue.file,
            at_once=self.pack.at_once,
            processes=self.pack.processes,
            device=device,
        )

    @property
    def was_stopped(self) -> bool:
        """Whether somebody has ended its workers, and wants no others in their place."""
        return stop_sign(self.queue.file).exists()

    def look(self) -> list[Job]:
        """Read the states of all jobs; those that have another one than at the last look."""
        before = self.states
        self.states = {job.folder: self._state_of(job) for job in self.jobs}
        return [job for job in self.jobs if before.get(job.folder) != self.states[job.folder]]

    def _state_of(self, job: Job) -> State:
        """The state of a job; as it was at the last look where its manifest is damaged: its worker writes it anew."""
        try:
            return state_of(job.folder)
        except SettingsError:
            if job.folder not in self.states:
                raise
            return self.states[job.folder]

    def drop(self, jobs: Iterable[Job]) -> None:
        """Forget jobs that go on elsewhere."""
        gone = {job.folder for job in jobs}
        self.jobs = [job for job in self.jobs if job.folder not in gone]
        self.states = {folder: state for folder, state in self.states.items() if folder not in gone}

    def given_to_others(self) -> list[Job]:
        """Jobs that another command has submitted meanwhile: in a list of its own, or the same jobs in the same one."""

        def is_ours(job: Job) -> bool:
            submission = Submission.of(known_manifest(job.folder))
            return submission.queue == str(self.queue.file) and set(submission.ids) <= set(self.workers)

        return [job for job in self.in_state(State.SUBMITTED, State.RUNNING) if not is_ours(job)]

    def in_state(self, *states: State) -> list[Job]:
        """The jobs in one of these states, at the last look."""
        return [job for job in self.jobs if self.states[job.folder] in states]

    @property
    def is_unsettled(self) -> bool:
        """Whether something is still to come of it; what was interrupted goes on by itself while there are workers."""
        return bool(self.in_state(*UNSETTLED)) or bool(self.alive and self.in_state(State.INTERRUPTED, *self.given_up))

    @property
    def given_up(self) -> tuple[State, ...]:
        """What jobs are by a command that was there before the stop, and go on by this one, which came after it."""
        return (State.CANCELLED,) if self.is_ending else ()

    @property
    def missing(self) -> int:
        """How many workers are to be submitted; beside others, no more than find jobs that none has begun with."""
        if not self.alive:
            return self.pack.workers
        left = len(self.in_state(State.PENDING, State.SUBMITTED, State.INTERRUPTED))
        return max(0, min(self.pack.workers - len(self.alive), -(-left // self.pack.at_once)))

    def part(self, jobs: Sequence[Job], *, why: str) -> Pack:
        """A pack of some of its jobs, with as many workers as these keep busy."""
        workers = max(1, min(self.pack.workers, -(-len(jobs) // self.pack.at_once)))
        return dataclasses.replace(self.pack, jobs=tuple(jobs), workers=workers, why=why, prediction=None)


def recorded_lots(jobs: Iterable[Job], cluster: str) -> list[Lot]:
    """The lots that jobs were submitted in, by whatever command, as their folders say; all workers taken as alive."""
    lists: dict[str, list[Job]] = {}
    for job in jobs:
        submission = Submission.of(read_manifest(job.folder))
        # The trials of a tuning job are in no list of ours.
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
    """The workers that are not known to have ended, and the jobs in the list of each."""
    return {worker: lot.jobs for lot in lots for worker in lot.alive}


def all_given_to(worker: str, jobs: Sequence[Job]) -> list[Job]:
    """These jobs of a worker, and all others that it was given with them, of which a command may not know."""
    queue = Submission.of(known_manifest(jobs[0].folder)).queue
    known, found = {job.folder for job in jobs}, list(jobs)
    try:
        folders = Queue(Path(queue)).read()[0] if queue else []
    except (OSError, ValueError, KeyError):
        folders = []  # of a command on another machine
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
    """Where a pack's list is: the same jobs have the same list, whenever they are submitted."""
    key = hashlib.sha256(" ".join(sorted(job.id for job in pack.jobs)).encode()).hexdigest()[:8]
    return ExperimentPaths(pack.jobs[0].folder.parent).queue(cluster, key)
