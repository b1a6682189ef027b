"""Learning rates that no schedule can follow are refused with the key and the value, not found by the optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from runner.schema import Experiment
from runner.schema.messages import explain
from runner.train.optimizers import build_lr_scheduler


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("1:10,e:20,0.1", "should read like 1:10,0.1:20,0.01"),
        ("1.2.3:10,1", "should read like"),
        ("-1:10,0.1", "should read like"),
        ("1:10,.", "should read like"),
        ("1:10,1e999", "1e999 is too large a factor"),
    ],
)
def test_rules_that_are_none(rules: str, said: str) -> None:
    raw = {"lr_scheduler": {"name": "piecewise_constant", "rules": rules}}
    with pytest.raises(ValidationError) as failure:
        Experiment.model_validate(raw)
    (text,) = explain(failure.value, raw)
    assert text.startswith(f"lr_scheduler.rules = {rules!r}: "), text
    assert said in text


def test_factors_are_written_in_any_way() -> None:
    raw = {"lr_scheduler": {"name": "piecewise_constant", "rules": "1.:1,.5:2,2.5e-1:3,1E+0:4,0"}}
    experiment = Experiment.model_validate(raw)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_lr_scheduler(experiment.lr_scheduler, optimizer, experiment)

    rates = []
    for _ in range(5):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()

    assert rates == [1.0, 0.5, 0.25, 1.0, 0.0]


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_rate_below_the_end_of_polynomial(optimizer: str) -> None:
    def raw(lr: float) -> dict[str, Any]:
        return {"lr_scheduler": {"name": "polynomial"}, "optimizer": {"name": optimizer, "lr": lr}}

    with pytest.raises(ValidationError) as failure:
        Experiment.model_validate(raw(1e-7))
    (text,) = explain(failure.value, raw(1e-7))
    assert text.startswith("optimizer.lr = 1e-07: lr_scheduler.name=polynomial falls to 1e-07"), text
    Experiment.model_validate(raw(2e-7))
