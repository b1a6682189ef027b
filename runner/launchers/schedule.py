"""Which worker runs where and when on this machine, and what happens to the jobs of one that crashed.

Every pack has a queue of jobs; workers are started on free places while a queue has jobs for them, and end when it has
none. The states in the job folders are the truth: this process may die at any moment, and the next one continues.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from runner.errors import Interrupted, SettingsError
from runner.jobs.job import FINAL, GOOD, Job, State, common_overrides, own_overrides, state_of, update_manifest
from runner.jobs.lock import LockedError, is_held, is_taken_up, lock
from runner.jobs.queue import Queue
from runner.launchers import MoreJobs
from runner.launchers.ending import ending
from runner.launchers.forked import forget_libraries
from runner.launchers.settle import fail, halved, how_it_ended, is_dead, take_up_again
from runner.launchers.worker import Worker
from runner.paths import ExperimentPaths
from runner.plan import Pack, Plan, pack_key
from runner.schema import LocalLauncher
from runner.status import live_table
from runner.system import signals
from runner.system.signals import STOP_SIGNALS, silence, streams_on_terminal
from runner.work import INTERRUPTED_CODE

log = logging.getLogger(__name__)

POLL_S = 0.25
MOST_TRIES = 3
"""How many workers may end without having taken a job before it is given up."""
NO_CRASH = (0, 1, INTERRUPTED_CODE)
SECOND_AFTER_S = 2 * signals.SECOND_AFTER_S
"""Longer than the worker's own, so that the worker also counts the signal it then gets as a second one."""
STOPPED = (INTERRUPTED_CODE, *(-number for number in STOP_SIGNALS))


