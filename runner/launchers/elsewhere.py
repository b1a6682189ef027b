"""Jobs that commands have left running elsewhere: finds them by their folders alone, updates them, stops them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from time import monotonic

from runner.errors import RunnerError, SettingsError
from runner.jobs.job import Job, State, read_job, read_manifest, state_of, update_manifest
from runner.jobs.lock import LockedError, lock
from runner.jobs.submission import Submission
from runner.launchers import find_launcher
from runner.launchers.cluster import Cluster, NotStopped, Searching, gone_in_reach
from runner.launchers.lots import jobs_of_workers, recorded_lots
from runner.launchers.searches import searches_of
from runner.paths import ExperimentPaths, stop_sign
from runner.report import write_report
from runner.schema import LauncherSettings
from runner.system.exclusive import alone

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
Cancel = Callable[[Sequence[str]], None]
OPEN = (State.SUBMITTED, State.RUNNING, State.INTERRUPTED)


class Elsewhere:
    """Jobs that were submitted and are not known to have ended, found by their folders."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._looked_s = float("-inf")

    def collect(self, folders: Sequence[Path]) -> None:
        """Bring what they have written into their folders, and rebuild the reports of experiments that changed.

        May be called often. What cannot be asked is reported once, and does not keep what is here from being checked.
        """
        if monotonic() - self._looked_s < LOOK_EVERY_S:
            return
        for settings, jobs in _groups(folders):
            before = {job.folder: state_of(job.folder) for job in jobs}
            try:
                find_launcher(settings.name).collect(jobs, settings)
            except RunnerError as error:
                if str(error) not in self._said:
                    self._said.add(str(error))
                    log.warning("%s", error)
            for folder in {job.folder.parent for job in jobs if state_of(job.folder) != before[job.folder]}:
                write_report(folder)
        self._looked_s = monotonic()

    @contextmanager
    def alone(self, experiments: Iterable[Path]) -> Iterator[None]:
        """Keep commands from submitting jobs of these experiments, after waiting for one that is doing so.

        Such a command may find no room and try again, or be about to resubmit what a worker has left.
        """
        with ExitStack() as stack:
            for experiment in sorted(experiments):
                for turn in ExperimentPaths(experiment).turns:
                    stack.enter_context(alone(turn, doing=f"submitting jobs of {experiment.name}"))
            yield

    def withdraw(self, folders: Sequence[Path]) -> list[Path]:
        """Cancel what is waiting for room, which a waiting command would otherwise submit after the stop.

        Returns:
            The cancelled jobs.
        """
        reason = "was stopped before it was submitted"
        return [folder for folder in folders if _cancel(folder, _waits_for_room, reason)]

    def stop(self, folders: Sequence[Path], experiments: Iterable[Path] = ()) -> tuple[list[str], list[str]]:
        """Ask their workers to save and end; a command that waits for them is told to submit no others.

        Args:
            folders: the folders of jobs.
            experiments: the experiments whose searches are stopped too; they may have no jobs yet.

        Returns:
            The workers that were asked, by the names their clusters use, and the messages about those that were not.
        """
        stopped, faults, tried = list[str](), _put_up_signs(folders), set[str]()
        for settings, jobs in _groups(folders, with_trials=True):
            try:
                cluster = find_launcher(settings.name).cluster(settings)
                if cluster is None:
                    continue
                alive = alive_workers(jobs, cluster, faults)
            except RunnerError as error:
                faults.append(str(error))
                continue
            asked, left = _asked(alive, faults)
            tried |= asked | left
            stopped += [f"{cluster.name} {name}" for name in sorted(asked)]
            if cluster.shares_files:  # otherwise, what was brought from there says how it ended
                for job in jobs:
                    _cancel(job.folder, partial(_waits_for, asked, left), "was stopped before a worker began with it")
        for search in searches_of(experiments):
            try:
                cluster = find_launcher(search.settings.name).cluster(search.settings)
            except RunnerError as error:
                faults.append(str(error))
                continue
            if not isinstance(cluster, Searching) or search.name in tried:
                continue
            if not cluster.has_ended(search.name, search.experiment):
                asked, _ = _asked([(cluster.cancel_searches, [search.name])], faults)
                stopped += [f"{cluster.name} {name}" for name in asked]
        return stopped, faults


