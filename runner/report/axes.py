"""Axes: the position of a value in pixels, and the labels that fit. Draws nothing.

Takes numbers, or values of any kind that are distinguished by the text the page shows for them.
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

# Above this ratio of largest to smallest value, only the largest could be read on a linear axis.
LOG_RATIO = 60.0

# People think of a sweep's settings in factors once they span more than a decade.
SETTING_LOG_RATIO = 10.0

# Width of a character and height of a line at the larger size used on phones; system fonts are slightly smaller.
CHARACTER_PX, LINE_PX, GAP_PX = 7.4, 17.0, 8.0

# With more values than this, or with randomly drawn ones, the axis has round ticks instead of one tick per value.
MAX_STOPS = 9

Label = tuple[float, str]
"""A position in pixels, and the text there."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Maps numbers to pixels; `stops` are values to label instead of round ones. An axis of steps is `whole`."""

    low: float
    high: float
    start_px: float
    end_px: float
    log: bool = False
    whole: bool = False
    stops: tuple[float, ...] = ()

    def place(self, value: Any) -> float:
        """The position of a value in pixels, clipped to the axis."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, max(value, self.low)))
        share = 0.0 if high == low else (min(value, high) - low) / (high - low)
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values on the axis, at most a few more than `wanted`."""
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
        """Decades; or 1, 2, 5 and so on if there are too few of those."""
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        stride = max(1, (last - first) // wanted + 1)
        decades = [10.0**exponent for exponent in range(first, last + 1, stride)]
        if len(decades) > 2:
            return decades
        fine = [m * 10.0**exponent for exponent in range(first - 1, last + 1) for m in (1, 2, 5)]
        inside = [value for value in fine if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
        return inside if len(inside) > 1 else [self.low, self.high]

    def labels(self, *, across: bool, room_px: float = math.inf) -> list[Label]:
        """The labels that fit: side by side if the axis is horizontal (`across`), else above each other."""
        at_stops = 0 < len(self.stops) <= MAX_STOPS and all(map(_short, self.stops))
        values = self.stops if at_stops or self.low == self.high else self.ticks(5 if across else 4)
        texts = [number(value, 6) for value in values]
        if any("e-" in text for text in texts):  # one notation per axis
            texts = [scientific(value, 6) if 0 < abs(value) < 1 else number(value, 6) for value in values]
        return fitting([(self.place(value), text) for value, text in zip(values, texts, strict=True)], across=across)


@dataclass(frozen=True, kw_only=True)
class Categories:
    """Gives each text its own place, in order."""

    texts: tuple[str, ...]
    start_px: float
    end_px: float

    def place(self, value: Any) -> float:
        """The middle of a value's place, in pixels."""
        share = (self.texts.index(chosen(value)) + 0.5) / len(self.texts)
        return self.start_px + share * (self.end_px - self.start_px)

    def labels(self, *, across: bool, room_px: float = math.inf) -> list[Label]:
        """The labels that fit, each shortened to its room."""
        width_px = abs(self.end_px - self.start_px) / len(self.texts)
        shown = shortened(self.texts, width_px - GAP_PX if across else room_px)
        labels = [(self.place(text), short) for text, short in zip(self.texts, shown, strict=True)]
        return fitting(labels, across=across)


def value_axis(values: Sequence[float], *, start_px: float, end_px: float, zero: bool = False) -> Axis:
    """The axis of measured values, with a margin; logarithmic if they span a wide range.

    Args:
        values: all values that will be placed; finite, at least one.
        zero: whether the axis starts at zero.
    """
    low, high = min(values), max(values)
    log = not zero and low > 0 and high / low > LOG_RATIO
    if not log:
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        low, high = (0.0 if zero and low >= 0 else max(low - margin, 0.0) if low >= 0 else low - margin), high + margin
    return Axis(low=low, high=high, start_px=start_px, end_px=end_px, log=log)


def setting_axis(values: Sequence[Any], *, start_px: float, end_px: float, nominal: bool = False) -> Axis | Categories:
    """The axis of a setting with these values: numbers to scale, anything else side by side.

    Args:
        values: one or more, in any order, possibly repeated.
        start_px: position of the low end, or of the first text.
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
    """Whether the values increase by a constant factor, such as 4, 8, 16."""
    factors = [after / before for before, after in pairwise(values)]
    return len(factors) > 1 and max(factors) - min(factors) < 1e-6


def _short(value: float) -> bool:
    """Whether a person would choose this value, such as 12, 512 or 3e-4; false for a randomly drawn one."""
    return value.is_integer() or float(f"{value:.1e}") == value


def width_px(text: str) -> float:
    """The approximate width of a text."""
    return (len(text) + text.count("…")) * CHARACTER_PX


def fitting(labels: Sequence[Label], *, across: bool) -> list[Label]:
    """The labels that do not touch: both ends, and from the start on, those that fit between."""

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
    """The texts cut to fit, kept distinct where possible."""
    return abridged(texts, max(5, int(min(room_px, 1e4) / CHARACTER_PX)))
