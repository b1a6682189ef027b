"""What every chart on the page consists of: the finished drawing, its frame with grid lines and labels, its texts.

Inline SVG with colours from the page's CSS, so one drawing serves light, dark and print.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from runner.report.axes import Label

WIDTH_PX, HEIGHT_PX = 440, 236
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 54, 22, 10, 34


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A finished drawing: its title, SVG, legend as (style, label), the line below it, and what was left out."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]
    last: str
    note: str


def frame(x_labels: Sequence[Label], y_labels: Sequence[Label], *, corner: str = "") -> Markup:
    """Grid lines at the labels of the y axis, and the labels of both axes; `corner` names what the x axis counts."""
    right, bottom = WIDTH_PX - RIGHT_PX, HEIGHT_PX - BOTTOM_PX
    parts: list[Markup] = []
    for y, label in y_labels:
        parts.append(Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(LEFT_PX, right, px(y)))
        parts.append(text(label, LEFT_PX - 7, y, anchor="end"))
    parts.append(Markup('<line class="axis" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(LEFT_PX, right, bottom))
    parts += [text(label, x, bottom + 16, anchor="middle") for x, label in x_labels]
    if corner:
        parts.append(text(corner, LEFT_PX - 42, bottom + 16, anchor="start"))
    return Markup("").join(parts)


def text(content: str, x: float, y: float, *, anchor: str, style: str = "tick") -> Markup:
    """A text centred vertically on `y`; `anchor` says which part of it is at `x`: start, middle or end."""
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}" dy="0.32em">{}</text>').format(
        style, px(x), px(y), anchor, content
    )


def px(value: float) -> str:
    """A coordinate as written in the page."""
    return f"{value:.1f}"
