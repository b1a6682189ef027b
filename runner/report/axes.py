"""Axes: where a value lies, in pixels, and which labels fit beside it. Draws nothing.

Takes numbers, or values of any kind that are told apart by what the page writes for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from runner.report.record import finite
from runner.report.words import abridged, chosen
from runner.system.amounts import number, scientific

# From this ratio of largest to smallest value on, a linear axis shows only the largest.
LOG_RATIO = 60.0

# The settings of a sweep are thought of in factors once they span more than a decade.
SETTING_LOG_RATIO = 10.0

# A character and a line at the larger size that phones get; system fonts are a little below it.
CHARACTER_PX, LINE_PX, GAP_PX = 7.4, 17.0, 8.0

# More values than this, or values drawn by chance, get round ticks instead of one each.
MAX_STOPS = 9

Label = tuple[float, str]
"""A place in pixels, and what is written there."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Maps numbers to pixels; `stops` are values to label, instead of round ones. Steps are `whole`."""

    low: float
    high: float
    start_px: float
    end_px: float
    log: bool = False
    whole: bool = False
    stops: tuple[float, ...] = ()

    def place(self, value: Any) -> float:
        """Where a value is, in pixels, clipped to the axis."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, max(value, self.low)))
        share = 0.0 if high == low else (min(value, high) - low) / (high - low)
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values on the axis, at most a few more than wanted."""
        if self.log:
            return self._log_ticks(wanted)
        rough = max((self.high - self.low) / wanted, 1.0 if self.whole else 0.0)
        unit = 10.0 ** math.floor(math.log10(rough))
        strides = [unit * m for m in (1, 2, 2.5, 5, 10) if not (self.whole and unit * m % 1)]
        stride_value = next(stride for stride in strides if stride >= rough * 0.999)
        first = math.ceil(self.low / stride_value - 1e-9)
        last = math.floor(self.high / stride_value + 1e-9)
        return [round(index * stride_value, 12) for index in range(first, last + 1)]

    def _log_ticks(self, wanted: int) -> list[float]:
        """Decades; 1, 2, 5 and so on where there are not enough of them."""
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        stride = max(1, (last - first) // wanted + 1)
        decades = [10.0**exponent for exponent in range(first, last + 1, stride)]
        if len(decades) > 2:
            return decades
        fine = [m * 10.0**exponent for exponent in range(first - 1, last + 1) for m in (1, 2, 5)]
        inside = [value for value in fine if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
        return inside if len(inside) > 1 else [self.low, self.high]

    def labels(self, *, across: bool, room_px: float = math.inf) -> list[Label]:
        """The labels that fit: side by side where the axis lies across, else above each other."""
        at_stops = 0 < len(self.stops) <= MAX_STOPS and all(map(_short, self.stops))
        values = self.stops if at_stops or self.low == self.high else self.ticks(5 if across else 4)
        texts = [number(value, 6) for value in values]
        if any("e-" in text for text in texts):  # one way of writing on one axis
            texts = [scientific(value, 6) if 0 < abs(value) < 1 else number(value, 6) for value in values]
        return fitting([(self.place(value), text) for value, text in zip(values, texts, strict=True)], across=across)


@dataclass(frozen=True, kw_only=True)
class Categories:
    """Gives each of some texts a place of its own, in their order."""

    texts: tuple[str, ...]
    start_px: float
    end_px: float

    def place(self, value: Any) -> float:
        """The middle of the place of a value."""
        share = (self.texts.index(chosen(value)) + 0.5) / len(self.texts)
        return self.start_px + share * (self.end_px - self.start_px)

    def labels(self, *, across: bool, room_px: float = math.inf) -> list[Label]:
        """The labels that fit, shortened to the room that each has."""
        width_px = abs(self.end_px - self.start_px) / len(self.texts)
        shown = shortened(self.texts, width_px - GAP_PX if across else room_px)
        labels = [(self.place(text), short) for text, short in zip(self.texts, shown, strict=True)]
        return fitting(labels, across=across)


def value_axis(values: Sequence[float], *, start_px: float, end_px: float, zero: bool = False) -> Axis:
    """The axis of measured values, with a margin; logarithmic where they span far.

    Args:
        values: all that will be placed; finite, at least one.
        zero: whether it starts at zero.
    """
    low, high = min(values), max(values)
    log = not zero and low > 0 and high / low > LOG_RATIO
    if not log:
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        low, high = (0.0 if zero and low >= 0 else max(low - margin, 0.0) if low >= 0 else low - margin), high + margin
    return Axis(low=low, high=high, start_px=start_px, end_px=end_px, log=log)


def setting_axis(values: Sequence[Any], *, start_px: float, end_px: float, nominal: bool = False) -> Axis | Categories:
    """The axis of a setting that has these values: numbers in scale, anything else side by side.

    Args:
        values: one or more, in any order, with repeats.
        start_px: where the low end, or the first text, is.
        nominal: whether numbers are only names, such as seeds.
    """
    numbers = [finite(value) for value in values]
    known = sorted({value for value in numbers if value is not None})
    if None in numbers or nominal:
        texts = {chosen(value): (value is not None, finite(value) is None, finite(value) or 0.0) for value in values}
        ordered = sorted(texts, key=lambda text: (*texts[text], text))
        return Categories(texts=tuple(ordered), start_px=start_px, end_px=end_px)
    low, high = known[0], known[-1]
    log = low > 0 and (high / low > SETTING_LOG_RATIO * (1 + 1e-9) or _in_factors(known))
    return Axis(low=low, high=high, start_px=start_px, end_px=end_px, log=log, stops=tuple(known))


def _in_factors(values: Sequence[float]) -> bool:
    """Whether they go up by one and the same factor, such as 4, 8, 16."""
    factors = [after / before for before, after in pairwise(values)]
    return len(factors) > 1 and max(factors) - min(factors) < 1e-6


def _short(value: float) -> bool:
    """Whether a value is one that a person would choose, such as 12, 512 or 3e-4, and not one drawn by chance."""
    return value.is_integer() or float(f"{value:.1e}") == value


def width_px(text: str) -> float:
    """About how wide a text is."""
    return (len(text) + text.count("…")) * CHARACTER_PX


def fitting(labels: Sequence[Label], *, across: bool) -> list[Label]:
    """Those of the labels that do not touch: both ends, and what fits between from the start on."""

    def apart(one: Label, other: Label) -> bool:
        needed = (width_px(one[1]) + width_px(other[1])) / 2 + GAP_PX if across else LINE_PX
        return other[0] - one[0] >= needed

    first, *middle = sorted(labels)
    last = middle.pop() if middle else None
    kept = [first]
    for one in middle:
        if last is not None and apart(kept[-1], one) and apart(one, last):
            kept.append(one)
    return [*kept, last] if last is not None and apart(kept[-1], last) else kept


def shortened(texts: Sequence[str], room_px: float) -> list[str]:
    """The texts cut to fit, and told apart where that is possible."""
    return abridged(texts, max(5, int(min(room_px, 1e4) / CHARACTER_PX)))
