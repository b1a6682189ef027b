"""A space as SageMaker's ranges, and the values it chooses as the overrides of a job.

The container lays values over settings that are already composed (`runner.container.settings`), so the choice of a
group is sent as the settings it changes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import yaml

from runner.errors import RunnerError, not_started
from runner.schema.experiment import SECTIONS
from runner.search.space import Choices, Interval, Parameter

MOST_VALUES = 30
MOST_RANGES = 30
LONGEST_VALUE = 256
Kind = Literal["Integer", "Continuous", "Categorical"]
PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
"""Text that needs no quotes, unless YAML takes it for something else."""
MISSING = object()


@dataclasses.dataclass(frozen=True)
class Range:
    """A setting that SageMaker chooses."""

    name: str
    """Name of the hyperparameter: a dotted key."""
    kind: Kind
    low: str = ""
    high: str = ""
    log: bool = False
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """For a categorical one: value as sent -> the override it stands for."""

    def data(self) -> dict[str, Any]:
        """The range in the request's form."""
        if self.kind == "Categorical":
            return {"Name": self.name, "Values": list(self.values)}
        scaling = "Logarithmic" if self.log else "Linear"
        return {"Name": self.name, "MinValue": self.low, "MaxValue": self.high, "ScalingType": scaling}

    def override(self, sent: str) -> str:
        """The override that a value stands for.

        Raises:
            RunnerError: it is not a value of this range.
        """
        try:
            if self.kind == "Categorical":
                return self.values[sent]
            number = float(sent)
            return f"{self.name}={int(number) if self.kind == 'Integer' else repr(number)}"
        except (KeyError, ValueError) as error:
            raise RunnerError(f"SageMaker has chosen {self.name} = {sent!r}, which was not in its range") from error

    def words(self) -> str:
        """The range in words, for people."""
        if self.kind == "Categorical":
            return f"{self.name}: {', '.join(text.partition('=')[2] for text in self.values.values())}"
        notes = [*(["whole numbers"] if self.kind == "Integer" else []), *(["logarithmic"] if self.log else [])]
        return ", ".join([f"{self.name}: {self.low} to {self.high}", *notes])


def ranges_of(space: Sequence[Parameter], composed: Callable[[str, str], Mapping[str, Any]]) -> list[Range]:
    """The space as ranges.

    Args:
        composed: the configuration in which one setting (by its key) has a given value, and all others their first.

    Raises:
        SettingsError: part of it cannot be expressed for SageMaker; all faults at once.
    """
    found: list[Range] = []
    faults: list[str] = []
    if len(space) > MOST_RANGES:
        faults.append(f"{len(space)} settings are to be searched, and SageMaker takes {MOST_RANGES}; fix some of them")
    for parameter in space:
        try:
            found.append(_range(parameter, space, composed))
        except ValueError as error:
            faults.append(f"{parameter.key}: {error}")
    names = [each.name for each in found]
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.append(f"{name}: is swept twice, by itself and by a choice of its group; remove one of them")
    if faults:
        raise not_started("The search is invalid", faults)
    return found


def _range(
    parameter: Parameter, space: Sequence[Parameter], composed: Callable[[str, str], Mapping[str, Any]]
) -> Range:
    if isinstance(parameter, Interval) and (parameter.step is None or (parameter.integer and parameter.step == 1)):
        low, high = parameter.text(parameter.low), parameter.text(parameter.high)
        return Range(parameter.key, "Integer" if parameter.integer else "Continuous", low, high, parameter.log)
    configs = {text: composed(parameter.key, text) for text in _texts(parameter)}
    name, settings = _chosen(parameter.key, configs, space)
    values = {as_yaml(value): f"{parameter.key}={text}" for text, value in settings.items()}
    if len(values) > MOST_VALUES:
        raise ValueError(f"has {len(values)} values, and SageMaker takes {MOST_VALUES}; name fewer, or use an interval")
    if longest := next((value for value in values if len(value) > LONGEST_VALUE), None):
        raise ValueError(
            f"the value {longest[:40]}... has {len(longest)} characters, and SageMaker takes {LONGEST_VALUE}"
        )
    return Range(name, "Categorical", values=values)


def _texts(parameter: Parameter) -> Sequence[str]:
    if isinstance(parameter, Choices):
        return parameter.values
    step = parameter.step or 1.0
    texts: list[str] = []
    while (value := parameter.low + len(texts) * step) <= parameter.high + step / 1e6:
        texts.append(parameter.text(value))
    return texts


def _chosen(
    key: str, configs: Mapping[str, Mapping[str, Any]], space: Sequence[Parameter]
) -> tuple[str, dict[str, Any]]:
    """What the values of a setting stand for: the name under which it is sent, and what is sent for each value."""
    found = {text: _value(config, key) for text, config in configs.items()}
    if any(value is MISSING for value in found.values()):
        raise ValueError("chooses more than one setting, and SageMaker varies single ones; sweep those")
    if key not in SECTIONS:
        return key, found
    names = {name for section in found.values() for name in section}
    differing = [name for name in sorted(names) if len({repr(s.get(name, MISSING)) for s in found.values()}) > 1]
    if len(differing) == 1 and all(differing[0] in section for section in found.values()):
        return f"{key}.{differing[0]}", {text: section[differing[0]] for text, section in found.items()}
    if inner := [each.key for each in space if each.key.startswith(f"{key}.")]:
        raise ValueError(
            f"its choices differ in {', '.join(differing)}, so that it is sent whole, and {', '.join(inner)} cannot be "
            "varied beside it; sweep single settings"
        )
    return key, found


def _value(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return MISSING
        node = node[part]
    return node


def as_yaml(value: Any) -> str:
    """A value on one line, from which YAML reads the same value."""
    if isinstance(value, str) and PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    text = json.dumps(value, ensure_ascii=False)
    if yaml.safe_load(text) == value:
        return text
    # YAML reads 1e-05, which JSON writes, as text.
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True).split("\n")[0]
