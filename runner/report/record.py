"""Reads job folders as they are: whole, half written, or damaged.

Returns one `JobRecord` per folder. A missing or torn file leaves its part empty and is named in
`problems`; nothing here raises because of what is inside a folder.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import yaml

from runner.paths import SAMPLES_NAME, JobPaths, samples_in
from runner.schema.metrics import IMAGES_PER_S
from runner.track.metrics import parse_line

LOG_TAIL_BYTES = 6000

# Ten times as fast if PyYAML was built with libyaml; a sweep has a hundred of these files.
SafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Point = tuple[float, float]


class Row(NamedTuple):
    """One fixed sample of the grid: which prompt, which seed."""

    prompt: int
    seed: int


class Numbers:
    """The recorded values of each metric.

    Each value takes 16 bytes: a hundred thousand lines kept as mappings would take a hundred megabytes, and an
    experiment has many jobs.
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        self.last_step = 0
        self._columns: dict[str, tuple[array[float], array[float]]] = {}
        for line in lines:
            step = int(line["step"])
            self.last_step = max(self.last_step, step)
            for name, value in line.items():
                if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                    steps, values = self._columns.setdefault(name, (array("d"), array("d")))
                    steps.append(step)
                    values.append(value)

    @property
    def names(self) -> list[str]:
        """The names of all metrics, in the order in which they first appear."""
        return [name for name in self._columns if name != "time"]

    @property
    def last_time(self) -> float | None:
        """When something was last recorded, in seconds since the epoch."""
        _, times = self._columns.get("time", ((), ()))
        return max(filter(math.isfinite, times), default=None)

    def curve(self, name: str) -> list[Point]:
        """A metric as (step, value), in step order; if a step occurs twice, its last value counts."""
        return sorted(dict(zip(*self._columns.get(name, ((), ())), strict=True)).items())


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """The content of one job folder."""

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    problems: list[str]
    numbers: Numbers = field(default_factory=Numbers)
    prompts: list[str] = field(default_factory=list)
    negative_prompt: str = ""
    shots: dict[Row, dict[int, Path]] = field(default_factory=dict)
    log_tail: str = ""
    label: str = ""
    """What distinguishes it from the other jobs of its experiment, which share its name."""

    @property
    def id(self) -> str:
        """The job's id; the name of its folder if the manifest has none."""
        return str(self.manifest.get("id") or self.folder.name)

    @property
    def name(self) -> str:
        """The job's title."""
        return self.label or str(self.manifest.get("name") or self.id)

    @property
    def state(self) -> str:
        """The state in the manifest, or `unknown`."""
        return str(self.manifest.get("state") or "unknown")

    @property
    def task(self) -> str:
        """The name of its task."""
        return str(self.manifest.get("task") or self.setting("task.name") or "train")

    @property
    def trains(self) -> bool:
        """Whether it is a training rather than another task."""
        return self.task == "train"

    @property
    def objective(self) -> float | None:
        """The job's result if it is a finite number; `runner.report.ranking.Aim` knows which direction is better."""
        return finite(self.manifest.get("objective"))

    @property
    def total_s(self) -> float | None:
        """Seconds from start to end."""
        return finite(self.section("timings_s").get("total"))

    @property
    def error(self) -> str:
        """Why the job failed; empty if it did not."""
        return str(self.manifest.get("error") or "")

    @property
    def steps_done(self) -> int:
        """Optimizer steps done: the manifest's count, or the last logged step if that is further."""
        said = self.manifest.get("steps_done")
        logged = self.numbers.last_step
        return max(logged, said) if isinstance(said, int) else logged

    @property
    def overrides(self) -> dict[str, str]:
        """What was set on the command line, by key."""
        raw = self.manifest.get("overrides")
        pairs = [str(item).partition("=") for item in raw] if isinstance(raw, list) else []
        return {key.lstrip("+~"): value for key, _, value in pairs}

    @property
    def steps_sampled(self) -> list[int]:
        """All steps for which there is an image, in order."""
        return sorted({step for by_step in self.shots.values() for step in by_step})

    def section(self, name: str) -> dict[str, Any]:
        """A part of the manifest as a mapping; empty if it is missing or something else."""
        return as_mapping(self.manifest.get(name))

    def setting(self, key: str) -> Any:
        """A setting by its dotted key, or None."""
        value: Any = self.config
        for part in key.split("."):
            value = as_mapping(value).get(part)
        return value

    def curve(self, name: str) -> list[Point]:
        """A metric as (step, value), in step order; NaN and infinities are kept."""
        return self.numbers.curve(name)

    def images_per_s(self) -> float | None:
        """Training speed: the median of the logged values, in images per second."""
        speeds = [value for _, value in self.curve(IMAGES_PER_S) if math.isfinite(value)]
        return median(speeds) if speeds else None


def finite(value: Any) -> float | None:
    """The value as a float if it is a finite number, else None."""
    try:
        found = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    except OverflowError:  # an integer beyond all floats
        return None
    return found if math.isfinite(found) else None


def as_mapping(value: Any) -> dict[str, Any]:
    """The value as a dict with string keys if it is a mapping, else an empty dict."""
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def read_job(folder: Path) -> JobRecord:
    """Read one job folder, whatever state it is in."""
    problems: list[str] = []
    paths = JobPaths(folder)
    described = _read_mapping(paths.prompts, problems, optional=True)
    prompts = described.get("prompts")
    return JobRecord(
        folder=folder,
        config=_read_mapping(paths.config, problems),
        manifest=_read_mapping(paths.manifest, problems),
        numbers=_read_metrics(paths.metrics, problems),
        prompts=[str(prompt) for prompt in prompts] if isinstance(prompts, list) else [],
        negative_prompt=str(described.get("negative_prompt") or ""),
        shots=_find_shots(folder / SAMPLES_NAME),
        log_tail=_read_tail(paths.log),
        problems=problems,
    )


def read_briefly(folder: Path) -> JobRecord:
    """Read only a job's settings and manifest, for callers that only ask what it is and how far it got."""
    paths = JobPaths(folder)
    problems: list[str] = []
    return JobRecord(
        folder=folder,
        config=_read_mapping(paths.config, problems),
        manifest=_read_mapping(paths.manifest, problems),
        problems=problems,
    )


def _read_mapping(path: Path, problems: list[str], *, optional: bool = False) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=SafeLoader)
    except FileNotFoundError:
        if not optional:
            problems.append(f"{path.name} is missing")
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name} cannot be read: {str(error).splitlines()[0]}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} is not a mapping")
    return as_mapping(content)


def _read_metrics(path: Path, problems: list[str]) -> Numbers:
    """The numbers in the lines that are whole."""
    try:
        with path.open("rb") as stream:
            return Numbers(line for raw in stream if (line := parse_line(raw)) is not None)
    except FileNotFoundError:
        return Numbers()
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return Numbers()


def _read_tail(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _find_shots(folder: Path) -> dict[Row, dict[int, Path]]:
    shots: dict[Row, dict[int, Path]] = {}
    for step, prompt, seed, file in samples_in(folder):
        shots.setdefault(Row(prompt, seed), {})[step] = file
    return dict(sorted(shots.items()))
