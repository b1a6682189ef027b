"""Sample images as grids of pictures embedded in the page.

Takes the samples of job records, returns rows and columns of data URIs small enough to keep the page light.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from PIL import Image

from runner.report.ranking import Ranked
from runner.report.record import JobRecord, Row
from runner.system.amounts import number

# (maximum number of pictures on the page, longest side of each in pixels)
SIDES_PX = ((24, 384), (80, 288), (250, 192))
LEAST_SIDE_PX = 128

# Images up to this size are enlarged with hard pixel edges, and their own files are small enough to embed.
PIXEL_ART_PX = 128
SMALL_FILE_BYTES = 16_000

MAX_STEPS = 6
MAX_ROWS = 12
MAX_JOBS = 24

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image in the page; `src` is None if the file cannot be read."""

    src: str | None
    alt: str
    href: str
    pixelated: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column's heading; `role` is before, middle, after or job."""

    title: str
    subtitle: str = ""
    role: str = "middle"
    href: str = ""


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """One prompt and seed across all columns; a cell is None if there is no image."""

    prompt: str
    seed: int
    cells: list[Picture | None]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows of pictures under shared headings, and a note on what was left out."""

    columns: list[Column]
    rows: list[GridRow]
    note: str


@dataclass
class PictureBox:
    """Turns image files into data URIs, each only once, all within one budget.

    Args:
        expected: about how many pictures the page will show; the more there are, the smaller each one is.
        root: the folder that the page is in; pictures link to their files relative to it.
    """

    expected: int
    root: Path
    _made: dict[Path, tuple[str | None, bool]] = field(default_factory=dict)

    def picture(self, path: Path, alt: str) -> Picture:
        """The picture of one file."""
        if path not in self._made:
            self._made[path] = self._encode(path)
        src, pixelated = self._made[path]
        return Picture(src=src, alt=alt, href=quote(path.relative_to(self.root).as_posix()), pixelated=pixelated)

    def _encode(self, path: Path) -> tuple[str | None, bool]:
        side = next((side for limit, side in SIDES_PX if self.expected <= limit), LEAST_SIDE_PX)
        try:
            with Image.open(path) as image:
                small = max(image.size) <= PIXEL_ART_PX
                if small and side > LEAST_SIDE_PX and path.stat().st_size <= SMALL_FILE_BYTES:
                    return _data_uri(path.read_bytes(), "png"), True
                picture = image.convert("RGB")
                picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None, False
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=84 if side > LEAST_SIDE_PX else 76, method=4)
        return _data_uri(buffer.getvalue(), "webp"), small


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` of the items, evenly spread, including the first and the last."""
    if len(items) <= limit:
        return list(items)
    places = {round(index * (len(items) - 1) / (limit - 1)) for index in range(limit)}
    return [items[place] for place in sorted(places)]


def progress_grid(
    job: JobRecord, box: PictureBox, *, max_steps: int = MAX_STEPS, max_rows: int = MAX_ROWS
) -> Grid | None:
    """One job over its steps, from before to after; None if it has no samples."""
    steps = job.steps_sampled if job.trains else job.steps_sampled[-1:]
    if not steps:
        return None
    shown_steps, shown_rows = spread(steps, max_steps), list(job.shots)[:max_rows]
    rows = []
    for row in shown_rows:
        by_step, prompt = job.shots[row], prompt_of(job, row)
        cells = [
            box.picture(by_step[step], f"{prompt}, seed {row.seed}, step {step}") if step in by_step else None
            for step in shown_steps
        ]
        rows.append(GridRow(prompt=prompt, seed=row.seed, cells=cells))
    columns = [Column(title="drawn", role="after")]
    if job.trains:
        columns = [_step_column(step, shown_steps, finished=job.state == "completed") for step in shown_steps]
    left_out = []
    if len(shown_steps) < len(steps):
        left_out.append(f"{len(shown_steps)} of {len(steps)} steps")
    if len(shown_rows) < len(job.shots):
        left_out.append(f"{len(shown_rows)} of {len(job.shots)} prompts and seeds")
    note = f"Shown: {' and '.join(left_out)}; all of them are in samples/." if left_out else ""
    return Grid(columns=columns, rows=rows, note=note)


def comparison_grid(ranked: Sequence[Ranked], box: PictureBox) -> Grid | None:
    """The last samples of all jobs side by side, after one column from before training if all started from one model.

    Rows are keyed by the text of the prompt, because the same number may mean another prompt in another job.
    """
    with_samples = [
        one for one in ranked if one.job.steps_sampled and (one.job.steps_sampled[-1] or not one.job.trains)
    ]
    if not with_samples:
        return None
    shown = with_samples[:MAX_JOBS]
    jobs = [one.job for one in shown]
    before = len({str(job.setting("model")) for job in jobs if job.trains and job.config}) == 1
    shots = [{(prompt_of(job, row), row.seed): by_step for row, by_step in job.shots.items()} for job in jobs]
    # Rows that most of the jobs have come first.
    all_rows = sorted(
        dict.fromkeys(key for each in shots for key in each), key=lambda row: sum(row not in each for each in shots)
    )
    rows = []
    for prompt, seed in all_rows[:MAX_ROWS]:
        mine = [each.get((prompt, seed), {}) for each in shots]
        cells: list[Picture | None] = []
        if before:
            first = next((each[0] for job, each in zip(jobs, mine, strict=True) if job.trains and 0 in each), None)
            cells.append(box.picture(first, f"{prompt}, seed {seed}, before training") if first else None)
        for job, each in zip(jobs, mine, strict=True):
            last = each.get(job.steps_sampled[-1])
            alt = f"{prompt}, seed {seed}, {job.name}" + (f", step {job.steps_sampled[-1]}" if job.trains else "")
            cells.append(box.picture(last, alt) if last else None)
        rows.append(GridRow(prompt=prompt, seed=seed, cells=cells))
    columns = [Column(title="before", subtitle="step 0", role="before")] if before else []
    columns += [
        Column(
            title=one.job.name, role="job", href=f"#job-{one.job.id}",
            subtitle=standing(one),
        )
        for one in shown
    ]  # fmt: skip
    left_out = []
    if len(jobs) < len(with_samples):
        left_out.append(f"the best {len(jobs)} of {len(with_samples)} jobs with samples")
    if len(all_rows) > MAX_ROWS:
        left_out.append(f"{MAX_ROWS} of {len(all_rows)} prompts and seeds")
    return Grid(columns=columns, rows=rows, note=f"Shown: {' and '.join(left_out)}." if left_out else "")


def standing(one: Ranked) -> str:
    """A training's value and the step of its last samples; also the value's step, if that is another one."""
    if not one.job.trains:
        return ""
    drawn, value = one.job.steps_sampled[-1], number(one.value)
    if one.step is None or one.step == drawn:
        return f"{value} · step {drawn:,}"
    return f"step {drawn:,} · {value} at step {one.step:,}"


def prompt_of(job: JobRecord, row: Row) -> str:
    """The text of a row's prompt."""
    return job.prompts[row.prompt] if row.prompt < len(job.prompts) else f"prompt {row.prompt}"


def _step_column(step: int, shown: Sequence[int], *, finished: bool) -> Column:
    if step == 0:
        return Column(title="before", subtitle="step 0", role="before")
    if step == shown[-1]:
        return Column(title="after" if finished else "so far", subtitle=f"step {step:,}", role="after")
    return Column(title=f"step {step:,}", role="before" if step == shown[0] else "middle")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
