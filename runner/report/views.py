"""What the page says about one job, as plain values for the templates.

Takes a job record, returns tables, facts, charts and links. All text is raw; the templates escape it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, urlsplit

import yaml

from runner.paths import CONFIG_NAME, LOG_NAME, LORA_NAME, MANIFEST_NAME, METRICS_NAME, named_like
from runner.report.charts import Series, draw, smoothed
from runner.report.evaluations import Figures, label_of
from runner.report.frame import Chart
from runner.report.pictures import Grid
from runner.report.ranking import COLOURS
from runner.report.record import JobRecord, finite
from runner.report.words import job_sentence, loss_name, objective_label, plain
from runner.schema.metrics import EARLIER, GRAD_NORM, HELD_OUT, LEARNING_RATE, TRAIN_LOSS
from runner.system.amounts import duration, moment, number

CORE_SETTINGS = (
    "model.family", "model.path", "dataset.path", "method.name", "lora.rank", "lora.alpha", "lora.targets",
    "optimizer.name", "optimizer.lr", "lr_scheduler.name", "scheduler.name", "loss.name", "steps", "batch_size",
    "accumulation", "resolution", "precision", "seed",
)  # fmt: skip
PHASES = ("load", "cache", "train", "validate", "artifacts")


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
    """Everything the page shows about one job."""

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


def view_job(job: JobRecord, grid: Grid | None, *, root: Path, figures: Figures) -> JobView:
    """The view of one job.

    Args:
        root: the folder that the page is in.
        figures: the measurements of its result.
    """
    return JobView(
        job=job,
        sentence=job_sentence(job),
        facts=_facts(job) + [(label_of(name), figure.text) for name, figure in figures.items()],
        grid=grid,
        charts=_charts(job),
        settings=_settings(job),
        config_text=yaml.safe_dump(job.config, sort_keys=False, allow_unicode=True) if job.config else "",
        phases=_phases(job),
        environment=_environment(job),
        links=_links(job, root),
    )


def _facts(job: JobRecord) -> list[tuple[str, str]]:
    speed, size = job.images_per_s(), finite(job.manifest.get("parameters"))
    facts = [
        (objective_label(job), number(job.objective) if job.objective is not None else ""),
        ("kept of the earlier training", _kept(job)),
        ("steps", f"{job.steps_done:,}" if job.steps_done else ""),
        ("time", duration(job.total_s) if job.total_s is not None else ""),
        ("images per second", number(speed, 3) if speed is not None else ""),
        ("trained parameters", _large(size) if size is not None else ""),
        ("device", plain(job.manifest.get("device")) if job.manifest.get("device") else ""),
    ]
    return [(label, value) for label, value in facts if value]


def _kept(job: JobRecord) -> str:
    """How much of the earlier training is kept: the share of its gain over the base that its images still show."""
    share = finite(job.section("kept_of_earlier").get("share"))
    return f"{share:.0%}" if share is not None else ""


def _charts(job: JobRecord) -> list[Chart]:
    raw, held = job.curve(TRAIN_LOSS), job.curve(HELD_OUT)
    loss = [
        Series(label="train, each step", points=raw, style="raw"),
        Series(label="train, smoothed", points=smoothed(raw), style="main"),
        Series(label=loss_name(job), points=held, style="held", dots=True),
    ]
    if earlier := job.curve(EARLIER):
        loss.append(Series(label="on the images of the earlier training", points=earlier, style="c2", dots=True))
    bands = sorted(name for name in job.numbers.names if name.startswith(f"{HELD_OUT}_t"))
    by_noise = [
        Series(label=f"t = {_timestep(name)}", points=job.curve(name), style=f"c{place}", dots=True)
        for place, name in enumerate(bands[:COLOURS])
    ]
    rates, norm = job.curve(LEARNING_RATE), job.curve(GRAD_NORM)
    rate = draw("Learning rate", [Series(label="learning rate", points=rates)], zero=True)
    if rate is not None:
        rate = replace(rate, last=f"highest {number(max(value for _, value in rates))}")
    drawn = [
        draw("Loss", loss),
        draw(f"{loss_name(job).capitalize()} by noise level", by_noise),
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
    files = sorted(named_like("**/*", folder / LORA_NAME))
    files += [folder / name for name in (CONFIG_NAME, MANIFEST_NAME, METRICS_NAME, LOG_NAME)]
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
