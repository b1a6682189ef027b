"""`python -m runner.stop DIR...`: stop what runs elsewhere for these experiments; each job saves first."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.errors import SettingsError
from runner.job_folders import faults_of, is_job_folder, job_folders
from runner.jobs.job import State, read_manifest, state_of
from runner.jobs.lock import is_held, is_taken_up
from runner.jobs.submission import Submission
from runner.launchers.elsewhere import Elsewhere
from runner.paths import ExperimentPaths
from runner.system.amounts import count
from runner.system.printable import log_to

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask all workers to end; returns 0, or 1 if some could not be asked, or 2 if a folder has no jobs."""
    parser = argparse.ArgumentParser(prog="python -m runner.stop", description="Stop jobs that run elsewhere.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="outputs/<name>, or a job in it")
    options = parser.parse_args(arguments)
    log_to(sys.stderr, logging.INFO)
    if faults := faults_of(options.folders, _found):
        log.error("%s", "\n".join(faults))
        return 2
    found = [_found(root) for root in options.folders]
    folders = [job for jobs, _ in found for job in jobs]
    searching = {experiment for _, experiments in found for experiment in experiments}
    elsewhere = Elsewhere()
    with elsewhere.alone({folder.absolute().parent for folder in folders} | searching):
        withdrawn = elsewhere.withdraw(folders)
        stopped, faults = elsewhere.stop(folders, sorted(searching))
    here, unknown = _trained_here(folders, stopped)
    faults += unknown
    for name in stopped:
        log.info("asked to save and stop: %s", name)
    if withdrawn:
        log.info("no longer queued for submission: %s, for which there was no room yet", count(len(withdrawn), "job"))
    if stopped or withdrawn:
        log.info("The command that started them will continue them later from where they stopped.")
    elif not here and not faults:
        log.info("nothing is running elsewhere for these jobs")
    for folder in here:
        log.info("being trained by a command on this machine, where Ctrl-C saves and stops it: %s", folder)
    for fault in faults:
        log.error("%s", fault)
    return 1 if faults else 0


def _found(root: Path) -> tuple[list[Path], list[Path]]:
    """The jobs in a folder, and the experiments for which a cluster was asked to search by itself.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it contains neither.
    """
    searching: list[Path] = []
    if root.is_dir() and not is_job_folder(root):
        root = root.absolute()
        experiments = [root, *(child for child in sorted(root.iterdir()) if child.is_dir())]
        searching = [each for each in experiments if ExperimentPaths(each).searches]
    try:
        return job_folders(root), searching
    except ValueError:
        if not searching:
            raise
        return [], searching


def _trained_here(folders: Sequence[Path], stopped: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(jobs that a command on this machine is running or about to start, messages about damaged manifests).

    Args:
        stopped: the workers that were asked to end; they hold their jobs until they have saved.
    """
    here, unknown = [], []
    for folder in folders:
        try:
            submission, state = Submission.of(read_manifest(folder)), state_of(folder)
            begins = state is State.PENDING and not submission.ids and is_taken_up(folder)
            workers = {f"{submission.cluster} {worker}" for worker in submission.ids}
            if begins or (state is State.RUNNING and is_held(folder) and workers.isdisjoint(stopped)):
                here.append(folder)
        except SettingsError as error:
            unknown.append(str(error))
    return here, unknown


if __name__ == "__main__":
    sys.exit(main())
