"""Parallel coordinates: every job as one line through its settings to its result.

Draws the same chart twice, horizontal for wide screens and vertical for phones; the page's CSS shows one of them.
Lines are shaded by rank, with the best on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from runner.report.axes import Axis, Categories, setting_axis, value_axis
from runner.report.differences import NOMINAL, Difference
from runner.report.frame import Chart, px, text
from runner.report.ranking import Ranked, Ranking
from runner.report.scatter import told
from runner.system.amounts import count

INSET_PX = 12.0
"""Distance between values and the ends of their axis."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the axes are: upright and side by side in a horizontal chart, below each other in a vertical one."""

    lying: bool
    size_px: tuple[float, float]
    ends_px: tuple[float, float]
    """Start and end of each axis, which runs upwards or to the right."""
    places_px: Sequence[float]
    """The position of each axis in the direction across it."""

    def point(self, along: float, value: float) -> tuple[float, float]:
        """The x and y of a value on the axis at `along`."""
        return (along, value) if self.lying else (value, along)


def parallel_chart(ranking: Ranking, differing: Sequence[Difference]) -> Chart | None:
    """The chart of all jobs with a value; None if fewer than two settings differ or fewer than two jobs remain."""
    known = set.intersection(*(set(one.values) for one in differing)) if differing else set()
    shown = [entry for entry in ranking.measured if entry.job.id in known]
    if len(differing) < 2 or len(shown) < 2:
        return None
    label = ranking.aim.label(shown[0].job)
    left_out = len(ranking.entries) - len(shown)
    notes = ["Each line is a job: the stronger its colour, the better it did."]
    if any(entry.step is not None for entry in shown):
        notes.append("Dashed lines are jobs that are not at their end, stronger the further they came.")
    if left_out:
        notes.append(f"{left_out} of {count(len(ranking.entries), 'job')} left out: no value.")
    layouts = (_lying(len(differing) + 1), _standing(len(differing) + 1))
    return Chart(
        title=f"From the settings to the {label}",
        svg=Markup("").join(_draw(layout, ranking, shown, differing, label) for layout in layouts),
        legend=[],
        last=" ".join(notes),
        note="",
    )


def _lying(axes: int) -> Layout:
    width, top, bottom, side = 1056, 48, 262, 80
    step = (width - 2 * side) / (axes - 1)
    return Layout(
        lying=True, size_px=(width, bottom + 8), ends_px=(bottom, top),
        places_px=[side + index * step for index in range(axes)],
    )  # fmt: skip


def _standing(axes: int) -> Layout:
    width, top, step, side = 440, 36, 88, 8
    return Layout(
        lying=False, size_px=(width, top + (axes - 1) * step + 26), ends_px=(side, width - side),
        places_px=[top + index * step for index in range(axes)],
    )  # fmt: skip


def _draw(
    layout: Layout, ranking: Ranking, shown: Sequence[Ranked], differing: Sequence[Difference], label: str
) -> Markup:
    start, end = layout.ends_px
    inset = INSET_PX if start < end else -INSET_PX
    axes: list[Axis | Categories] = [
        setting_axis(
            [one.values[entry.job.id] for entry in shown],
            start_px=start + inset, end_px=end - inset, nominal=one.key in NOMINAL,
        )
        for one in differing
    ]  # fmt: skip
    # The best value is at the top or right end.
    worst, best = (start, end) if ranking.aim.maximize else (end, start)
    results = [entry.value for entry in shown if entry.value is not None]
    axes.append(value_axis(results, start_px=worst, end_px=best))
    lines = [_line(layout, entry, axes, differing, place / (len(shown) - 1)) for place, entry in enumerate(shown)]
    scales = [
        _axis(layout, along, axis, title, last=title == label)
        for along, axis, title in zip(layout.places_px, axes, [*(one.key for one in differing), label], strict=True)
    ]
    return Markup('<svg class="chart marks lines {}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg>').format(
        "lying" if layout.lying else "standing", *layout.size_px,
        f"{len(shown)} jobs from {', '.join(one.key for one in differing)} to {label}"
        + (f"; best: {told(shown[0], _settings(shown[0], differing))}" if shown[0].is_best else ""),
        Markup("").join(reversed(lines)), Markup("").join(scales),
    )  # fmt: skip


def _settings(entry: Ranked, differing: Sequence[Difference]) -> dict[str, Any]:
    return {one.key: one.values[entry.job.id] for one in differing}


def _line(
    layout: Layout,
    entry: Ranked,
    axes: Sequence[Axis | Categories],
    differing: Sequence[Difference],
    behind: float,
) -> Markup:
    """One job; `behind` is 0 for the best and 1 for the worst."""
    settings = _settings(entry, differing)
    places = zip(layout.places_px, axes, [*settings.values(), entry.value], strict=True)
    points = [layout.point(along, axis.place(value)) for along, axis, value in places]
    return Markup(
        '<polyline class="mark line{}{}" style="--rank:{}%" data-job="{}" data-told="{}" points="{}">'
        "<title>{}</title></polyline>"
    ).format(
        "" if behind else " best", "" if entry.step is None else " stopped", f"{100 * (1 - behind):.0f}",
        entry.job.id, told(entry, settings), " ".join(f"{px(x)},{px(y)}" for x, y in points), entry.job.name,
    )  # fmt: skip


def _axis(layout: Layout, along: float, axis: Axis | Categories, title: str, *, last: bool) -> Markup:
    (x1, y1), (x2, y2) = (layout.point(along, end) for end in layout.ends_px)
    parts = [Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(px(x1), px(y1), px(x2), px(y2))]
    if layout.lying:
        # A dotted key takes two lines, so that long keys do not touch.
        group, dot, leaf = ("", "", title) if last else title.rpartition(".")
        parts += [text(group + dot, along, 12, anchor="middle"), text(leaf, along, 28, anchor="middle", style="key")]
        anchor, shift = ("start", 9) if last else ("end", -9)
        first, second = layout.places_px[:2]
        labels = axis.labels(across=False, room_px=first - 12 if along == first else 0.7 * (second - first))
        parts += [text(label, along + shift, y, anchor=anchor, style="tick halo") for y, label in labels]
    else:
        parts.append(text(title, layout.ends_px[0], along - 14, anchor="start", style="key halo"))
        labels = axis.labels(across=True)
        parts += [text(label, x, along + 15, anchor="middle", style="tick halo") for x, label in labels]
    return Markup("").join(parts)
