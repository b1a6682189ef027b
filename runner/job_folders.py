"""The job folders that a command names, and what to say about folders that are not job folders.

Knows which files make a folder a job's, and nothing about their contents.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from runner.paths import CONFIG_NAME, MANIFEST_NAME, outputs_dir

NAME_ANY = "name outputs/<name>, a job in it, or a folder of experiments"
NAME_ONE = "name outputs/<name>, or a job in it"
NAME_JOB = "name a job in outputs/<name>"
"""The fix to suggest if nothing is found in a folder, for commands that take all of these kinds of folder, or fewer."""


def is_job_folder(folder: Path) -> bool:
    """Whether a folder is a job's; false for one that may not be read."""
    try:
        return (folder / MANIFEST_NAME).is_file() or (folder / CONFIG_NAME).is_file()
    except PermissionError:
        return False


def job_folders(folder: Path) -> list[Path]:
    """The jobs in an experiment, in all experiments of a folder, or the folder itself if it is a job's.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it contains no job.
    """
    folder = _checked(folder, NAME_ANY)
    if is_job_folder(folder):
        return [folder]
    jobs = _jobs_in(folder) or [job for child in sorted(folder.iterdir()) if child.is_dir() for job in _jobs_of(child)]
    if not jobs:
        raise ValueError(f"no job in {folder}: {NAME_ANY}")
    return jobs


def find_jobs(folder: Path) -> list[Path]:
    """The folder itself if it is a job's, else the job folders in it, by name.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it contains no job.
    """
    _checked(folder, NAME_ONE)
    jobs = [folder] if is_job_folder(folder) else _jobs_in(folder)
    if not jobs:
        raise ValueError(f"no job in {folder.absolute()}: {NAME_ONE}")
    return jobs


def the_job(folder: Path) -> Path:
    """The folder itself, once it is known to be a job's.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it is not a job's.
    """
    if not is_job_folder(_checked(folder, NAME_JOB)):
        raise ValueError(f"no job in {folder.absolute()}: {NAME_JOB}")
    return folder


def faults_of(folders: Sequence[Path], find: Callable[[Path], object]) -> list[str]:
    """What is wrong with the folders of a command line, one line each.

    Args:
        find: finds the jobs in a folder, or raises; one of the functions above.
    """
    faults = []
    for folder in folders:
        try:
            find(folder)
        except (OSError, ValueError) as error:
            faults.append(str(error))
    return faults


def no_folder(folder: Path, fix: str) -> str:
    """What to say about a folder that does not exist; it may be the name of an experiment, or a job's id."""
    named = (found for place in ("", "*/") for found in outputs_dir().glob(place + glob.escape(folder.name)))
    meant = next((found for found in named if found.is_dir()), None)
    return f"no folder {folder.absolute()}: {fix}" + (f" (did you mean {meant}?)" if meant else "")


def _checked(folder: Path, fix: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(no_folder(folder, fix))
    return folder.absolute()


def _jobs_of(experiment: Path) -> list[Path]:
    """The jobs in one of several experiments; none if it belongs to somebody else and may not be read."""
    try:
        return _jobs_in(experiment)
    except PermissionError:
        return []


def _jobs_in(folder: Path) -> list[Path]:
    jobs = sorted(child for child in folder.iterdir() if child.is_dir() and is_job_folder(child))
    # A link to a job in the same folder, such as `best`, is not another job.
    links = {job for job in jobs if job.is_symlink()}
    there = {job.resolve() for job in jobs if job not in links} if links else set()
    return [job for job in jobs if job not in links or job.resolve() not in there]
