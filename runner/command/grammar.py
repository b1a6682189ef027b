"""Hydra's sweep grammar as a search space: intervals, ranges and choices, with `tag(log, ...)` and `int(...)`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from runner.command.trials import WITHOUT_EFFECT
from runner.errors import not_started
from runner.search.space import Choices, Interval, Parameter

NO_VALUE = "fits no value; give some, or a pattern that fits"


def empty_sweeps(overrides: Sequence[str], loader: ConfigLoader) -> list[str]:
    """Faults of sweeps that have no value, so that there would be no job; one fault per line."""
    parsed = OverridesParser.create(loader).parse_overrides(list(overrides))
    discrete = [each for each in parsed if each.is_sweep_override() and each.is_discrete_sweep()]
    return [f"{each.input_line}: {NO_VALUE}" for each in discrete if not tuple(each.sweep_string_iterator())]


def space_of(overrides: Sequence[str], loader: ConfigLoader | None = None) -> tuple[list[Parameter], list[str]]:
    """(what the search chooses, overrides that all jobs share).

    Args:
        loader: knows the choices of groups, for glob(...).

    Raises:
        SettingsError: a sweep in it cannot be searched; all faults at once.
    """
    space: dict[str, Parameter] = {}
    fixed: dict[str, str] = {}
    faults = []
    for override in OverridesParser.create(loader).parse_overrides(list(overrides)):
        key = override.get_key_element()
        # The last of repeated overrides counts: the command line comes after hydra.sweeper.params.
        space.pop(key, None)
        fixed.pop(key, None)
        if not override.is_sweep_override():
            fixed[key] = str(override.input_line)
            continue
        if re.split("[./]", key)[0] in WITHOUT_EFFECT:
            faults.append(f"{override.input_line}: {key} changes no result, so it cannot be searched; give one value")
            continue
        try:
            space[key] = _parameter(key, override)
        except ValueError as error:
            faults.append(f"{override.input_line}: {error}")
    if not space and not faults:
        ranges = "'optimizer.lr=tag(log,interval(1e-5,1e-3))' 'lora.rank=4,8,16'"
        faults = [f"hydra/sweeper: nothing to search; name ranges, such as {ranges}"]
    if faults:
        raise not_started("The search is invalid", faults)
    return list(space.values()), list(fixed.values())


def unswept(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[str]:
    """The overrides that are not sweeps: what all jobs share, whatever the space is."""
    parsed = OverridesParser.create(loader).parse_overrides(list(overrides))
    return [str(each.input_line) for each in parsed if not each.is_sweep_override()]


def _parameter(key: str, override: Override) -> Parameter:
    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if low is None or high is None or not low < high:
            raise ValueError(f"an interval needs a lower and a higher end, not {low} and {high}")
        return _checked(Interval(key, low, high, log="log" in value.tags, integer=_whole(low, high)))
    if isinstance(value, RangeSweep):
        start, stop, step = value.start, value.stop, value.step
        if start is None or stop is None or not start < stop or step <= 0:
            raise ValueError(f"a range to search needs start < stop and a step above 0, not {start}, {stop}, {step}")
        last = round(float(list(value.range())[-1]), 12)  # 0.7, not 0.1 added up seven times
        integer = _whole(start, stop, step)
        return _checked(Interval(key, float(start), last, log="log" in value.tags, integer=integer, step=float(step)))
    if not (values := tuple(override.sweep_string_iterator())):
        raise ValueError(NO_VALUE)
    return Choices(key, values)


def _checked(interval: Interval) -> Interval:
    if interval.log and interval.low <= 0:
        raise ValueError(f"tag(log) needs numbers above 0, not {interval.low:g}")
    if interval.log and interval.step is not None and not (interval.integer and interval.step == 1):
        raise ValueError("tag(log) and a step exclude each other; remove one of them")
    return interval


def _whole(*numbers: float) -> bool:
    # In Hydra's grammar, interval(1,40) has floats; int(interval(1,40)) gives whole numbers.
    return all(isinstance(number, int) for number in numbers)
