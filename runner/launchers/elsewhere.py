"""Jobs that commands have left to run elsewhere: found by their folders alone, brought up to date, stopped."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import monotonic

from runner.errors import RunnerError
from runner.job import Job, State, read_job, read_manifest, state_of
from runner.launchers import find_launcher
from runner.launchers.cluster import Cluster
from runner.launchers.lots import jobs_of_workers, recorded_lots
from runner.report import write_report
from runner.schema import LauncherSettings

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
OPEN = (State.SUBMITTED, State.RUNNING, State.INTERRUPTED)


class Elsewhere:
    """The jobs in some folders that were submitted and are not known to have ended."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._looked_s = float("-inf")

    def collect(self, folders: Sequence[Path]) -> None:
        """Bring what they have written into their folders, and make the reports of experiments anew that changed.

        May be called often. What cannot be asked is said once, and is no reason not to look at what is here.
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
                continue
            for folder in {job.folder.parent for job in jobs if state_of(job.folder) != before[job.folder]}:
                write_report(folder)
        self._looked_s = monotonic()

    def stop(self, folders: Sequence[Path]) -> list[str]:
        """Ask their workers to save and end; these workers, by the names that their clusters know.

        Raises:
            RunnerError: a cluster cannot be asked.
        """
        stopped = []
        for settings, jobs in _groups(folders):
            cluster = find_launcher(settings.name).cluster(settings)
            if cluster is not None and (workers := alive_workers(jobs, cluster)):
                cluster.cancel(workers)
                stopped += [f"{cluster.name} {worker}" for worker in workers]
        return stopped


def _groups(folders: Sequence[Path]) -> Iterable[tuple[LauncherSettings, list[Job]]]:
    """The jobs with the same launcher settings together, so that each place is asked once."""
    groups: dict[str, list[Job]] = {}
    for folder in folders:
        try:
            manifest = read_manifest(folder)
            if manifest.get("submission") and manifest["state"] in OPEN:
                job = read_job(folder)
                groups.setdefault(job.settings.launcher.model_dump_json(), []).append(job)
        except RunnerError as error:
            log.warning("%s", error)
    return [(jobs[0].settings.launcher, jobs) for jobs in groups.values()]


def alive_workers(jobs: Sequence[Job], cluster: Cluster) -> list[str]:
    """The workers of these jobs that wait or run, and the searches that start workers by themselves."""
    workers = jobs_of_workers(recorded_lots(jobs, cluster.name))
    gone = cluster.gone(workers)
    submissions = [read_manifest(job.folder).get("submission") or {} for job in jobs]
    searches = {str(each["tuning"]) for each in submissions if each.get("tuning") and each["cluster"] == cluster.name}
    return [*(worker for worker in workers if worker not in gone), *sorted(searches)]
