"""Puts the page together and writes it: one file that needs nothing but itself.

Takes an experiment's folder, gives report.html in it. It reads only folders, never W&B or the network.
"""

from __future__ import annotations

import base64
import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from runner.report.charts import sparkline
from runner.report.pictures import MAX_JOBS, MAX_ROWS, MAX_STEPS, PictureBox, comparison_grid, progress_grid
from runner.report.record import HELD_OUT, JobRecord, find_jobs, read_job
from runner.report.views import (
    cell_for,
    comparison_charts,
    differing_overrides,
    facts_of_experiment,
    labelled,
    ranked,
    view_job,
)
from runner.report.words import duration, experiment_sentence, number, objective_label, plain

TEMPLATES = Path(__file__).parent / "templates"
REPORT_NAME = "report.html"

# With more jobs than this, each job's own grid shows only a few pictures.
MANY_JOBS = 6
FEW_STEPS, FEW_ROWS = 3, 4

# More overridden columns than this make the ranking too wide to read.
MAX_OVERRIDE_COLUMNS = 6


def write_report(experiment_dir: Path) -> Path:
    """Write `report.html` into a folder, atomically, and return its path.

    Args:
        experiment_dir: `outputs/<name>` with one or more jobs in it, or a single job's folder.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there is no job in it.
        OSError: if the file cannot be written; an older report is then untouched.
    """
    jobs = [read_job(folder) for folder in find_jobs(experiment_dir)]
    html = _render(labelled(jobs), experiment_dir)
    target = experiment_dir / REPORT_NAME
    temporary = target.with_name(f".{REPORT_NAME}.{os.getpid()}.tmp")
    temporary.write_text(html, encoding="utf-8")
    os.replace(temporary, target)
    return target


def _render(jobs: list[JobRecord], root: Path) -> str:
    script = (TEMPLATES / "hover.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    common = {
        "style": Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": digest,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "experiment": str(jobs[0].config.get("name") or root.resolve().name),
    }
    if len(jobs) == 1:
        return _environment().get_template("single.html.j2").render(**common, **_single(jobs[0], root))
    return _environment().get_template("several.html.j2").render(**common, **_several(ranked(jobs), root))


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(plain=plain, number=number, duration=duration)
    return environment


def _single(job: JobRecord, root: Path) -> dict[str, Any]:
    pictures = min(len(job.shots), MAX_ROWS) * min(len(job.steps_sampled), MAX_STEPS)
    box = PictureBox(expected=pictures, root=root)
    return {"view": view_job(job, progress_grid(job, box), root=root)}


def _several(jobs: list[JobRecord], root: Path) -> dict[str, Any]:
    many = len(jobs) > MANY_JOBS
    steps, rows = (FEW_STEPS, FEW_ROWS) if many else (MAX_STEPS, MAX_ROWS)
    per_job = sum(min(len(job.shots), rows) * min(len(job.steps_sampled), steps) for job in jobs)
    compared = min(max(len(job.shots) for job in jobs), MAX_ROWS) * min(len(jobs), MAX_JOBS)
    box = PictureBox(expected=per_job + compared, root=root)
    differing, shared = differing_overrides(jobs)
    columns = differing if len(differing) <= MAX_OVERRIDE_COLUMNS else []
    return {
        "views": [view_job(job, progress_grid(job, box, max_steps=steps, max_rows=rows), root=root) for job in jobs],
        "objective_label": objective_label(jobs[0]),
        "sentence": experiment_sentence(jobs),
        "facts": facts_of_experiment(jobs),
        "grid": comparison_grid(jobs, box),
        "charts": comparison_charts(jobs),
        "columns": columns,
        "cells": {job.id: [cell_for(job, key) for key in columns] for job in jobs},
        "overrides_in_one_column": len(differing) > MAX_OVERRIDE_COLUMNS,
        "shared": shared,
        "sparks": {job.id: sparkline(job.curve(HELD_OUT)) for job in jobs},
    }
