"""What pydantic finds is said in the user's words: each fault once, under a key that can be set, with the fix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from runner.schema import Experiment
from runner.schema.knob import Settings
from runner.schema.messages import explain
from runner.schema.tasks import TASKS

TRAINING = {"model": {"path": "embedded", "family": "sdxl"}, "dataset": {"path": "embedded"}}
DRAWING = {"model": TRAINING["model"], "task": {"name": "generate"}}


def said_of(kind: type[Settings], raw: Mapping[str, Any]) -> list[str]:
    """What is said of wrong settings; nothing of right ones."""
    try:
        kind.model_validate(raw)
    except ValidationError as error:
        return explain(error, raw)
    return []


def of_training(**changes: Any) -> list[str]:
    return said_of(Experiment, TRAINING | changes)


def of_drawing(**changes: Any) -> list[str]:
    return said_of(TASKS["generate"], DRAWING | changes)


def test_a_wrong_item_does_not_make_a_list_too_short_as_well() -> None:
    nan = float("nan")
    assert of_drawing(adapter=["a"], adapter_weight=nan) == ["adapter_weight.0 = nan: should be a finite number"]
    (line,) = of_drawing(adapter=["a"], adapter_weight=[])
    assert line.startswith("adapter_weight = []: should have at least 1 item")
