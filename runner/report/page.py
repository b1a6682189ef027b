"""Puts the page together and writes it as one self-contained file, with the exports beside it.

Takes an experiment's folder and writes report.html, sweep.csv and sweep.json into it. It reads only folders, never W&B
or the network.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from runner.job_folders import find_jobs
from runner.paths import ExperimentPaths, write_text
from runner.report.differences import differing_settings, labelled
from runner.report.evaluations import (
    Figures,
    apart,
    expected_pictures,
    exported_rows,
    figures_by_job,
    view_evaluations,
)
from runner.report.exports import as_csv, as_json, export_rows
from runner.report.pictures import MAX_ROWS, MAX_STEPS, PictureBox, progress_grid
from runner.report.ranking import rank
from runner.report.record import JobRecord, read_job
from runner.report.several import view_several
from runner.report.views import view_job
from runner.report.words import plain
from runner.system.amounts import duration, number
from runner.system.printable import whole

TEMPLATES = Path(__file__).parent / "templates"
SHORT_WORD = 16
"""How many characters fit above a picture, even on a phone."""


def write_report(experiment_dir: Path) -> Path:
    """Write `report.html`, `sweep.csv` and `sweep.json` into a folder, each atomically.

    Args:
        experiment_dir: `outputs/<name>` with one or more jobs in it, or a single job's folder.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if it contains no job.
        OSError: if a file cannot be written; the older one is then untouched.
    """
    paths = ExperimentPaths(experiment_dir)
    jobs, evaluations = apart([read_job(folder) for folder in find_jobs(experiment_dir)])
    jobs = labelled(jobs)
    figures = figures_by_job(jobs, evaluations)
    ranking = rank(jobs)
    differing, shared = differing_settings(jobs)
    name = str(jobs[0].config.get("name") or experiment_dir.resolve().name)
    now = datetime.now(UTC)
    if len(jobs) == 1:
        page = _render("single.html.j2", name, now, _single(jobs[0], figures, evaluations, experiment_dir))
    else:
        content = view_several(ranking, experiment_dir, figures=figures, evaluations=evaluations)
        page = _render("several.html.j2", name, now, content)
    rows = export_rows(ranking, differing, experiment_dir, figures)
    data = as_json(
        rows,
        ranking=ranking,
        shared=shared,
        experiment=name,
        written=now,
        evaluations=exported_rows(evaluations),
    )
    for file, text in ((paths.report, page), (paths.table, as_csv(rows)), (paths.summary, data)):
        write_text(file, whole(text))  # errors may name files whose names are not UTF-8
    return paths.report


def _render(template: str, name: str, now: datetime, content: dict[str, Any]) -> str:
    script = (TEMPLATES / "hover.js").read_text(encoding="utf-8")
    return environment(FileSystemLoader(TEMPLATES)).get_template(template).render(
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        written=now.strftime("%Y-%m-%d %H:%M UTC"),
        experiment=name,
        **content,
    )  # fmt: skip


def environment(loader: BaseLoader) -> Environment:
    """Templates that escape what they show and format values the way people write them."""
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(plain=plain, number=number, duration=duration, breaking=_breaking)
    return made


def _breaking(text: str) -> Markup:
    """A text in which a long setting may wrap before its value, and not within a number."""
    return Markup(" ").join(
        Markup("=<wbr>").join(word.split("=")) if len(word) > SHORT_WORD else escape(word) for word in text.split(" ")
    )


def _single(
    job: JobRecord, figures: Mapping[str, Figures], evaluations: Sequence[JobRecord], root: Path
) -> dict[str, Any]:
    pictures = min(len(job.shots), MAX_ROWS) * min(len(job.steps_sampled), MAX_STEPS)
    box = PictureBox(expected=pictures + expected_pictures(evaluations), root=root)
    return {
        "view": view_job(job, progress_grid(job, box), root=root, figures=figures[job.id]),
        "evaluations": view_evaluations(evaluations, [job], box),
    }
