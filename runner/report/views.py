"""What the page says about one job and about several, as plain values for the templates.

Takes job records, gives tables, facts, charts and links. All text is raw; the templates escape it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import yaml

from runner.report.charts import Chart, Series, draw, smoothed
from runner.report.pictures import Grid
from runner.report.record import HELD_OUT, JobRecord, finite
from runner.report.words import (
    MISSING,
    duration,
    job_sentence,
    loss_name,
    moment,
    number,
    objective_label,
    plain,
)

MAX_LABEL_SETTINGS = 3
"""More differing settings than this make no title; the job's id does."""

CORE_SETTINGS = (
    "model.family", "model.path", "dataset.path", "method.name", "lora.rank", "lora.alpha", "lora.targets",
    "optimizer.name", "optimizer.lr", "lr_scheduler.name", "scheduler.name", "loss.name", "steps", "batch_size",
    "accumulation", "resolution", "precision", "seed",
)  # fmt: skip
PHASES = ("load", "cache", "train", "validate", "artifacts")
STATE_ORDER = ("completed", "running", "submitted", "pending", "interrupted", "pruned", "cancelled", "failed")
COLOURS = 8


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One line of the settings table."""

    key: str
    value: str
    changed: bool


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of a job's time, with its share of the whole between 0 and 1."""

    name: str
    text: str
    share: float


@dataclass(frozen=True, kw_only=True)
class JobView:
    """All that the page shows of one job."""

    job: JobRecord
    sentence: str
    facts: list[tuple[str, str]]
    grid: Grid | None
    charts: list[Chart]
    settings: list[Setting]
    config_text: str
    phases: list[Phase]
    environment: list[tuple[str, str]]
    links: list[tuple[str, str]]


def view_job(job: JobRecord, grid: Grid | None, *, root: Path) -> JobView:
    """The view of one job; `root` is the folder that the page lies in."""
    return JobView(
        job=job,
        sentence=job_sentence(job),
        facts=_facts(job),
        grid=grid,
        charts=_charts(job),
        settings=_settings(job),
        config_text=yaml.safe_dump(job.config, sort_keys=False, allow_unicode=True) if job.config else "",
        phases=_phases(job),
        environment=_environment(job),
        links=_links(job, root),
    )


def ranked(jobs: Sequence[JobRecord]) -> list[JobRecord]:
    """Best objective (the least) first, then the jobs without one by state and name."""

    def place(job: JobRecord) -> tuple[bool, float, int, str]:
        order = STATE_ORDER.index(job.state) if job.state in STATE_ORDER else len(STATE_ORDER)
        return job.objective is None, job.objective or 0.0, order, job.name

    return sorted(jobs, key=place)


