"""Faults in the adapter's settings are reported before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from runner.schema import Experiment
from runner.schema.messages import explain

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a rank of none": ({"rank_pattern": {"conv1": 0}}, "lora.rank_pattern.conv1 = 0: should be at least"),
    "no alpha": ({"alpha_pattern": {"to_k": -1}}, "lora.alpha_pattern.to_k = -1: should be greater than 0"),
    "no layers": ({"rank_pattern": {}}, "lora.rank_pattern = {}: should hold at least one layer"),
    "no expression": ({"rank_pattern": {"(to_k": 3}}, "lora.rank_pattern = '(to_k': should be a regular expression"),
    "dropped ranks of DoRA": ({"dora": True, "rank_dropout": 0.1}, "lora.rank_dropout = 0.1: cannot be used with"),
    "dropped layers of DoRA": ({"dora": True, "module_dropout": 0.1}, "lora.module_dropout = 0.1: cannot be used"),
    "no average": ({"ema": 1.0}, "lora.ema = 1.0: should be less than 1"),
}


@pytest.mark.parametrize(("lora", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_setting_is_named_with_its_fix(lora: dict[str, Any], said: str) -> None:
    raw = {"model": {"path": "embedded", "family": "sdxl"}, "dataset": {"path": "embedded"}, "lora": lora}
    with pytest.raises(ValidationError) as caught:
        Experiment.model_validate(raw)
    (line,) = explain(caught.value, raw)
    assert line.startswith(said)