def _asked(alive: Iterable[tuple[Cancel, list[str]]], faults: list[str]) -> tuple[set[str], set[str]]:
    """Ask workers to end: (those that were asked, those that were not); messages about the latter go to the faults."""
    asked, left = set[str](), set[str]()
    for cancel, names in alive:
        missed: Sequence[str] = ()
        try:
            cancel(names)
        except RunnerError as error:
            faults.append(str(error))
            missed = error.workers if isinstance(error, NotStopped) else names
        asked.update(name for name in names if name not in missed)
        left.update(missed)
    return asked, left


def _put_up_signs(folders: Sequence[Path]) -> list[str]:
    """Leave a sign beside the lists of these jobs that they were stopped; returns messages where that failed.

    Not every cluster says that a worker ended on request, and it may have ended by itself just before.
    """
    faults = []
    for folder in folders:
        try:
            queue = Submission.of(read_manifest(folder)).queue
            if queue and Path(queue).parent.is_dir():  # otherwise it belongs to a command on another machine
                stop_sign(Path(queue)).touch()
        except RunnerError as error:
            log.debug("%s", error)  # a damaged manifest, which `stop` reports
        except OSError as error:
            faults.append(f"{error}: a command that waits for {folder} may submit it again")
    return faults


def _waits_for_room(folder: Path) -> bool:
    """Whether a job is in a list for which no worker could be submitted yet."""
    manifest = read_manifest(folder)
    submission = Submission.of(manifest)
    return manifest.get("state") == State.PENDING and bool(submission) and not submission.ids


def _waits_for(asked: Collection[str], left: Collection[str], folder: Path) -> bool:
    """Whether a job waits for workers that were asked to end, and for no others."""
    manifest = read_manifest(folder)
    workers = Submission.of(manifest).ids
    return (
        manifest["state"] == State.SUBMITTED
        and any(worker in asked for worker in workers)
        and not any(worker in left for worker in workers)
    )


def _cancel(folder: Path, waits: Callable[[Path], bool], reason: str) -> bool:
    """Cancel a job that is still waiting and that nobody works on; returns whether it was cancelled."""
    try:
        if not waits(folder):
            return False
        with lock(folder):
            if is_cancelled := waits(folder):
                update_manifest(folder, state=State.CANCELLED, error=reason)
            return is_cancelled
    except LockedError:
        return False  # somebody on this machine is working on it
    except RunnerError as error:
        log.debug("%s", error)  # a damaged manifest, which `stop` reports
        return False


def _search_of(folder: Path, cluster: str) -> str:
    """The search on a cluster that a job is a trial of; empty if it is of none."""
    submission = Submission.of(read_manifest(folder))
    return submission.tuning if submission.cluster == cluster else ""


def _groups(folders: Sequence[Path], *, with_trials: bool = False) -> Iterable[tuple[LauncherSettings, list[Job]]]:
    """The jobs grouped by launcher settings, so that each place is asked once.

    Args:
        with_trials: whether to include trials that have ended: the search that started them may start others.
    """
    groups: dict[str, list[Job]] = {}
    for folder in folders:
        try:
            manifest = read_manifest(folder)
            submission = Submission.of(manifest)
            if submission and (manifest["state"] in OPEN or (with_trials and submission.tuning)):
                job = read_job(folder)
                groups.setdefault(job.settings.launcher.model_dump_json(), []).append(job)
        except SettingsError as error:
            # A damaged manifest, which `stop` reports.
            log.log(logging.DEBUG if with_trials else logging.WARNING, "%s", error)
        except RunnerError as error:
            log.warning("%s", error)
    return [(jobs[0].settings.launcher, jobs) for jobs in groups.values()]


def alive_workers(jobs: Sequence[Job], cluster: Cluster, faults: list[str]) -> list[tuple[Cancel, list[str]]]:
    """The waiting or running workers of these jobs, and the searches that start workers by themselves.

    Args:
        faults: receives the messages about those that are out of reach.

    Returns:
        For each kind that is present: the function that asks them to end, and their names.
    """
    workers = jobs_of_workers(recorded_lots(jobs, cluster.name))
    gone, apart = gone_in_reach(cluster, workers)
    faults += [str(apart)] if apart else []
    alive = [worker for worker in workers if worker not in (*gone, *(apart.workers if apart else ()))]
    found: list[tuple[Cancel, list[str]]] = [(cluster.cancel, alive)] if alive else []
    if isinstance(cluster, Searching):
        named = {(name, job.folder.parent) for job in jobs if (name := _search_of(job.folder, cluster.name))}
        if searches := {name for name, folder in named if not cluster.has_ended(name, folder)}:
            found.append((cluster.cancel_searches, sorted(searches)))
    return found
