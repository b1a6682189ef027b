"""Hydra's sweeps as SageMaker's ranges, and SageMaker's values as overrides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from runner.command.grammar import space_of
from runner.container.settings import laid_over
from runner.errors import RunnerError, SettingsError
from runner.search.tuning.ranges import Range, as_yaml, ranges_of

GROUPS: dict[str, dict[str, Any]] = {
    "lora": {"attention": {"targets": "attention"}, "linear": {"targets": "linear"}},
    "optimizer": {"adamw": {"name": "adamw"}, "prodigy": {"name": "prodigy", "lr": 1.0, "betas": [0.9, 0.99]}},
}


def composed(key: str, text: str) -> Mapping[str, Any]:
    """What Hydra would compose, for the few settings that are used here."""
    config = {"lora": {"targets": "attention", "rank": 16}, "optimizer": {"name": "adamw", "lr": 1e-4}, "steps": 3}
    if key in GROUPS:
        return {**config, key: {**config[key], **GROUPS[key][text]}}  # type: ignore[dict-item]
    return laid_over(config, {} if key == "recipe" else {key: text.strip("'")})


def ranges(*overrides: str) -> list[Range]:
    return ranges_of(space_of(overrides)[0], composed)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=interval(1e-5,1e-3)", Range("optimizer.lr", "Continuous", "1e-05", "0.001")),
        ("optimizer.lr=tag(log,interval(1e-5,1e-3))", Range("optimizer.lr", "Continuous", "1e-05", "0.001", log=True)),
        ("lora.rank=int(interval(2,64))", Range("lora.rank", "Integer", "2", "64")),
        ("lora.rank=tag(log,int(interval(2,64)))", Range("lora.rank", "Integer", "2", "64", log=True)),
        ("lora.rank=range(4,9)", Range("lora.rank", "Integer", "4", "8")),
        ("lora.rank=tag(log,range(4,9))", Range("lora.rank", "Integer", "4", "8", log=True)),
    ],
)
def test_numbers_are_ranges(override: str, expected: Range) -> None:
    assert ranges(override) == [expected]


@pytest.mark.parametrize(
    ("override", "name", "values"),
    [
        ("lora.rank=range(4,17,4)", "lora.rank", ["4", "8", "12", "16"]),
        ("lora.dropout=range(0.0,0.3,0.1)", "lora.dropout", ["0.0", "0.1", "0.2"]),
        ("lora.rank=4,8,16", "lora.rank", ["4", "8", "16"]),
        ("lora.rank=choice(4,8)", "lora.rank", ["4", "8"]),
        ("validation.prompts=[],[a]", "validation.prompts", ["[]", '["a"]']),
        ("lora=attention,linear", "lora.targets", ["attention", "linear"]),
        (
            "optimizer=adamw,prodigy",
            "optimizer",
            ["{lr: 0.0001, name: adamw}", '{"name": "prodigy", "lr": 1.0, "betas": [0.9, 0.99]}'],
        ),
    ],
)
def test_everything_else_is_one_of_several(override: str, name: str, values: list[str]) -> None:
    (found,) = ranges(override)

    assert (found.name, found.kind) == (name, "Categorical")
    assert [yaml.safe_load(value) for value in found.values] == [yaml.safe_load(value) for value in values]
    assert found.data() == {"Name": name, "Values": list(found.values)}


def test_values_come_back_as_overrides() -> None:
    rate, rank, targets = ranges(
        "optimizer.lr=tag(log,interval(1e-5,1e-3))", "lora.rank=int(interval(2,64))", "lora=attention,linear"
    )

    assert rate.override("1.5E-4") == "optimizer.lr=0.00015"
    assert rank.override("7") == "lora.rank=7"
    assert targets.override("linear") == "lora=linear"
    assert rate.data()["ScalingType"] == "Logarithmic"
    with pytest.raises(RunnerError, match=r"SageMaker has chosen lora.targets = 'x', which was not in its range"):
        targets.override("x")


def test_what_sagemaker_cannot_vary_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        ranges(
            f"lora.rank={','.join(map(str, range(1, 40)))}",
            "recipe=a,b",
            "optimizer=adamw,prodigy",
            "optimizer.lr=1,2",
            "lora=attention,linear",
            "lora.targets=attention,linear",
            f"lora.name={'x' * 300},b",
        )
    text = str(error.value)
    assert "nothing was started" in text
    for part in (
        "lora.rank: has 39 values, and SageMaker takes 30",
        "recipe: chooses more than one setting",
        "optimizer: its choices differ in betas, lr, name, so that it is sent whole, and optimizer.lr cannot be varied",
        "lora.targets: is swept twice",
        "has 300 characters, and SageMaker takes 256",
    ):
        assert part in text


@pytest.mark.parametrize(
    "value",
    [
        *("attention", "true", "1e-5", "a: b", "", "it's", "x\ny", "- a", "# c", "[a", "ü😀", 1e-5, 0.1, 7, None, True),
        *([1, 2], ["a", "b: c"], {"name": "x" * 90, "lr": 1e-5, "betas": [0.9, 0.99]}),
    ],
)
def test_the_container_reads_the_value_that_was_sent(value: object) -> None:
    text = as_yaml(value)

    assert "\n" not in text
    assert yaml.safe_load(text) == value
