"""Numbers, times and counts as a person would write them."""

from __future__ import annotations

import math
from datetime import datetime

MISSING = "–"
"""Shown where there is no value."""


def number(value: float | None, digits: int = 4) -> str:
    """A number with at most `digits` significant digits, as short as possible: 0.1303, 1,200, 1e-4."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return scientific(value, digits)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def scientific(value: float, digits: int) -> str:
    """A number with its power of ten, as short as possible: 1e-4, 2.5e7."""
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def duration(seconds: float | None) -> str:
    """Seconds as 0.4 s, 38 s, 4 min 10 s, 2 h 05 min."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(text: object) -> str:
    """An ISO time as 2026-11-20 09:00:02 UTC; anything else unchanged."""
    try:
        parsed = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    return f"{parsed:%Y-%m-%d %H:%M:%S} {parsed.tzname() or ''}".strip()


def count(amount: float, noun: str) -> str:
    """An amount with its noun: 1 job, 4 jobs."""
    return f"{amount:,.0f} {noun}" if amount == 1 else f"{amount:,.0f} {noun}s"
