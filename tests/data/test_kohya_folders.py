"""Folders in the layout of kohya's scripts: what their names mean there is explained as settings."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.data import read_dataset
from tests.command_line import runner
from tests.data.test_blunders import faults_of, folder_of

Settings = Callable[..., Any]

SAID = "a name that kohya's scripts read as repeats and caption, and that says nothing here"
IDLE = "the number in the name is repeats to kohya's scripts and has no effect here"


def test_the_caption_in_a_folders_name_is_told_as_a_prompt(tmp_path: Path, settings: Settings) -> None:
    folder = folder_of(tmp_path / "img", "10_sks dog/a.png", "10_sks dog/b.png")

    for path in (folder, folder / "10_sks dog"):
        first, *others = faults_of(settings(path))
        assert first == f"  - '10_sks dog/': {SAID}. Set dataset.instance_prompt='sks dog'."
        assert len(others) == 2

        (remark,) = read_dataset(settings(path, instance_prompt="sks dog")).report.remarks
        assert remark == f"'10_sks dog/': {IDLE}; that is repeats of a source in dataset.sources"


@pytest.mark.parametrize("parent", ["img", "it's, mine"])
def test_several_folders_are_told_as_sources_to_be_typed(parent: str, tmp_path: Path, settings: Settings) -> None:
    folder = folder_of(tmp_path / parent, "10_sks dog/a.png", "5_zwx_cat, white/b.png", "5_zwx_cat, white/c.png")

    first, *_ = faults_of(settings(folder))

    assert first.startswith(f"  - '10_sks dog/', '5_zwx_cat, white/': {SAID}. Give each as a source of its own: ")
    typed = first.partition("of its own: ")[2].removesuffix(".")
    answer = runner(*shlex.split(typed), "resolution=64", "steps=1", "logger=none", "launcher.dry_run=true")
    assert answer.code == 0, answer.output
    assert "10_sks dog: 1 x 10, 50% of the samples" in answer.output
    assert "5_zwx_cat, white: 2 x 5, 50% of the samples" in answer.output
    assert "has no effect" not in answer.output


def test_a_number_is_told_where_all_have_captions_and_all_folders_are_named_so(
    tmp_path: Path, settings: Settings
) -> None:
    folder = folder_of(tmp_path / "img", "10_sks dog/a.png", "1_cat/b.png")
    (folder / "10_sks dog" / "a.txt").write_text("one")
    (folder / "1_cat" / "b.txt").write_text("two")
    assert read_dataset(settings(folder)).report.remarks == (
        f"'10_sks dog/': {IDLE}; that is repeats of a source in dataset.sources",
    )
    folder_of(folder, "others/c.png")
    (folder / "others" / "c.txt").write_text("three")
    assert read_dataset(settings(folder)).report.remarks == (), "kohya's scripts would leave the others out"


@pytest.mark.parametrize("name", ["2023_summer", "01_dogs", "10_05", "10 dogs", "dogs_10"])
def test_other_names_with_numbers_are_left_alone(name: str, tmp_path: Path, settings: Settings) -> None:
    folder = folder_of(tmp_path, f"{name}/a.png")

    assert not any("kohya" in fault for fault in faults_of(settings(folder)))
    assert read_dataset(settings(folder, instance_prompt="x")).report.remarks == ()
