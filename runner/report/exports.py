"""The whole sweep as data: sweep.csv for spreadsheets, sweep.json for programs.

Takes a ranking and the settings in which its jobs differ; returns text. Both hold the same data, one job per row.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.report.differences import Difference
from runner.report.evaluations import Figures, exported
from runner.report.ranking import Ranked, Ranking
from runner.report.record import JobRecord

SCHEMA_VERSION = 1
"""Version of sweep.json; increased when the meaning or place of something in it changes."""

# Parts of a row that are mappings, and the parts whose keys mean nothing without the part's name.
NESTED = ("settings", "metrics", "figures", "timings_s", "cost")
PREFIXED = ("timings_s", "cost")

# A spreadsheet takes a text that starts with one of these for a formula.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n")


def export_rows(
    ranking: Ranking, differing: Sequence[Difference], root: Path, figures: Mapping[str, Figures]
) -> list[dict[str, Any]]:
    """One mapping per job, best first.

    Args:
        root: the folder of the experiment.
        figures: the measurements of each job's result, by its id.
    """
    return [_row(entry, differing, root) | {"figures": exported(figures[entry.job.id])} for entry in ranking.entries]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table with a header; a value that only some jobs have is empty for the others.

    Settings, metrics and figures keep their own names; timings and costs are prefixed with `timings_s.` and `cost.`.
    Texts that a spreadsheet would take for a formula begin with an apostrophe.
    """
    columns = [
        (part, name)
        for part in rows[0]
        for name in (dict.fromkeys(key for row in rows for key in row[part]) if part in NESTED else [""])
    ]
    heads = [part if part not in NESTED else f"{part}.{name}" if part in PREFIXED else name for part, name in columns]
    stream = io.StringIO()
    # This line end makes csv quote any value that contains \r or \n, as well as a comma or a quote.
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow([_cell(head) for head in heads])
    writer.writerows([_cell(row[part].get(name) if name else row[part]) for part, name in columns] for row in rows)
    return stream.getvalue()


def as_json(
    rows: Sequence[Mapping[str, Any]],
    *,
    ranking: Ranking,
    shared: Mapping[str, Any],
    experiment: str,
    written: datetime,
    evaluations: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The rows, with what they have in common. Non-finite numbers become null.

    Args:
        rows: as returned by `export_rows`.
        ranking: says what the jobs are compared by.
        shared: the settings that are the same in all jobs, by dotted key.
        evaluations: the jobs that measured the results of others.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "experiment": experiment,
        "written": written.astimezone(UTC).isoformat(timespec="seconds"),
        "objective": {"name": ranking.aim.name, "direction": ranking.aim.direction},
        "best": None if ranking.best is None else ranking.best.job.id,
        "shared_settings": shared,
        "jobs": rows,
        "evaluations": evaluations,
    }
    return json.dumps(strict(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _row(entry: Ranked, differing: Sequence[Difference], root: Path) -> dict[str, Any]:
    job = entry.job
    return {
        "id": job.id,
        "state": job.state,
        "objective": job.objective,
        "place": entry.place,
        "settings": {one.key: one.values[job.id] for one in differing if job.id in one.values},
        "metrics": _last_metrics(job),
        "figures": {},
        "steps_done": job.steps_done,
        "timings_s": job.section("timings_s"),
        "cost": job.section("cost"),
        "error": job.error or None,
        "folder": job.folder.relative_to(root).as_posix(),
    }


def _last_metrics(job: JobRecord) -> dict[str, float]:
    return {name: job.curve(name)[-1][1] for name in job.numbers.names}


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return value
    written = value if isinstance(value, str) else json.dumps(strict(value), ensure_ascii=False)
    return f"'{written}" if written.startswith(FORMULA_SIGNS) else written


def strict(value: Any) -> Any:
    """The value reduced to what JSON can represent."""
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float)) else str(value)
