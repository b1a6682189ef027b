"""Which settings differ between the jobs of an experiment, and the titles this gives the jobs.

Takes job records; reads their resolved settings, and the command-line overrides where those are shorter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.job_folders import find_jobs
from runner.report.record import JobRecord, as_mapping, read_briefly
from runner.report.words import abridged, plain
from runner.system.amounts import number

# These cannot change a result: names, places, how a batch is split, and the model's own defaults for other settings.
NO_EFFECT = (
    "name", "launcher", "logger", "checkpoint", "pruning", "objective", "task", "accumulation",
    "model.resolution", "model.precision",
)  # fmt: skip

NOMINAL = frozenset({"seed"})
"""Numbers that are only names: 7 is not more than 3."""

MAX_CHARTED_SETTINGS = 6
"""With more differing settings than this, there are too many charts and the axes are too close to read."""

MAX_LABEL_SETTINGS = 3
"""With more differing settings than this, the title is the job's id instead."""

LONG_VALUE = 24
"""Characters: longer values come last in titles, since a heading without room shows only the beginning of a text."""

MAX_VALUE = 100
"""Characters: longer values are abridged in titles to the part that distinguishes them."""

FRACTION = re.compile(r"[+-]?(\d*\.\d+|\d+(\.\d*)?(?=[eE]))([eE][+-]?\d+)?")
"""How a number that is not whole is typed: 0.0001, 1e-4."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A setting in which the jobs differ: its dotted key, and each job's value by id (None if it has none)."""

    key: str
    values: Mapping[str, Any]
    companions: tuple[str, ...] = ()
    """Other settings that differ between the same jobs, so their effects cannot be separated from this one's."""

    @property
    def distinct(self) -> int:
        """The number of different values."""
        return len(set(map(_canonical, self.values.values())))

    @property
    def split(self) -> tuple[int, ...]:
        """Which jobs share a value: equal for settings that change together, whatever their values are."""
        seen: dict[str, int] = {}
        return tuple(seen.setdefault(_canonical(value), len(seen)) for value in self.values.values())


def differing_settings(jobs: Sequence[JobRecord]) -> tuple[list[Difference], dict[str, Any]]:
    """The resolved settings that can change a result: those in which the jobs differ, and those that all share.

    A job whose config.yaml cannot be read is ignored; for a setting, so is a job whose task does not know it.
    """
    kinds = [{job.id: dict(_leaves(job.config)) for job in kind if job.config} for kind in by_task(jobs)]
    differing, shared = [], {}
    for key in dict.fromkeys(key for kind in kinds for each in kind.values() for key in each):
        if not _has_effect(key):
            continue
        knowing = [kind for kind in kinds if any(key in each for each in kind.values())]
        found = Difference(key=key, values={job_id: each.get(key) for kind in knowing for job_id, each in kind.items()})
        if found.distinct > 1:
            differing.append(found)
        else:
            shared[key] = next(iter(found.values.values()))
    return differing, shared


def differing_overrides(jobs: Sequence[JobRecord]) -> tuple[list[str], list[tuple[str, str]]]:
    """The overridden keys in which the jobs of a task differ, and the (key, value) pairs that all jobs share.

    A job whose manifest does not list its overrides is ignored; one with an empty list counts.
    """
    keys = dict.fromkeys(key for job in jobs for key in job.overrides if _has_effect(key))
    differing, shared = [], []
    for key in keys:
        values = [{job.overrides.get(key) for job in kind if "overrides" in job.manifest} for kind in by_task(jobs)]
        together = set().union(*values)
        if any(len(each) > 1 for each in values):
            differing.append(key)
        elif len(together) == 1:
            shared.append((key, str(together.pop())))
    return differing, shared


def by_task(jobs: Sequence[JobRecord]) -> list[list[JobRecord]]:
    """The jobs grouped by task: only jobs of one task have the same settings, in which they can differ."""
    found: dict[str, list[JobRecord]] = {}
    for job in jobs:
        found.setdefault(job.task, []).append(job)
    return list(found.values())


def compared(jobs: Sequence[JobRecord]) -> Sequence[JobRecord]:
    """The jobs for which the page shows the effect of settings: the trainings, if there are any, else all."""
    return [job for job in jobs if job.trains] or jobs


