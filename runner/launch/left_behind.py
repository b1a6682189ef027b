"""Unfinished jobs of an experiment that a command does not continue, because it asks for something slightly different.

A job is defined by its settings: changing a sample prompt or the number of steps makes another job, which starts from
scratch. Users of other trainers expect it to continue, so the plan says that it does not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.errors import SettingsError
from runner.job_folders import find_jobs
from runner.jobs.job import GOOD, read_manifest
from runner.jobs.lock import is_held
from runner.paths import JobPaths, last_step
from runner.plan import Plan

MOST_SHOWN = 3
MOST_DIFFERENCES = 3
"""A job with more differences than this is not considered the origin of a new one."""


def left_behind(plan: Plan) -> list[str]:
    """A line for each unfinished job with a checkpoint that differs only slightly from one that starts from scratch."""
    if plan.expected:  # a search continues its own trials
        return []
    new = [job for job in plan.todo if job.trains and job.folder not in plan.steps_done]
    known = {job.folder for job in (*plan.todo, *plan.done, *plan.elsewhere)}
    lines = []
    for experiment in dict.fromkeys(job.folder.parent for job in new):
        wanted = [job.identity for job in new if job.folder.parent == experiment]
        for paths, identity in _unfinished(experiment, known):
            differing = min((_differing(identity, each) for each in wanted), key=len)
            if len(differing) <= MOST_DIFFERENCES:
                lines.append(
                    f"  not continued: {paths.folder.name} (stopped after step {last_step(paths.checkpoints)}) differs "
                    f"in {', '.join(differing)}; a job with other settings is another one and starts anew"
                )
    more = len(lines) - MOST_SHOWN
    return lines[:MOST_SHOWN] + ([f"  not continued: {more} others that differ as little"] if more > 0 else [])


def _unfinished(experiment: Path, known: Collection[Path]) -> Iterator[tuple[JobPaths, Mapping[str, Any]]]:
    """The unfinished jobs with a checkpoint that nobody is working on, with their identities."""
    try:
        folders = [folder for folder in find_jobs(experiment) if folder not in known]
    except (OSError, ValueError):  # there is no such experiment yet
        return
    for folder in folders:
        paths = JobPaths(folder)
        try:
            manifest = read_manifest(folder) if last_step(paths.checkpoints) and not is_held(folder) else {}
        except SettingsError:
            continue
        if manifest.get("state") not in (None, *GOOD):
            yield paths, manifest["identity"]


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two identities differ, under the names that users know."""
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return [key.removeprefix("settings.") for key in keys]
