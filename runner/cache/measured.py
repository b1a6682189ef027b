"""How long steps took and how much memory they needed on this machine: written by workers, read by the plan.

One line per measurement in a file of the cache folder. Deleting it loses nothing but predictions.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from runner.jobs.job import Job
from runner.paths import cache_dir, write_text
from runner.system.exclusive import alone

log = logging.getLogger(__name__)

KEPT_LINES = 500
MEASUREMENTS = "measured.jsonl"


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What the speed of a step depends on besides the number of images in it."""

    base: str
    """Fingerprint of the base model."""
    resolution: int
    precision: str
    text_encoder: bool
    checkpointing: bool
    device: str
    processes: int

    @classmethod
    def of(cls, job: Job, *, device: str, processes: int) -> Conditions:
        """The conditions of a job on a device."""
        settings, kept = job.experiment, job.settings.model.quantization
        return cls(
            job.identity["model"],
            settings.resolution,
            settings.precision if kept == "none" else f"{settings.precision} over {kept}",
            settings.live_text,
            settings.launcher.gradient_checkpointing,
            device,
            processes,
        )


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A number of images per step, and what was measured for it."""

    rows: int
    """Images per step, of all jobs of the pack together."""
    step_s: float
    peak_memory_gb: float
    overhead_s: float
    """From the start of the process to its first step, without encoding."""
    forward_s: float = 0.0
    """Drawing images, per image and pass through the denoiser (two per step with guidance); 0 if none were drawn."""


def measurements_file() -> Path:
    """The file that holds them."""
    return cache_dir() / MEASUREMENTS


def record(conditions: Conditions, found: Iterable[Measurement]) -> None:
    """Save measurements, if the file can be written; the oldest are dropped."""
    new = [json.dumps({**dataclasses.asdict(conditions), **dataclasses.asdict(each)}) for each in found]
    _add(new)


def take_in(text: str) -> None:
    """Keep what such a file of another machine has, as far as it is not here yet; see `record`."""
    _add(text.splitlines(), unless_known=True)


def _add(lines: Sequence[str], *, unless_known: bool = False) -> None:
    if not lines:
        return
    file = measurements_file()
    try:
        # Workers of a sweep end together: without the lock, each would overwrite what the others wrote.
        with alone(file.with_suffix(".lock"), doing="recording what it has measured"):
            known = _lines()
            skipped = {"", *known} if unless_known else ()
            if new := [line for line in lines if line not in skipped]:
                write_text(file, "\n".join([*known, *new][-KEPT_LINES:]) + "\n")
    except OSError as error:  # a full disk, or a cache that is not ours: no reason to fail what has trained
        log.warning("%s cannot be written: %s", file, error)


def recall(conditions: Conditions) -> list[Measurement]:
    """The newest measurement for each number of images, fewest first; drawing may have been measured earlier."""
    wanted = dataclasses.asdict(conditions)
    names = [field.name for field in dataclasses.fields(Measurement)]
    found: dict[int, Measurement] = {}
    forward_s = 0.0
    for text in _lines():
        try:
            line = json.loads(text)
            if all(line[key] == value for key, value in wanted.items()):
                found[int(line["rows"])] = Measurement(int(line["rows"]), *(float(line[name]) for name in names[1:]))
                forward_s = float(line["forward_s"]) or forward_s
        except (ValueError, KeyError, TypeError):
            continue  # a line of another version
    return [dataclasses.replace(found[rows], forward_s=forward_s) for rows in sorted(found)]


def step_s(known: Sequence[Measurement], rows: float) -> float:
    """Seconds per step with this many images: a least-squares fit of a + b * rows through the measurements.

    With a single measurement, the time is assumed proportional above it and constant below it.
    """
    assert known
    if len(known) == 1:
        return known[0].step_s * max(1.0, rows / known[0].rows)
    mean_rows = sum(each.rows for each in known) / len(known)
    mean_s = sum(each.step_s for each in known) / len(known)
    spread = sum((each.rows - mean_rows) ** 2 for each in known)
    slope = max(0.0, sum((each.rows - mean_rows) * (each.step_s - mean_s) for each in known) / spread)
    return max(mean_s + slope * (rows - mean_rows), known[0].step_s * min(1.0, rows / known[0].rows))


def _lines() -> list[str]:
    try:
        # A line made unreadable by a disk fault is treated like one of another version; training continues.
        return measurements_file().read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
