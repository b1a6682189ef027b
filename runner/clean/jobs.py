"""What job folders hold that nobody needs any more. Jobs that somebody is working on are left out."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from runner.clean.thing import Thing, measure
from runner.errors import RunnerError
from runner.jobs.job import Job, State, read_job, read_manifest, state_of
from runner.jobs.lock import is_held, is_taken_up, lock
from runner.paths import JobPaths
from runner.system.amounts import count

log = logging.getLogger(__name__)

GIVEN_UP = (State.FAILED, State.CANCELLED)
WAITING = (State.PENDING, State.INTERRUPTED)
"""Not final, and nobody can be working on such a job without holding it here or having submitted it."""


def readable(folders: Sequence[Path]) -> tuple[list[Job], bool]:
    """(the jobs that can be read, whether these are all). Nothing is listed for the others, which is reported.

    A folder without a manifest is no job: other programs also write a config.yaml.
    """
    jobs, registered = [], [folder for folder in folders if JobPaths(folder).manifest.is_file()]
    for folder in registered:
        try:
            jobs.append(read_job(folder))
        except RunnerError as error:
            log.warning("skipped: %s", error)
    return jobs, len(jobs) == len(registered)


def job_things(jobs: Sequence[Job]) -> Iterator[Thing]:
    """What could be freed from job folders, for all kinds that concern them."""
    for job in jobs:
        if job.folder.is_symlink():
            # Its target is somewhere else, where nobody has asked to remove anything.
            log.warning("skipped: %s is a link; name the folder it points to", job.folder)
            continue
        manifest = read_manifest(job.folder)
        state = State(manifest.get("state", State.PENDING))
        # Only the folder says what an endpoint costs, and how to remove it.
        if is_held(job.folder) or manifest.get("endpoint"):
            continue
        if state is State.COMPLETED and job.has_result:
            yield from _of_completed(job)
        elif state in GIVEN_UP:
            given_up = f"{_named(job)}: {state.value}"
            yield _thing("jobs", given_up, job, [job.folder], partial(_is_given_up, job.folder))
        elif _only_waits(job.folder):
            still = partial(_only_waits, job.folder)
            yield _thing("unfinished", f"{_named(job)}: {state.value}", job, [job.folder], still)


def _is_given_up(folder: Path) -> bool:
    return state_of(folder) in GIVEN_UP


def _only_waits(folder: Path) -> bool:
    """Whether a job waits, and no command is about to start it or is working on another job of its experiment."""
    manifest = read_manifest(folder)
    if State(manifest.get("state", State.PENDING)) not in WAITING or manifest.get("submission"):
        return False
    others = (each for each in folder.parent.iterdir() if each.is_dir() and each.name != folder.name)
    return not is_taken_up(folder) and not any(is_held(each) for each in others)


def _of_completed(job: Job) -> Iterator[Thing]:
    paths, named = job.paths, _named(job)
    if paths.checkpoints.is_dir() and not paths.checkpoints.is_symlink():
        yield _thing("checkpoints", f"{named}: checkpoints", job, [paths.checkpoints], partial(is_completed, job))
    between = _between(paths) if job.trains else []
    if between:
        text = f"{named}: images of {count(len(between), 'step')}"
        yield _thing("samples", text, job, between, partial(is_completed, job))


def _between(paths: JobPaths) -> list[Path]:
    """Folders of samples between the first and the last."""
    steps = sorted(folder for folder in paths.samples.glob("step-*") if folder.is_dir() and not folder.is_symlink())
    return steps[1:-1]


def _thing(kind: str, what: str, job: Job, paths: Sequence[Path], still: Callable[[], bool]) -> Thing:
    def remove() -> None:
        before = still()  # while its lock still says who else held it last
        with lock(job.folder):
            if not (before and still()):
                raise RunnerError(
                    f"{job.folder} is in another state than before, or a command works on its experiment; look again"
                )
            for path in paths:
                _remove_folder(path)

    return Thing(kind, what, *measure(paths), remove=remove)


def _remove_folder(folder: Path) -> None:
    # The files that mark it as a job go last, so that the folder is found again after an interruption.
    last = {JobPaths(folder).manifest, JobPaths(folder).config, JobPaths(folder).lock}
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child not in last:
            child.unlink(missing_ok=True)
    shutil.rmtree(folder)


def is_completed(job: Job) -> bool:
    """Whether a job is done and its result exists."""
    return state_of(job.folder) is State.COMPLETED and job.has_result


def _named(job: Job) -> str:
    return f"{job.folder.parent.name}/{job.folder.name}"
