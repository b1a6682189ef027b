"""The table that people see: a row for each job, with what distinguishes it and how far it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from runner.jobs.deployed import undeploy_command
from runner.jobs.job import State
from runner.report.record import finite
from runner.report.words import loss_name
from runner.schema.metrics import HELD_OUT
from runner.status.experiment import TOGETHER, ExperimentStatus
from runner.status.look import ACTIVE, DEAD, STARTING, JobStatus
from runner.system.amounts import MISSING, count, duration, number
from runner.system.printable import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

BAR_WIDTH = 12
COLUMN_GAP = 2
STYLES = {
    State.RUNNING: "cyan",
    STARTING: "cyan",
    State.COMPLETED: "green",
    State.FAILED: "bold red",
    DEAD: "bold red",
    State.INTERRUPTED: "yellow",
    State.CANCELLED: "yellow",
    State.PRUNED: "magenta",
}
FRAME_LINES = 6
"""Lines of an experiment's part of the screen, not counting its rows and the reasons for failures."""
FEWEST_ROWS = 3
MAX_REASONS = 5
LEFT_OUT = ("where", "progress", "images/s", "last sign")
"""Columns to leave out on a narrow terminal, in this order."""


def tables(experiments: Sequence[ExperimentStatus], *, width: int, height: int | None = None) -> RenderableType:
    """A table for each experiment.

    Args:
        width: columns of text available; the least important table columns are left out first.
        height: lines available; jobs and experiments that do not change are left out first. None shows all.
    """
    from rich.console import Group
    from rich.text import Text

    shown = experiments if height is None else _that_fit(experiments, height)
    each = None if height is None else height // max(1, len(shown))
    parts = [part for experiment in shown for part in _parts(experiment, width, each)]
    if len(shown) < len(experiments):
        parts.append(Text(f"and {len(experiments) - len(shown)} more experiments; --once shows all", style="dim"))
    return Group(*parts)


def _that_fit(experiments: Sequence[ExperimentStatus], height: int) -> list[ExperimentStatus]:
    """At least one of them, in their order; active ones, then the most recently changed, take precedence."""

    def order(index: int) -> tuple[bool, float]:
        silences = [job.silent_s for job in experiments[index].jobs if job.silent_s is not None]
        return not experiments[index].is_active, min(silences, default=math.inf)

    def lines(experiment: ExperimentStatus) -> int:
        rows = min(FEWEST_ROWS, len(experiment.jobs))
        return FRAME_LINES + rows + len(costing(experiment)) + len(_reasons(experiment))

    kept: list[int] = []
    for index in sorted(range(len(experiments)), key=order):
        if kept and sum(lines(experiments[each]) for each in (*kept, index)) > height:
            break
        kept.append(index)
    return [experiments[index] for index in sorted(kept)]


def _parts(experiment: ExperimentStatus, width: int, height: int | None) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    reasons = _reasons(experiment)
    room = None if height is None else max(FEWEST_ROWS, height - FRAME_LINES - len(reasons))
    shown = _most_active(experiment.jobs, room)
    # Names and values are the user's: in a str, rich would read text in brackets as markup.
    title = Text(printable(experiment.folder.name), style="bold")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    rows = [_cells(experiment, job) for job in shown]
    columns = _fitting(rows, width)
    for name, heading in columns.items():
        text = name in ("job", "task", "state", "progress", "where", TOGETHER)
        overflow: Literal["fold", "ellipsis"] = "fold" if name in experiment.columns else "ellipsis"
        table.add_column(
            Text("" if name == "progress" else heading),
            justify="left" if text else "right",
            no_wrap=name not in experiment.columns,
            overflow=overflow,
        )
    for row in rows:
        cells = (row[name] for name in columns)
        table.add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in cells))
    yield table
    if len(shown) < len(experiment.jobs):
        yield Text(f"and {len(experiment.jobs) - len(shown)} more; --once shows all", style="dim")
    yield Text(totals(experiment))
    yield from (Text(line, style="bold yellow") for line in costing(experiment))
    yield from (Text(printable(line), style=STYLES[State.FAILED]) for line in reasons)
    yield Text("")


