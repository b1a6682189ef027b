"""A user's own files that choose something missing, or in words that mean something else, are told with the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.__main__ import main
from runner.command.own_files import faults_of_defaults

CHOICES = {"recipe": ["demo"], "lora": ["attention", "linear"], "optimizer": ["adafactor", "mine", "yours"]}


def said_of(folder: Path, group: str, choice: str) -> list[str]:
    """The faults of a choice, without the folder's name."""
    faults = faults_of_defaults(folder, group, choice, lambda other: CHOICES.get(other, []))
    return [fault.removeprefix(f"{folder}/") for fault in faults]


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / f"{name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("override /lora: linear", None),
        ("override /hydra/sweeper: optuna", None),
        ("_self_", None),
        (
            "override /lora: linaer",
            "lora = linaer: there is no such choice, did you mean linear? there are: attention,",
        ),
        ("override /lroa: linear", "override /lroa: there is no group lroa, did you mean lora? there are: dataset,"),
        ("override lora: linear", "override lora: linear: a choice is changed by 'override /lora: linear'"),
        ("/lora: linear", "/lora: linear: a choice is changed by 'override /lora: linear'"),
        ("lora: linear", "lora: linear: a choice is changed by 'override /lora: linear'"),
        ("dmeo", "recipe = dmeo: there is no such choice, did you mean demo? there are: demo"),
    ],
)
def test_what_a_recipe_chooses_is_told_if_there_is_no_such_choice(entry: str, said: str | None, tmp_path: Path) -> None:
    written(tmp_path, "recipe/ours", f"# @package _global_\ndefaults:\n  - {entry}\nsteps: 3\n")

    faults = said_of(tmp_path, "recipe", "ours")

    assert [fault[: len(f"recipe/ours.yaml: defaults: {said}")] for fault in faults] == (
        [f"recipe/ours.yaml: defaults: {said}"] if said else []
    )


def test_a_recipe_that_chooses_without_its_first_line_is_told_what_it_begins_with(tmp_path: Path) -> None:
    written(tmp_path, "recipe/ours", "defaults:\n  - override /lora: linear\n")

    (fault,) = said_of(tmp_path, "recipe", "ours")

    assert fault.endswith("begins with the line '# @package _global_'; add it at the top")


def test_a_choice_that_leads_back_to_itself_is_told_and_not_followed_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, "optimizer/mine", "defaults: [yours]\n")
    written(tmp_path, "optimizer/yours", "defaults: [mine]\n")
    written(tmp_path, "optimizer/alone", "defaults: [alone]\n")
    leads_back = "'defaults' leads back to this file; name another choice"
    monkeypatch.setattr("sys.argv", ["runner", "--config-dir", str(tmp_path), "optimizer=alone"])

    with pytest.raises(SystemExit):
        main()

    assert f"{tmp_path}/optimizer/alone.yaml: {leads_back}, such as adafactor" in capsys.readouterr().err
    assert said_of(tmp_path, "optimizer", "mine") == [
        f"optimizer/yours.yaml: {leads_back} than mine, such as adafactor"
    ]


def test_an_unknown_setting_that_a_recipe_sweeps_is_told_with_the_nearest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = "hydra:\n  sweeper:\n    params:\n      lora.rank: 4,0\n      lora.aplha: 1,2\n"
    folder = written(tmp_path, "recipe/grid", f"# @package _global_\n{params}")
    command = ["runner", "--config-dir", str(folder), "-m", "recipe=grid", "logger=none", "launcher.dry_run=true"]
    monkeypatch.setattr("sys.argv", command)

    with pytest.raises(SystemExit) as ended:
        main()

    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "lora.aplha = 1: unknown key, did you mean lora.alpha?" in said and "lora.rank = 0: should be" in said
