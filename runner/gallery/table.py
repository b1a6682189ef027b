"""Samples of jobs side by side: a row for each prompt and seed, a column for each job of any experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runner.gallery.shelf import Shelf
from runner.report.pictures import prompt_of, standing
from runner.report.ranking import Ranked
from runner.report.record import JobRecord

MOST_JOBS = 24
MOST_ROWS = 48


@dataclass(frozen=True, kw_only=True)
class Head:
    """A column's heading."""

    title: str
    about: str
    path: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One prompt and seed; the path of a missing picture is empty."""

    prompt: str
    seed: int
    pictures: list[str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Lines under common headings."""

    heads: list[Head]
    lines: list[Line]
    left_out: int
    of_jobs: int = 1
    """How many jobs have samples; the best of them have columns."""


def side_by_side(entries: Sequence[Ranked], shelf: Shelf) -> Table | None:
    """The last samples of jobs, after a column from before training if all share a base model; None without samples."""
    sampled = [entry for entry in entries if entry.job.steps_sampled]
    known = [entry for entry in sampled if entry.job.steps_sampled[-1] > 0 or not entry.job.trains]
    shown = known[:MOST_JOBS]
    jobs = [entry.job for entry in shown]
    if not jobs:
        return None
    keys: dict[tuple[str, int], str] = {}
    last: list[dict[tuple[str, int], str]] = []
    for job in jobs:
        mine = {}
        for row, by_step in job.shots.items():
            key = (prompt_of(job, row), row.seed)
            if job.trains and 0 in by_step and not keys.get(key):
                keys[key] = shelf.picture_path(by_step[0])
            keys.setdefault(key, "")
            if (shot := by_step.get(job.steps_sampled[-1])) is not None:
                mine[key] = shelf.picture_path(shot)
        last.append(mine)
    heads = [Head(title=one.job.name, about=standing(one), path=shelf.path_of(one.job.folder)) for one in shown]
    before = any(keys.values()) and len({str(job.setting("model")) for job in jobs}) == 1
    if before:
        heads.insert(0, Head(title="before", about="step 0"))
    lines = [
        Line(
            prompt=prompt,
            seed=seed,
            pictures=[*([start] if before else []), *(mine.get((prompt, seed), "") for mine in last)],
        )
        for (prompt, seed), start in keys.items()
    ]
    lines.sort(key=lambda line: line.pictures.count(""))  # those that most jobs have drawn come first
    left_out = max(0, len(lines) - MOST_ROWS)
    return Table(heads=heads, lines=lines[:MOST_ROWS], left_out=left_out, of_jobs=len(known))


def over_steps(job: JobRecord, shelf: Shelf) -> Table | None:
    """One job's samples, a column for each step, or what a task has drawn; None without samples."""
    steps = job.steps_sampled
    if not steps:
        return None
    steps = steps if job.trains else steps[-1:]
    lines = [
        Line(
            prompt=prompt_of(job, row),
            seed=row.seed,
            pictures=[shelf.picture_path(by_step[step]) if step in by_step else "" for step in steps],
        )
        for row, by_step in job.shots.items()
    ]
    heads = [Head(title="drawn", about="")]
    if job.trains:
        names = ["before" if step == 0 else f"step {step:,}" for step in steps]
        heads = [Head(title=name, about="step 0" if name == "before" else "") for name in names]
    return Table(heads=heads, lines=lines[:MOST_ROWS], left_out=max(0, len(lines) - MOST_ROWS))
