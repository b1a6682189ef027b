"""Line charts as inline SVG, drawn without a library.

Takes series of (x, y) points, returns markup. Colours come from the page's CSS, so one drawing serves light, dark and
print. It does not know what the numbers mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from runner.report.axes import Axis, value_axis
from runner.report.frame import BOTTOM_PX, HEIGHT_PX, LEFT_PX, RIGHT_PX, TOP_PX, WIDTH_PX, Chart, frame, px
from runner.report.record import Point
from runner.system.amounts import count, number

MAX_POINTS = 400


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line. `style` is a CSS class: raw, main, held, or c0 ... c7, other; `dots` marks each point."""

    label: str
    points: Sequence[Point]
    style: str = "main"
    dots: bool = False
    in_legend: bool = True


def smoothed(points: Sequence[Point]) -> list[Point]:
    """An exponential moving average over about a twentieth of the points, without bias at the start.

    It begins once it covers a third of its window; before that, it would show only noise.
    """
    window = max(1.0, len(points) / 20)
    out: list[Point] = []
    total = weight = 0.0
    for x, y in points:
        if math.isfinite(y):
            total, weight = (1 - 1 / window) * total + y, (1 - 1 / window) * weight + 1.0
            out.append((x, total / weight))
    return out[int(window / 3) :]


def thinned(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """About `limit` points at most, keeping the lowest and highest of each stretch."""
    if len(points) <= limit:
        return list(points)
    stretch = math.ceil(len(points) / (limit / 2))
    out: list[Point] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        out += sorted(ends)
    return [points[0], *out, points[-1]]


def draw(
    title: str,
    series: Sequence[Series],
    *,
    zero: bool = False,
    more_is_better: bool = False,
    first_on_top: bool = False,
) -> Chart | None:
    """Draw a chart over steps; None if no series has a finite point.

    Args:
        title: what the y axis shows.
        series: in the order of the legend and of drawing, the last on top.
        zero: whether the y axis starts at zero.
        more_is_better: which of many values under the pointer are named: the largest if true, else the smallest.
        first_on_top: whether the first series is drawn over the others instead.
    """
    lost = sum(not math.isfinite(y) for one in series for _, y in one.points)
    clean = [(one, [p for p in one.points if math.isfinite(p[1])]) for one in series]
    clean = [(one, points) for one, points in clean if points]
    if not clean:
        return None
    x_axis, y_axis = _axes(clean, zero=zero)
    drawn = [(one, thinned(points)) for one, points in clean]
    lines = frame(x_axis.labels(across=True), y_axis.labels(across=False), corner="step")
    upwards = reversed(drawn) if first_on_top else drawn
    parts = [lines, *(_line(one, points, x_axis, y_axis) for one, points in upwards)]
    shown = [(one, points) for one, points in drawn if one.style != "raw"] or drawn
    data = [{"label": one.label, "points": [[x, _short(y)] for x, y in points]} for one, points in shown]
    span = [LEFT_PX, WIDTH_PX - RIGHT_PX, x_axis.low, x_axis.high]
    svg = Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{label}" data-frame="{frame}" '
        'data-order="{order}" data-series="{data}">{body}<line class="cross" y1="{top}" y2="{bottom}"/></svg>'
    ).format(
        w=WIDTH_PX, h=HEIGHT_PX, label=_described(title, shown), frame=json.dumps(span),
        order=-1 if more_is_better else 1,
        data=json.dumps(data), body=Markup("").join(parts), top=TOP_PX, bottom=HEIGHT_PX - BOTTOM_PX,
    )  # fmt: skip
    return Chart(
        title=title,
        svg=svg,
        legend=[(one.style, one.label) for one, _ in drawn if one.in_legend] if len(drawn) > 1 else [],
        last=_last_values(shown),
        note=f"{count(lost, 'value')} left out: not finite" if lost else "",
    )


