"""What a search may choose: for each setting, an interval of numbers or a set of values, as plain data."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Interval:
    """Numbers between two ends, both included."""

    key: str
    low: float
    high: float
    log: bool = False
    """Whether equal ratios count as equal distances."""
    integer: bool = False
    step: float | None = None

    def examples(self) -> tuple[str, ...]:
        """Both ends, and a fractional number between them if there is one, as the values of an override."""
        between = self.low + 0.382 * (self.high - self.low)
        return self.text(self.low), self.text(self.high), *(() if self.integer or self.step else (self.text(between),))

    def text(self, value: float) -> str:
        """A number of the interval as the value of an override."""
        # A multiple of a step such as 0.1 has a rounding error, and would make another job.
        return str(int(value)) if self.integer else repr(float(round(value, 12) if self.step else value))


@dataclasses.dataclass(frozen=True)
class Choices:
    """Values without an order, as the values of overrides."""

    key: str
    values: tuple[str, ...]

    def examples(self) -> tuple[str, ...]:
        """All of the values."""
        return self.values

    def text(self, value: str) -> str:
        """A choice as the value of an override."""
        return value


Parameter = Interval | Choices