def differing_overrides(jobs: Sequence[JobRecord]) -> tuple[list[str], list[tuple[str, str]]]:
    """The overridden keys in which the jobs differ, and the (key, value) pairs that they share."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    differing, shared = [], []
    for key in keys:
        values = {job.overrides.get(key) for job in jobs if job.overrides}
        if len(values) == 1:
            shared.append((key, str(values.pop())))
        else:
            differing.append(key)
    return differing, shared


def labelled(jobs: list[JobRecord]) -> list[JobRecord]:
    """The jobs with titles that tell them apart: the settings in which they differ, if those are few."""
    if len({job.name for job in jobs}) == len(jobs):
        return jobs
    keys, _ = differing_overrides(jobs)
    titles = [" ".join(f"{key}={job.overrides[key]}" for key in keys if key in job.overrides) for job in jobs]
    telling = 0 < len(keys) <= MAX_LABEL_SETTINGS and len(set(titles)) == len(jobs) and all(titles)
    return [replace(job, label=title if telling else job.id) for job, title in zip(jobs, titles, strict=True)]


def comparison_charts(jobs: Sequence[JobRecord]) -> list[Chart]:
    """Held-out loss and smoothed training loss of all jobs on one axis each; the best jobs have colours."""
    charts = []
    for title, metric, dots in (
        ("Held-out loss", HELD_OUT, True),
        ("Training loss, smoothed", "train/loss", False),
    ):
        series = []
        for place, job in enumerate(jobs):
            points = job.curve(metric)
            coloured = place < COLOURS
            series.append(
                Series(
                    label=job.name, points=points if dots else smoothed(points), dots=dots and coloured,
                    style=f"c{place}" if coloured else "other", in_legend=coloured,
                )
            )  # fmt: skip
        chart = draw(title, series[::-1])
        if chart is not None:
            chart.legend.reverse()
            charts.append(chart)
    return charts


def _facts(job: JobRecord) -> list[tuple[str, str]]:
    speed, size = job.images_per_s(), finite(job.manifest.get("parameters"))
    facts = [
        (objective_label(job), number(job.objective) if job.objective is not None else ""),
        ("steps", f"{job.steps_done:,}" if job.steps_done else ""),
        ("time", duration(job.total_s) if job.total_s is not None else ""),
        ("images per second", number(speed, 3) if speed is not None else ""),
        ("trained parameters", _large(size) if size is not None else ""),
        ("device", plain(job.manifest.get("device")) if job.manifest.get("device") else ""),
    ]
    return [(label, value) for label, value in facts if value]


def _charts(job: JobRecord) -> list[Chart]:
    raw, held = job.curve("train/loss"), job.curve(HELD_OUT)
    loss = [
        Series(label="train, each step", points=raw, style="raw"),
        Series(label="train, smoothed", points=smoothed(raw), style="main"),
        Series(label=loss_name(job), points=held, style="held", dots=True),
    ]
    bands = sorted({name for line in job.lines for name in line if name.startswith(f"{HELD_OUT}_t")})
    by_noise = [
        Series(label=f"t = {_timestep(name)}", points=job.curve(name), style=f"c{place}", dots=True)
        for place, name in enumerate(bands[:COLOURS])
    ]
    rates, norm = job.curve("train/lr"), job.curve("train/grad_norm")
    rate = draw("Learning rate", [Series(label="learning rate", points=rates)], zero=True)
    if rate is not None:
        rate = replace(rate, last=f"highest {number(max(value for _, value in rates))}")
    drawn = [
        draw("Loss", loss),
        draw("Held-out loss by noise level", by_noise),
        rate,
        draw("Gradient norm", [
            Series(label="each step", points=norm, style="raw"),
            Series(label="smoothed", points=smoothed(norm), style="main"),
        ]),
    ]  # fmt: skip
    return [chart for chart in drawn if chart is not None]


def _timestep(metric: str) -> str:
    digits = metric.rpartition("_t")[2]
    return str(int(digits)) if digits.isdecimal() else digits


def _settings(job: JobRecord) -> list[Setting]:
    overrides = job.overrides
    changed = [Setting(key=key, value=_override_value(job, key), changed=True) for key in overrides]
    core = [key for key in CORE_SETTINGS if key not in overrides and job.setting(key) is not None]
    return changed + [Setting(key=key, value=plain(job.setting(key)), changed=False) for key in core]


def _override_value(job: JobRecord, key: str) -> str:
    resolved = job.setting(key)
    return plain(resolved) if resolved is not None and not isinstance(resolved, dict) else job.overrides[key]


def _phases(job: JobRecord) -> list[Phase]:
    timings = {name: finite(value) for name, value in job.section("timings_s").items()}
    known = {name: seconds for name in PHASES if (seconds := timings.get(name)) is not None and seconds >= 0}
    total = timings.get("total")
    if total is not None and total - sum(known.values()) > 0.01 * total:
        known["other"] = total - sum(known.values())
    whole = sum(known.values()) or 1.0
    return [Phase(name=name, text=duration(s), share=s / whole) for name, s in known.items()]


def _environment(job: JobRecord) -> list[tuple[str, str]]:
    manifest = job.manifest
    rows = [(key, manifest.get(key)) for key in ("device", "git_commit")]
    rows += [(key, moment(manifest[key])) for key in ("created", "started", "finished") if manifest.get(key)]
    attempts = manifest.get("attempts")
    rows.append(("attempts", attempts if isinstance(attempts, int) and attempts > 1 else None))
    rows += sorted(job.section("versions").items())
    return [(key.replace("_", " "), plain(value)) for key, value in rows if value]


def _links(job: JobRecord, root: Path) -> list[tuple[str, str]]:
    folder = job.folder
    files = sorted((folder / "lora").rglob("*")) if (folder / "lora").is_dir() else []
    files += [folder / name for name in ("config.yaml", "manifest.json", "metrics.jsonl", "log.txt")]
    links = [
        (path.relative_to(folder).as_posix(), quote(path.relative_to(root).as_posix()))
        for path in files
        if path.is_file()
    ]
    url = job.manifest.get("wandb_url")
    if isinstance(url, str) and urlsplit(url).scheme in ("http", "https"):
        links.append(("Weights & Biases", url))
    return links


def _large(amount: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if amount >= size:
            return f"{amount / size:.3g} {unit}"
    return f"{amount:.0f}"


def facts_of_experiment(jobs: Sequence[JobRecord]) -> list[tuple[str, str]]:
    """The few numbers under the title of a report on several jobs."""
    objectives = [job.objective for job in jobs if job.objective is not None]
    spent = [job.total_s for job in jobs if job.total_s is not None]
    done = sum(job.state == "completed" for job in jobs)
    facts = [("completed", f"{done} of {len(jobs)}")]
    if objectives:
        facts += [("best", number(min(objectives))), ("worst", number(max(objectives)))]
    if spent:
        facts.append(("time in jobs", duration(sum(spent))))
    failed = sum(job.state == "failed" for job in jobs)
    return [*facts, ("failed", str(failed))] if failed else facts


def cell_for(job: JobRecord, key: str) -> Any:
    """What the ranking says for one overridden key."""
    return job.overrides.get(key) or plain(job.setting(key)) or MISSING