class _Share:
    """A pack in progress."""

    def __init__(self, pack: Pack, folder: Path, number: int) -> None:
        self.pack, self.number = pack, number
        self.jobs = list(pack.jobs)
        self.queue = Queue(folder / f"{number}.json")
        self.workers: list[Worker] = []
        self._written: tuple[int, bool] | None = None
        self.states = {job.folder: State.PENDING for job in self.jobs}
        self.tries: Counter[Path] = Counter()
        self.idle_deaths = 0

    def write(self, *, is_open: bool) -> None:
        # Some systems delete files in /tmp that have not changed for days.
        if self._written != (len(self.jobs), is_open) or not self.queue.file.exists():
            self._written = len(self.jobs), is_open
            self.queue.write([job.folder for job in self.jobs], is_open=is_open)

    def add(self, job: Job) -> None:
        self.jobs.append(job)
        self.states[job.folder] = State.PENDING

    def drop(self, jobs: Sequence[Job]) -> None:
        """Forget jobs that continue elsewhere."""
        gone = {job.folder for job in jobs}
        self.jobs = [job for job in self.jobs if job.folder not in gone]
        self.states = {folder: state for folder, state in self.states.items() if folder not in gone}

    def look(self) -> list[Job]:
        """Read the states of unsettled jobs; returns those settled since the last look."""
        settled = []
        for job in self.jobs:
            if self.states[job.folder] not in FINAL:
                self.states[job.folder] = self._state_of(job)
                if self.states[job.folder] in FINAL:
                    settled.append(job)
        return settled

    def _state_of(self, job: Job) -> State:
        """The state of a job; one with a damaged manifest is left to its worker, or started afresh."""
        try:
            return state_of(job.folder)
        except SettingsError:
            if is_held(job.folder):
                return self.states[job.folder]
            _take_over([job])
            return State.PENDING

    def prepared_by(self, worker: Worker) -> list[Job]:
        """What a worker that has ended had taken but not started to train: it was still loading or encoding."""
        return [
            job
            for job in self.jobs
            if self.states[job.folder] is State.PENDING and worker.had(job) and not is_held(job.folder)
        ]

    def died_idle(self, worker: Worker) -> None:
        """Count a worker that died without a job while others ran; after a few of them, stop replacing such workers."""
        self.idle_deaths += 1
        if self.idle_deaths == MOST_TRIES:
            log.warning("%s, like others before it; it is not replaced", how_it_ended(worker.exit_code or 0))
            self.pack = dataclasses.replace(self.pack, workers=len(self.workers))
            self.idle_deaths = 0

    def recover(self) -> None:
        """Make pending what workers of an earlier runner took in their last moments and left unfinished."""
        open_states = (State.INTERRUPTED, State.RUNNING)
        left = [job for job in self.jobs if self.states[job.folder] in open_states and not is_held(job.folder)]
        _take_over(left)
        self.look()

    def count(self, *states: State) -> int:
        return sum(state in states for state in self.states.values())

    @property
    def wants_worker(self) -> bool:
        """Whether another worker would find something to do."""
        unsettled = self.count(State.PENDING, State.RUNNING)
        needed = min(self.pack.workers, -(-unsettled // self.pack.at_once))
        return self.count(State.PENDING) > 0 and len(self.workers) < needed


class Schedule:
    """Works through a plan on this machine.

    Args:
        more: provides more jobs when places are free.
        keeps_logs: whether the output of a lone worker, too, goes to a file rather than to the terminal.
    """

    def __init__(self, plan: Plan, settings: LocalLauncher, more: MoreJobs | None, *, keeps_logs: bool = False) -> None:
        self.settings, self.machine, self.more, self.keeps_logs = settings, plan.machine, more, keeps_logs
        gpus = [device.selector for device in plan.machine.devices[: plan.places]]
        self.free = gpus if plan.machine.has_gpus else [str(number) for number in range(plan.places)]
        self.capacity = sum(pack.at_once * pack.workers for pack in plan.packs)
        # On the terminal, a lone worker shows its own progress.
        self.alone = plan.places == 1 or sum(pack.workers for pack in plan.packs) == 1
        self.at_most = 1 if self.alone else len(self.free)
        self.stopping = False
        self._packs = plan.packs
        self._common = common_overrides((*plan.todo, *plan.done, *plan.elsewhere))
        self._shares: list[_Share] = []

    def run(self) -> None:
        """Start workers and wait until every job is settled.

        Raises:
            Interrupted: a signal came; the work in progress is saved.
        """
        with tempfile.TemporaryDirectory(prefix="runner-queues-") as folder, self._signals(), self._table():
            self._shares = [_Share(pack, Path(folder), number) for number, pack in enumerate(self._packs, start=1)]
            try:
                self._work_through()
            finally:
                self._wait_for_workers()
        forget_libraries()

    def _work_through(self) -> None:
        while True:
            self._settle()
            self._ask_for_more()
            if not self.stopping:
                self._start_workers()
            if not any(share.workers for share in self._shares):
                if self.stopping:
                    raise Interrupted("stopped by a signal")
                if not self._unsettled():
                    return
            time.sleep(POLL_S)

    def _wait_for_workers(self) -> None:
        """If an error ends this process early, workers save and end first: their lists disappear with it."""
        workers = [worker for share in self._shares for worker in share.workers]
        if workers:
            self._stop()
        while any(worker.exit_code is None for worker in workers):
            time.sleep(POLL_S)

    def _unsettled(self) -> int:
        return sum(share.count(State.PENDING, State.RUNNING, State.INTERRUPTED) for share in self._shares)

    def _table(self) -> AbstractContextManager[None]:
        """The progress of several workers; one on the terminal shows its own."""
        return nullcontext() if self.alone else live_table(lambda: [job.folder for job in self._all_jobs()])

    def _all_jobs(self) -> list[Job]:
        return [job for share in list(self._shares) for job in list(share.jobs)]

    @contextmanager
    def _signals(self) -> Iterator[None]:
        terminal, asked = streams_on_terminal(), math.inf

        def stop(number: int, _frame: object) -> None:
            if number == signal.SIGHUP:
                silence(terminal)
            nonlocal asked
            if not self.stopping:
                log.info("stopping: every job saves a checkpoint first; a second Ctrl-C does not wait for that")
            at_once = number == signal.SIGINT and time.monotonic() - asked > SECOND_AFTER_S
            self._stop(at_once=at_once, hung_up=number == signal.SIGHUP)
            asked = min(asked, time.monotonic())

        # Under nohup, the end of the terminal must stop nothing.
        deaf = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else []
        before = {number: signal.signal(number, stop) for number in STOP_SIGNALS if number not in deaf}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, *, at_once: bool = False, hung_up: bool = False) -> None:
        """Ask every worker to end, and start no more."""
        self.stopping = True
        for share in list(self._shares):
            for worker in list(share.workers):
                worker.stop(at_once=at_once, hung_up=hung_up)

    # --- starting ---

    def _start_workers(self) -> None:
        for share in list(self._shares):
            size = share.pack.processes
            while not self.stopping and share.wants_worker and len(self.free) >= min(size, self._places):
                # On the CPU, several processes share one place.
                taken = self.free[: size if self.machine.has_gpus else 1]
                self.free = self.free[len(taken) :]
                share.workers.append(self._start(share, taken))
                if self.stopping:  # the signal came while the worker was starting
                    share.workers[-1].stop()
        waiting = any(share.wants_worker for share in self._shares)
        for share in self._shares:
            share.write(is_open=self.more is not None and not self.stopping and not waiting)
        if self.more is None and not waiting:  # they are needed again only after a crash
            forget_libraries()

    @property
    def _places(self) -> int:
        return len(self.machine.devices) if self.machine.has_gpus else 1

    def _start(self, share: _Share, places: list[str]) -> Worker:
        share.write(is_open=self.more is not None)
        paths = ExperimentPaths(share.jobs[0].folder.parent)
        return Worker(
            share.queue.file,
            at_once=share.pack.at_once,
            places=places if self.machine.has_gpus else places * share.pack.processes,
            machine=self.machine,
            device=self.settings.device,
            log=None if self.alone and not self.keeps_logs else paths.worker_log(places[0]),
            at_most=self.at_most,
        )

    def _ask_for_more(self) -> None:
        if self.more is None or self.stopping:
            return
        room = self.capacity - self._unsettled()
        jobs = self.more(room) if room > 0 else []
        for job in jobs:
            self._take_in(job)
        if room > 0 and not jobs and not self._unsettled():
            self.more = None

    def _take_in(self, job: Job) -> None:
        for share in self._shares:
            if pack_key(share.pack.jobs[0]) == pack_key(job):
                share.add(job)
                return
        like = self._shares[0]
        pack = dataclasses.replace(like.pack, jobs=(job,), prediction=None)
        self._shares.append(_Share(pack, like.queue.file.parent, len(self._shares) + 1))

    # --- what has ended ---

    def _settle(self) -> None:
        for share in list(self._shares):
            for job in share.look():
                if not self.alone:
                    log.info("%s  %s  %s", job.id, share.states[job.folder].value, own_overrides(job, self._common))
            for worker in [worker for worker in share.workers if worker.exit_code is not None]:
                share.workers.remove(worker)
                self.free = sorted({*self.free, *worker.places})
                self._after(share, worker)
            if not share.workers and not self.stopping:
                share.recover()

    def _after(self, share: _Share, worker: Worker) -> None:
        """Give the jobs of an ended worker the states that it could not write itself."""
        code = worker.exit_code
        assert code is not None
        if code in STOPPED:
            # A signal reached it alone or all workers: either way somebody wants it to end.
            self._stop()
        share.look()
        dead = [job for job in share.jobs if is_dead(job)]
        prepared = [] if self.stopping or code in NO_CRASH else share.prepared_by(worker)
        if len(dead) + len(prepared) > 1 and not self.stopping:
            self._retry(share, [*dead, *prepared], worker)
        else:
            for job in dead:
                if code in STOPPED:  # it had no time to save
                    update_manifest(job.folder, state=State.INTERRUPTED)
                else:
                    fail(job, ending(code, worker.log))
            for job in prepared:
                fail(job, ending(code, worker.log, when=" while this job was being prepared"))
        share.look()
        left = [job for job in share.jobs if share.states[job.folder] is State.PENDING]
        if dead or prepared or self.stopping:
            return
        if share.workers:
            if left and code != 0 and not any(map(worker.had, share.jobs)):
                share.died_idle(worker)
            return
        # What is pending and held is for another runner to finish.
        share.drop([job for job in left if is_held(job.folder)])
        for job in left:
            share.tries[job.folder] += 1
            # What another command has prepared in the meantime continues, with its worker or one of ours.
            is_blamed = code not in NO_CRASH and not is_taken_up(job.folder)
            if is_blamed or share.tries[job.folder] == MOST_TRIES:
                fail(job, ending(code, worker.log, when=" before this job began"))
        share.look()

    def _retry(self, share: _Share, dead: list[Job], worker: Worker) -> None:
        """Try the jobs of a crashed worker again, half as many at once."""
        pack = halved(share.pack, dead)
        how = how_it_ended(worker.exit_code or 0)
        log.warning("%s with %d jobs; they continue from their checkpoints, %d at once", how, len(dead), pack.at_once)
        share.drop(dead)
        _take_over(dead)
        self._shares.append(_Share(pack, share.queue.file.parent, len(self._shares) + 1))


def _take_over(jobs: Sequence[Job]) -> None:
    """Make dead jobs pending with this process as last holder, so that a later dead worker is not blamed for them."""
    for job in jobs:
        with suppress(LockedError), lock(job.folder):  # otherwise another runner is already continuing it, ...
            if not _is_good(job):  # ... or has done it
                take_up_again([job])


def _is_good(job: Job) -> bool:
    try:
        return state_of(job.folder) in GOOD
    except SettingsError:
        return False  # damaged: it starts afresh
