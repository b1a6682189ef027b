"""Which workers are in a cluster's queue, and what happens to the jobs of a worker that is gone.

Everything is submitted at once, so that the cluster can continue without this process; waiting only watches. The
states in the job folders are the truth, so the same command, run again, finds what it submitted earlier. `schedule.py`
does the same on this machine, where workers are processes of the command.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from time import monotonic, sleep
from typing import Any

from runner.errors import Detached, Interrupted, SettingsError
from runner.jobs.job import FINAL, Job, State, common_overrides, own_overrides, update_manifest
from runner.launchers import MoreJobs
from runner.launchers.cluster import Cluster, Gone, NoRoom, NotStopped, NotSubmitted
from runner.launchers.leftovers import leftovers_of
from runner.launchers.lots import OPEN_FOR_S, UNSETTLED, Lot, jobs_of_workers, recorded_lots
from runner.launchers.settle import fail, halved, last_words, take_up_again
from runner.paths import ExperimentPaths, stop_sign
from runner.plan import Plan, pack_key
from runner.schema import QueuedLauncher
from runner.status import live_table
from runner.system.amounts import count
from runner.system.exclusive import alone

log = logging.getLogger(__name__)

POLL_S = 2.0
TRY_AGAIN_S = 15.0
"""Time between two attempts to submit what a cluster had no room for."""
GRACE_S = 5.0
"""A shared file system may show a worker's last writes only some time after the cluster reports that it has ended."""


def is_to_end(question: str) -> bool:
    """Whether the person at the terminal answers no to letting something continue; False if nobody is there."""
    if not sys.stdin.isatty():
        return False
    try:
        return input(f"{question} [Y/n] ").strip().lower() in ("n", "no")
    except (EOFError, KeyboardInterrupt):
        return False