def labelled(jobs: list[JobRecord]) -> list[JobRecord]:
    """The jobs with titles that distinguish them: the settings in which they differ, if those are few."""
    if len({job.name for job in jobs}) == len(jobs):
        return jobs
    kinds = by_task(jobs)
    titles = {folder: title for kind in kinds for folder, title in _titles(kind).items()}
    if len(set(titles.values())) < len(jobs):
        titles = {job.folder: job.id for job in jobs}
    tasks = {job.folder: "" if job.trains or len(kinds) == 1 else f"{job.task} " for job in jobs}
    return [replace(job, label=tasks[job.folder] + titles[job.folder]) for job in jobs]


def _titles(jobs: Sequence[JobRecord]) -> dict[Path, str]:
    """Folder -> title that distinguishes a job from the others of its task."""
    keys, _ = differing_overrides(jobs)
    keys.sort(key=lambda key: any(len(job.overrides.get(key, "")) > LONG_VALUE for job in jobs))
    given = [{key: job.overrides[key] for key in keys if key in job.overrides} for job in jobs]
    set_by_hand = [" ".join(f"{key}={value}" for key, value in each.items()) for each in given]
    short = {key: _short({_rounded(each[key]) for each in given if key in each}) for key in keys}
    rounded = [" ".join(f"{key}={short[key][_rounded(value)]}" for key, value in each.items()) for each in given]
    differing, _ = differing_settings(jobs)
    differing.sort(key=lambda one: any(len(plain(value)) > LONG_VALUE for value in one.values.values()))
    resolved = [" ".join(f"{one.key}={plain(one.values.get(job.id))}" for one in differing) for job in jobs]
    for titles, length in ((rounded, len(keys)), (set_by_hand, len(keys)), (resolved, len(differing))):
        if 0 < length <= MAX_LABEL_SETTINGS and len(set(titles)) == len(jobs) and all(titles):
            return {job.folder: title for job, title in zip(jobs, titles, strict=True)}
    return {job.folder: job.id for job in jobs}


def _short(texts: set[str]) -> dict[str, str]:
    return dict(zip(texts, abridged(list(texts), MAX_VALUE), strict=True))


def _rounded(text: str) -> str:
    """A value as it was set; a fraction as in tables: one drawn by a search has more digits than anybody reads."""
    return number(float(text)) if FRACTION.fullmatch(text) else text


def told_apart(differing: Sequence[Difference], *, first: Sequence[str]) -> list[Difference]:
    """The settings without those that only change together with another; these become its companions.

    Args:
        differing: settings in which the same jobs differ.
        first: keys that come first, in this order, and that are never companions.
    """

    def order(one: Difference) -> tuple[int, bool]:
        # The choice of a group represents all the settings that come with it.
        return (first.index(one.key) if one.key in first else len(first)), not one.key.endswith(".name")

    kept: list[list[Difference]] = []
    for one in sorted(differing, key=order):
        leader = next((group for group in kept if group[0].split == one.split and one.key not in first), None)
        if leader is None:
            kept.append([one])
        else:
            leader.append(one)
    return [replace(one, companions=tuple(other.key for other in others)) for one, *others in kept]


def most_varied(differing: Sequence[Difference], limit: int = MAX_CHARTED_SETTINGS) -> list[Difference]:
    """At most `limit` of the settings, those with the most distinct values, in their original order."""
    most = sorted(range(len(differing)), key=lambda index: differing[index].distinct, reverse=True)[:limit]
    return [differing[index] for index in sorted(most)]


def differing_keys(experiment_dir: Path) -> list[str]:
    """The settings that the charts of an experiment's report show, by dotted key.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if it contains no job.
    """
    jobs = [job for job in map(read_briefly, find_jobs(experiment_dir)) if job.trains]
    return [one.key for one in most_varied(told_apart(differing_settings(jobs)[0], first=differing_overrides(jobs)[0]))]


def _has_effect(key: str) -> bool:
    return not any(key == prefix or key.startswith(f"{prefix}.") for prefix in NO_EFFECT)


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(as_mapping(value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _canonical(value: Any) -> str:
    """The same text for equal values, such as 1 and 1.0."""
    number = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return json.dumps(number, sort_keys=True, default=str)