def _cells(experiment: ExperimentStatus, job: JobStatus) -> dict[str, RenderableType]:
    """A job's row, by the names of the columns."""
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    steps = job.steps or max(1, job.steps_done)
    style = STYLES.get(job.state, "")
    diverged = job.value is not None and math.isnan(job.value)
    # Most experiments contain only trainings; if there is anything else, tasks are named.
    others = any(not each.record.trains for each in experiment.jobs)
    done = job.state == State.COMPLETED
    completed = min(job.steps_done, steps) if job.record.trains else steps * done
    return {
        "job": job.record.id,
        **({"task": job.record.task} if others else {}),
        **dict(zip(experiment.columns, experiment.cells[job.record.id], strict=True)),
        "state": Text(job.state, style=style),
        "progress": ProgressBar(total=steps, completed=completed, width=BAR_WIDTH),
        "steps": f"{job.steps_done:,} of {steps:,}" if job.record.trains else MISSING,
        _metric_name(experiment): "nan" if diverged else number(job.value),
        "images/s": number(job.images_per_s, digits=3),
        "left": duration(job.left_s),
        "last sign": _age(job.silent_s),
        "where": job.where,
    }


def _metric_name(experiment: ExperimentStatus) -> str:
    """The name of the metric that jobs are compared by."""
    if experiment.metric != HELD_OUT:
        return experiment.metric
    return next((loss_name(job.record) for job in experiment.jobs if job.record.section("dataset")), "held-out loss")


def _fitting(rows: Sequence[Mapping[str, RenderableType]], width: int) -> dict[str, str]:
    """The columns that fit, with their headings, which take two lines if values would otherwise not fit."""
    from rich.text import Text

    def width_of(cell: RenderableType) -> int:
        return len(cell) if isinstance(cell, (str, Text)) else BAR_WIDTH

    widths = {name: max(len(name), *(width_of(row[name]) for row in rows)) for name in rows[0]}
    for name in LEFT_OUT:
        if sum(widths.values()) + COLUMN_GAP * (len(widths) - 1) > width:
            del widths[name]
    narrow = sum(widths.values()) + COLUMN_GAP * (len(widths) - 1) > width
    return {name: _in_two_lines(name) if narrow else name for name in widths}


def _in_two_lines(name: str) -> str:
    """A heading split near its middle, between words or the parts of a key."""
    ends = [index + 1 for index, sign in enumerate(name) if sign in " ."]
    end = min(ends, key=lambda end: abs(2 * end - len(name)), default=0)
    return f"{name[:end].rstrip()}\n{name[end:]}" if end else name


def _age(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.0f} s ago"
    return f"{seconds // 86400:.0f} days ago" if seconds >= 2 * 86400 else f"{duration(seconds)} ago"


def _most_active(jobs: Sequence[JobStatus], rows: int | None) -> Sequence[JobStatus]:
    """At most `rows` jobs, in their order; active ones, then unfinished and failed ones, take precedence."""
    if rows is None or len(jobs) <= rows:
        return jobs
    order = (*ACTIVE, DEAD, State.FAILED, State.INTERRUPTED, State.PENDING)
    ranks = [order.index(job.state) if job.state in order else len(order) for job in jobs]
    kept = sorted(sorted(range(len(jobs)), key=lambda index: ranks[index])[:rows])
    return [jobs[index] for index in kept]


def totals(experiment: ExperimentStatus) -> str:
    """One line about all jobs together."""
    parts = [f"{amount} {state}" for state, amount in experiment.counts.items()]
    text = f"{count(len(experiment.jobs), 'job')}: {', '.join(parts)}"
    left_s = experiment.left_s
    if left_s is None:
        return text
    now = datetime.now().astimezone()
    end = now + timedelta(seconds=left_s)
    return (
        f"{text}; about {duration(left_s)} left, until {end:{'%H:%M' if end.date() == now.date() else '%d %b %H:%M'}}"
    )


def costing(experiment: ExperimentStatus) -> list[str]:
    """A line for each endpoint that was created and not removed: it costs money whether it is used or not."""
    lines = []
    for job in experiment.jobs:
        endpoint = job.record.section("endpoint")
        if not endpoint.get("name"):
            continue
        price = finite(endpoint.get("usd_per_hour"))
        many = f"{endpoint.get('instances')} x {endpoint.get('instance')}"
        cost = many if price is None else f"{many}, about {price:.2f} USD an hour"
        lines.append(
            f"endpoint {endpoint['name']} in {endpoint.get('region')} costs money: {cost}, since "
            f"{endpoint.get('made')}; {undeploy_command(endpoint)}"
        )
    return lines


def _reasons(experiment: ExperimentStatus) -> list[str]:
    """Why jobs failed, and what to do about dead ones."""
    failed = [job for job in experiment.jobs if job.state == State.FAILED]
    lines = [f"{job.record.id}: {(job.record.error.splitlines() or ['no reason given'])[0]}" for job in failed]
    if len(lines) > MAX_REASONS:
        lines[MAX_REASONS:] = [f"and {len(lines) - MAX_REASONS} more failed"]
    dead = [job.record.id for job in experiment.jobs if job.state == DEAD]
    if dead:
        lines.append(f"{', '.join(dead)}: nobody works on it any more; run the same command again, and it goes on")
    return lines