class Dispatch:
    """Works through a plan on a cluster."""

    def __init__(self, plan: Plan, settings: QueuedLauncher, cluster: Cluster, more: MoreJobs | None = None) -> None:
        if more is not None and not settings.wait:
            raise SettingsError(
                "launcher.wait = false: a search depends on results, and has to wait for them; remove it"
            )
        self.plan, self.settings, self.cluster, self.more = plan, settings, cluster, more
        self.lots: list[Lot] = []
        self.capacity = sum(pack.at_once * pack.workers for pack in plan.packs)
        self._known = (*plan.todo, *plan.done, *plan.elsewhere)
        self._gone_since: dict[str, float] = {}
        self._waiting: list[Lot] = []
        """Lots that there has been no room for yet."""
        self._was_cancelled = False
        """Whether somebody ended a worker, and so does not want the next jobs of a search in its place."""
        self._opened = 0.0
        self._tried = float("-inf")

    def run(self) -> None:
        """Submit what is missing, and wait for everything unless told not to.

        Raises:
            Detached: jobs are submitted or running, and nobody waits.
            Interrupted: Ctrl-C, or the cluster took workers away too often; jobs are not done.
        """
        try:
            self._submit_missing()
            with live_table(lambda: [job.folder for lot in list(self.lots) for job in lot.jobs]):
                self._watch()
        except KeyboardInterrupt:
            self._leave()
            raise Interrupted("stopped waiting") from None
        if any(lot.in_state(State.INTERRUPTED) for lot in self.lots):
            raise Interrupted("jobs were interrupted")

    def _submit_missing(self) -> None:
        with self._turn():
            self._attach((*self.plan.todo, *self.plan.elsewhere), from_now=True)
            attached = {job.folder for lot in self.lots for job in lot.jobs}
            for pack in self.plan.packs:
                if missing := [job for job in pack.jobs if job.folder not in attached]:
                    self._submit(Lot(dataclasses.replace(pack, jobs=tuple(missing)), self.cluster.name))
        if not self.settings.wait and any(lot.is_unsettled for lot in self.lots):
            raise Detached(self._how_it_goes_on())

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Keep other commands from submitting jobs of these experiments: sending what they need may take minutes.

        This includes other machines on the same disk, if its file system passes locks on. A command that stops the
        experiments waits for it as well, and then finds what was submitted.
        """
        folders = sorted({job.folder.parent for job in (*self.plan.todo, *self.plan.elsewhere)})
        with ExitStack() as stack:
            for folder in folders:
                turn = ExperimentPaths(folder).turn(self.cluster.name)
                stack.enter_context(alone(turn, doing=f"submitting jobs of {folder.name}"))
            yield

    def _leave(self) -> None:
        """Say how everything continues; on a terminal, ask whether it should."""
        for lot in self.lots:
            lot.find_workers()
        log.info("%s", self._how_it_goes_on())
        alive = self._alive()
        if alive and is_to_end("Leave them running?"):
            for lot in self.lots:
                stop_sign(lot.queue.file).touch()  # for other commands that are waiting
            try:
                self.cluster.cancel(alive)
            except NotStopped as error:
                log.error("%s", error)
                alive = [worker for worker in alive if worker not in error.workers]
            if alive:
                log.info("asked to stop: %s", self._names(alive))

    def _watch(self) -> None:
        while True:
            self._try_again()
            self._look()
            self._settle()
            self._ask_for_more()
            if not any(self._is_open(lot) for lot in self.lots):
                return
            sleep(POLL_S)

    def _is_open(self, lot: Lot) -> bool:
        """Whether something is still to come; from a worker elsewhere, that includes its cost and its output."""
        return lot.is_unsettled or bool(lot.alive and not self.cluster.shares_files)

    def _look(self) -> None:
        common = common_overrides(self._known)
        for lot in self.lots:
            for job in lot.look():
                own = own_overrides(job, common) if len(self._known) > 1 else ""
                log.info("%s  %s  %s", job.id, lot.states[job.folder].value, own)

    # --- submitting ---

    def _attach(self, jobs: Sequence[Job], *, from_now: bool = False) -> None:
        """Adopt jobs that other commands have submitted and that have not ended yet.

        Args:
            from_now: whether to ignore an earlier stop and continue what its workers leave: this command came later.
        """
        here = {job.folder for lot in self.lots for job in lot.jobs}
        lots = recorded_lots([job for job in jobs if job.folder not in here], self.cluster.name)
        gone = self.cluster.gone(jobs_of_workers(lots))
        for lot in lots:
            alive = [worker for worker in lot.alive if worker not in gone]
            if alive:
                if from_now and lot.was_stopped:
                    lot.is_ending = True
                    stop_sign(lot.queue.file).unlink(missing_ok=True)
                lot.begin(lot.in_state(State.PENDING))
                # Jobs of a search arrive one at a time; those of one worker belong together.
                known = next((each for each in self.lots if each.queue.file == lot.queue.file and each.alive), None)
                if known is None:
                    self.lots.append(lot)
                else:
                    known.jobs += lot.jobs
                    known.look()
                log.info("already submitted: %s, for %s", self._names(alive), count(len(lot.jobs), "job"))

    def _submit(self, lot: Lot) -> None:
        """Submit the workers of a lot, no more of them at a time than `launcher.concurrency`."""
        stop_sign(lot.queue.file).unlink(missing_ok=True)  # left from an earlier run
        # The same jobs have the same list: other workers of theirs may still be waiting for them.
        lot.workers = [worker for other in self.lots if other.queue.file == lot.queue.file for worker in other.alive]
        self.lots.append(lot)
        self._submit_workers(lot)

    def _submit_workers(self, lot: Lot) -> bool:
        """Submit the workers that a lot lacks; returns whether there was room for them."""
        if not lot.alive:  # otherwise a job that one of its workers has started would be given to another
            lot.begin(lot.jobs)
        if not lot.jobs:
            return True
        lot.is_open = self.more is not None and self.cluster.shares_files
        lot.write()
        has_room = True
        for _ in range(lot.missing):
            alive = [worker for other in self.lots for worker in other.alive]
            most = self.settings.concurrency
            try:
                worker = self.cluster.submit(
                    lot.order(self.settings.device), after=alive[-most] if most and len(alive) >= most else None
                )
            except NoRoom as error:
                if lot not in self._waiting:
                    log.info("%s has no capacity right now: %s", self.cluster.name, error)
                    self._waiting.append(lot)
                if not lot.alive:
                    take_up_again(lot.in_state(State.SUBMITTED))
                has_room = False
                break
            except NotSubmitted as error:
                log.error("%s refused a worker: %s", self.cluster.name, error)
                if not lot.alive:
                    for job in lot.jobs:
                        fail(job, f"{self.cluster.name} has refused it: {error}")
                break
            lot.add_worker(worker)
            log.info("submitted: %s, for %s", self._names([worker]), count(len(lot.jobs), "job"))
        lot.look()
        return has_room

    def _try_again(self) -> None:
        """Submit what there was no room for, except what somebody else has done in the meantime."""
        if monotonic() - self._tried < TRY_AGAIN_S:
            return
        self._tried = monotonic()
        if not self._waiting:
            return
        with self._turn():
            self._submit_waiting()

    def _submit_waiting(self) -> None:
        waiting, self._waiting = [lot for lot in self._waiting if not lot.was_stopped], []
        for number, lot in enumerate(waiting):
            lot.look()
            lot.drop([*lot.in_state(*FINAL), *lot.given_to_others()])
            if lot.jobs:
                self._waiting.append(lot)  # so that it is reported only once
                if self._submit_workers(lot):
                    self._waiting.remove(lot)
                else:
                    self._waiting += waiting[number + 1 :]
                    break
        self._attach((*self.plan.todo, *self.plan.elsewhere))  # to what others have taken in the meantime

    def _ask_for_more(self) -> None:
        if self.more is None:
            return
        # What was interrupted in a live worker still has its place, or it is not yet known who ended that worker.
        going_on = sum(len(lot.in_state(State.INTERRUPTED)) for lot in self.lots if lot.alive)
        room = max(1, self.capacity) - going_on - sum(len(lot.in_state(*UNSETTLED)) for lot in self.lots)
        jobs: Sequence[Job] = ()
        if room > 0:
            with self._turn():
                self._was_cancelled |= any(lot.was_stopped for lot in self.lots)
                jobs = self.more(room) if not self._was_cancelled else ()
                self._take_in(jobs)
        if self._was_cancelled or (not jobs and not any(lot.is_unsettled for lot in self.lots)):
            self.more = None
        if self.more is None or jobs or monotonic() - self._opened > OPEN_FOR_S / 4:
            self._opened = monotonic()
            # Workers elsewhere have already read their list, and an attached lot may hold only some of its jobs.
            for lot in self.lots if self.cluster.shares_files else ():
                lot.is_open = self.more is not None
                if lot.alive:
                    lot.write()

    def _take_in(self, jobs: Sequence[Job]) -> None:
        """Give more jobs to existing workers, and submit together those that no worker can take."""
        self._attach(jobs)
        attached = {job.folder for lot in self.lots for job in lot.jobs}
        new: dict[tuple[Any, ...], list[Job]] = {}
        for job in jobs:
            if job.folder in attached:
                continue
            key = pack_key(job)
            # A lot whose jobs have all moved to another lot shares that lot's list, which is written last.
            alive = (lot for lot in self.lots if lot.alive and lot.jobs and self.cluster.shares_files)
            lots = (lot for lot in alive if pack_key(lot.jobs[0]) == key)
            if lot := next(lots, None):
                lot.jobs.append(job)
                lot.begin([job])
            else:
                new.setdefault(key, []).append(job)
        like = self.lots[0].pack if self.lots else self.plan.packs[0]
        for together in new.values():
            pack = dataclasses.replace(like, jobs=tuple(together), workers=1, prediction=None)
            self._submit(Lot(pack, self.cluster.name))

    # --- what has ended ---

    def _settle(self) -> None:
        gone = self.cluster.gone(jobs_of_workers(self.lots))
        for lot in list(self.lots):
            for worker in [worker for worker in lot.alive if worker in gone]:
                since = self._gone_since.setdefault(worker, monotonic())
                if not lot.is_unsettled or monotonic() - since >= GRACE_S:
                    lot.alive.remove(worker)
                    self._tried = float("-inf")  # now there is room
                    with self._turn():
                        self._after(lot, worker, gone[worker])
                    lot.look()

    def _after(self, lot: Lot, worker: str, gone: Gone) -> None:
        """Settle the jobs that a worker left unfinished and could not settle itself."""
        lot.look()
        if given := lot.given_to_others():  # by another command that is waiting for the same worker
            lot.drop(given)
            self._attach(given)
        how = f"{self.cluster.name} {worker} {gone.words}"
        found = leftovers_of(lot, worker, gone, shares_files=self.cluster.shares_files)
        if found.was_stopped:
            self._was_cancelled = True
            if self.more is not None:
                log.info("%s: no more jobs are started; the same command continues the search", how)
        for job in found.cancelled:
            update_manifest(job.folder, state=State.CANCELLED, error=how, crashed=False)
        take_up_again(found.taken_away)
        self._blame(lot, found.crashed, worker, how)
        for job in found.not_begun:
            fail(job, f"{how} before this job began{self._why(lot, worker)}")
        self._send_on(lot, found.go_on, how)
        lot.look()
        if not lot.alive:
            # What is still open is held by another runner, which is to finish it.
            lot.drop(lot.in_state(*UNSETTLED))
            # The fate of its jobs is decided, even if there was no room for some of its other workers.
            self._waiting = [each for each in self._waiting if each is not lot]

    def _blame(self, lot: Lot, dead: Sequence[Job], worker: str, how: str) -> None:
        """Fail a job that crashed alone; let several continue from their checkpoints, half as many at once."""
        if len(dead) == 1:
            fail(dead[0], f"{how}{self._why(lot, worker)}")
        elif dead:
            pack = halved(lot.pack, dead)
            log.warning("%s with %d jobs; they continue, %d at once", how, len(dead), pack.at_once)
            take_up_again(dead)
            lot.drop(dead)
            self._submit(Lot(pack, self.cluster.name, attempt=lot.attempt))

    def _send_on(self, lot: Lot, jobs: Sequence[Job], how: str) -> None:
        """Resubmit jobs whose workers are gone through no fault of the jobs."""
        if not jobs:
            return
        if lot.attempt >= self.settings.resubmissions:
            log.warning("%s; launcher.resubmissions = %d is used up", how, self.settings.resubmissions)
            for job in jobs:
                update_manifest(job.folder, state=State.INTERRUPTED)
            return
        log.info("%s; its remaining jobs continue in another worker", how)
        lot.drop(jobs)
        pack = lot.part(jobs, why="what a worker has left")
        self._submit(Lot(pack, self.cluster.name, attempt=lot.attempt + 1))

    # --- words ---

    def _how_it_goes_on(self) -> str:
        alive = self._alive()
        waiting = sum(len(lot.jobs) for lot in self._waiting if not lot.alive)
        lines = [f"{count(waiting, 'job')} could not be submitted yet: the same command again does."] if waiting else []
        if alive:
            lines += [
                f"{self._names(alive)} go on without this command.",
                "The same command again waits for the results, and submits nothing twice.",
                "To look: python -m runner.status. To stop them, after each has saved: "
                + self.cluster.how_to_cancel(alive),
            ]
        return "\n".join(lines)

    def _alive(self) -> list[str]:
        workers = jobs_of_workers(self.lots)
        gone = self.cluster.gone(workers)
        return [worker for worker in workers if worker not in gone]

    def _names(self, workers: Sequence[str]) -> str:
        return f"{self.cluster.name} {', '.join(workers)}"

    def _why(self, lot: Lot, worker: str) -> str:
        words = last_words(self.cluster.log(worker, lot.queue.file.parent))
        return f": {words}" if words else ""
