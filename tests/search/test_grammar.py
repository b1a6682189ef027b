"""Hydra's sweep grammar becomes a search space; everything that cannot be searched is named at once."""

from __future__ import annotations

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from runner import HOME
from runner.command.grammar import space_of
from runner.errors import SettingsError
from runner.search import Choices, Interval


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=interval(1e-5,1e-3)", Interval("optimizer.lr", 1e-5, 1e-3)),
        ("optimizer.lr=tag(log,interval(1e-5,1e-3))", Interval("optimizer.lr", 1e-5, 1e-3, log=True)),
        ("lora.rank=int(interval(2,64))", Interval("lora.rank", 2, 64, integer=True)),
        ("lora.rank=tag(log,int(interval(2,64)))", Interval("lora.rank", 2, 64, integer=True, log=True)),
        ("lora.rank=range(4,20,4)", Interval("lora.rank", 4, 16, integer=True, step=4)),
        ("lora.dropout=range(0.0,0.3,0.1)", Interval("lora.dropout", 0.0, 0.2, step=0.1)),
        ("lora.rank=4,8,16", Choices("lora.rank", ("4", "8", "16"))),
        ("lora=attention,linear", Choices("lora", ("attention", "linear"))),
        (
            "dataset.instance_prompt='\"a dog, red\"','x'",
            Choices("dataset.instance_prompt", ("'\"a dog, red\"'", "'x'")),
        ),
    ],
)
def test_a_sweep_is_a_parameter(override: str, expected: object) -> None:
    assert space_of(["steps=3", override]) == ([expected], ["steps=3"])


def test_a_pattern_stands_for_the_choices_of_a_group_that_fit_it() -> None:
    with initialize_config_dir(str(HOME / "conf"), version_base=None):
        loader = GlobalHydra.instance().config_loader()
        assert space_of(["lora=glob(linear*)"], loader)[0] == [Choices("lora", ("linear", "linear_conv"))]
        with pytest.raises(SettingsError, match=r"lora=glob\(x\*\): fits no value"):
            space_of(["lora=glob(x*)"], loader)


def test_what_is_said_last_counts() -> None:
    space, fixed = space_of(["lora.rank=4,8", "steps=3", "lora.rank=int(interval(1,9))", "steps=4"])
    assert (space, fixed) == ([Interval("lora.rank", 1, 9, integer=True)], ["steps=4"])
    assert space_of(["lora.rank=4,8", "optimizer.lr=1,2", "lora.rank=16"])[1] == ["lora.rank=16"]
    assert space_of(["lora.rank=16", "lora.rank=4,8"]) == ([Choices("lora.rank", ("4", "8"))], [])
    with pytest.raises(SettingsError, match="nothing to search"):
        space_of(["lora.rank=4,8", "lora.rank=16"])


def test_whatever_cannot_be_searched_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        space_of(
            [
                "optimizer.lr=tag(log,interval(0,1))",
                "lora.rank=int(interval(9,2))",
                "lora.dropout=tag(log,range(0.1,0.5,0.1))",
                "name=a,b",
                "launcher.pack=1,2",
            ]
        )
    text = str(error.value)
    assert "nothing was started" in text
    for part in (
        "tag(log) needs numbers above 0, not 0",
        "lora.rank=int(interval(9,2)): an interval needs a lower and a higher end, not 9 and 2",
        "tag(log) and a step exclude each other",
        "name=a,b: name changes no result",
        "launcher.pack=1,2: launcher.pack changes no result",
    ):
        assert part in text


def test_a_search_without_a_space_says_how_to_give_one() -> None:
    with pytest.raises(SettingsError, match=r"nothing to search; name ranges, such as"):
        space_of(["lora.rank=4"])


def test_examples_are_the_ends_and_something_between() -> None:
    assert Interval("lora.rank", 2, 9, integer=True).examples() == ("2", "9")
    assert Interval("optimizer.lr", 0.0, 1.0).examples() == ("0.0", "1.0", "0.382")
    assert Choices("lora", ("a", "b")).examples() == ("a", "b")
