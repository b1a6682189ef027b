"""Each setting in which the jobs differ, plotted against the result: a scatter, or a strip for each choice.

Takes a ranking and the differing settings, returns charts that share one y axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup

from runner.report.axes import Axis, setting_axis, value_axis
from runner.report.differences import NOMINAL, Difference
from runner.report.frame import BOTTOM_PX, HEIGHT_PX, LEFT_PX, RIGHT_PX, TOP_PX, WIDTH_PX, Chart, frame, px
from runner.report.ranking import Ranked, Ranking
from runner.report.words import chosen
from runner.system.amounts import number

DOT_PX = 5.0
INSET_PX = 22.0
"""Distance between numbers and the ends of the x axis."""


def setting_charts(ranking: Ranking, differing: Sequence[Difference]) -> list[Chart]:
    """A chart for each setting; none if fewer than two jobs can be compared."""
    shown = ranking.measured
    if len(shown) < 2:
        return []
    values = [entry.value for entry in shown if entry.value is not None]
    y_axis = value_axis(values, start_px=HEIGHT_PX - BOTTOM_PX, end_px=TOP_PX)
    return [_scatter(one, shown, y_axis, ranking.aim.label(shown[0].job)) for one in differing]


def told(entry: Ranked, settings: Mapping[str, object]) -> str:
    """The page's text for a job under the pointer: its name, its settings if the name has none, and its result."""
    named = "" if all(f"{key}=" in entry.job.name for key in settings) else ", ".join(
        f"{key} {chosen(value)}" for key, value in settings.items()
    )  # fmt: skip
    at = f" at step {entry.step:,}" if entry.step is not None else ""
    return " · ".join(filter(None, (entry.job.name, named, f"{number(entry.value)}{at}")))


def _scatter(one: Difference, shown: Sequence[Ranked], y_axis: Axis, objective: str) -> Chart:
    known = [entry for entry in shown if entry.job.id in one.values]
    settings = [one.values[entry.job.id] for entry in known]
    left, right = LEFT_PX, WIDTH_PX - RIGHT_PX
    x_axis = setting_axis(settings, start_px=left, end_px=right, nominal=one.key in NOMINAL)
    if isinstance(x_axis, Axis):
        x_axis = setting_axis(settings, start_px=left + INSET_PX, end_px=right - INSET_PX)
    lines = frame(x_axis.labels(across=True), y_axis.labels(across=False))
    places = [(x_axis.place(value), y_axis.place(entry.value)) for value, entry in zip(settings, known, strict=True)]
    # Jobs that share a value would hide each other if their results are close.
    if not isinstance(x_axis, Axis) or 2 * len(set(settings)) <= len(known):
        places = side_by_side(places, ends_px=(left, right))
    marks = [
        Markup(
            '<circle class="mark dot {}{}" data-job="{}" data-told="{}" cx="{}" cy="{}" r="{}">'
            "<title>{}</title></circle>"
        ).format(
            entry.style, "" if entry.step is None else " hollow", entry.job.id, told(entry, {one.key: value}),
            px(x), px(y), DOT_PX, entry.job.name,
        )
        for entry, value, (x, y) in zip(known, settings, places, strict=True)
    ]  # fmt: skip
    best = f"; best: {told(known[0], {one.key: settings[0]})}" if known and known[0].is_best else ""
    svg = Markup(
        '<svg class="chart marks" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg>'
    ).format(
        WIDTH_PX, HEIGHT_PX, f"{objective} by {one.key} of {len(known)} jobs{best}",
        lines, Markup("").join(reversed(marks)),
    )  # fmt: skip
    companions = f"Changes together with it: {', '.join(one.companions)}." if one.companions else ""
    return Chart(
        title=one.key, svg=svg, legend=[], last=f"best job: {chosen(settings[0])}" if best else "", note=companions
    )


def side_by_side(
    places: Sequence[tuple[float, float]], ends_px: tuple[float, float] = (-math.inf, math.inf)
) -> list[tuple[float, float]]:
    """The places, with those that would overlap moved apart along x, the earlier ones least.

    Each stays between the ends, and on its own side of the midpoint to the next value; if there is no room left, they
    overlap.
    """
    values = sorted({x for x, _ in places})
    middles = [(one + other) / 2 for one, other in pairwise(values)]
    room = dict(zip(values, pairwise([ends_px[0], *middles, ends_px[1]]), strict=True))
    done: list[tuple[float, float]] = []
    for x, y in places:
        low, high = room[x]
        offsets = (sign * step * DOT_PX * 2 for step in range(len(places) + 1) for sign in (1, -1))
        free = next(
            (
                offset for offset in offsets
                if low + DOT_PX <= x + offset <= high - DOT_PX
                and all((x + offset - a) ** 2 + (y - b) ** 2 >= (1.8 * DOT_PX) ** 2 for a, b in done)
            ),
            0.0,
        )  # fmt: skip
        done.append((x + free, y))
    return done