def standalone(chart: Chart) -> str:
    """The drawing as a standalone file that includes its colours, for light and dark."""
    style = (
        "svg{font:12px system-ui,sans-serif;fill:#5b626c;background:#fff}.grid{stroke:#e3e3de}.axis{stroke:#5b626c}"
        ".cross{visibility:hidden}.line{fill:none;stroke:currentColor;stroke-width:2}.line.raw{opacity:.35}"
        ".dot{fill:currentColor}.raw,.main{color:#2456c7}.held{color:#b8430a}"
        "@media(prefers-color-scheme:dark){svg{fill:#a0a6af;background:#191b1f}.grid{stroke:#2d3036}"
        ".raw,.main{color:#8fb1ff}.held{color:#ffa56b}}"
    )
    opening, end, rest = str(chart.svg).partition(">")
    named = opening.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{named}{end}<style>{style}</style>{rest}\n"


def sparkline(points: Sequence[Point]) -> Markup:
    """A small line without axes, for a table cell; empty if there are fewer than two points."""
    clean = thinned([p for p in points if math.isfinite(p[1])], 60)
    if len(clean) < 2:
        return Markup("")
    xs, ys = [x for x, _ in clean], [y for _, y in clean]
    x_axis = Axis(low=min(xs), high=max(xs), start_px=2, end_px=70)
    y_axis = Axis(low=min(ys), high=max(ys), start_px=18, end_px=3)
    path = " ".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in clean)
    return Markup('<svg class="spark" viewBox="0 0 72 21" aria-hidden="true"><polyline points="{}"/></svg>').format(
        path
    )


def _axes(clean: Sequence[tuple[Series, list[Point]]], *, zero: bool) -> tuple[Axis, Axis]:
    xs = [x for _, points in clean for x, _ in points]
    low, high = min(xs), max(xs)
    stops = (float(low),) if low == high else ()  # the next step has no value and only gives the axis its length
    x_axis = Axis(
        low=low, high=max(high, low + 1), start_px=LEFT_PX, end_px=WIDTH_PX - RIGHT_PX, whole=True, stops=stops
    )
    return x_axis, value_axis(_y_range(clean), start_px=HEIGHT_PX - BOTTOM_PX, end_px=TOP_PX, zero=zero)


def _y_range(clean: Sequence[tuple[Series, list[Point]]]) -> list[float]:
    """The range of the data, counting only the middle 96 percent of a noisy raw line."""
    bounds: list[float] = []
    for one, points in clean:
        values = sorted(y for _, y in points)
        cut = len(values) // 50 if one.style == "raw" else 0
        bounds += [values[cut], values[-1 - cut]]
    return bounds


def _line(one: Series, points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> Markup:
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in points]
    path = " ".join(f"{px(x)},{px(y)}" for x, y in places)
    parts = [Markup('<polyline class="line {}" points="{}"/>').format(one.style, path)]
    if one.dots or len(points) == 1:
        for (x, y), (step, value) in zip(places, points, strict=True):
            parts.append(
                Markup('<circle class="dot {}" cx="{}" cy="{}" r="3.2"><title>{}</title></circle>').format(
                    one.style, px(x), px(y), f"{one.label}, step {number(step)}: {number(value)}"
                )
            )
    return Markup("").join(parts)


def _described(title: str, shown: Sequence[tuple[Series, list[Point]]]) -> str:
    ranges = [f"{one.label} from {number(points[0][1])} to {number(points[-1][1])}" for one, points in shown[:8]]
    return f"{title} over steps: {'; '.join(ranges)}"


def _last_values(shown: Sequence[tuple[Series, list[Point]]]) -> str:
    if len(shown) > 4:
        return ""
    return " · ".join(f"{one.label}: {number(points[-1][1])}" for one, points in shown)


def _short(value: float) -> float:
    """Rounded once, to the digits that the page shows under the pointer."""
    return float(f"{value:.4g}")
