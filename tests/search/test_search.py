"""A search from the command line: real jobs, real study, over restarts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import runner

SPACE = ["optimizer.lr=tag(log,interval(1e-5,1e-1))", "lora.rank=int(interval(1,6))"]


@pytest.fixture
def settings(sdxl_folder: Path) -> list[str]:
    fixed = [f"model.path={sdxl_folder}", "logger=none", "validation=loss_only", "validation.timesteps=2", "steps=9"]
    return ["-m", "hydra/sweeper=optuna", "hydra.sweeper.startup_trials=3", *fixed, *SPACE]


def manifests() -> list[dict[str, Any]]:
    files = Path(os.environ["RUNNER_OUTPUTS"]).glob("dev/*/manifest.json")
    return [json.loads(file.read_text()) for file in sorted(files)]


def states() -> list[str]:
    return sorted(manifest["state"] for manifest in manifests())


def test_a_search_ends_after_its_trials_and_goes_on_when_there_are_more(settings: list[str]) -> None:
    first = runner(*settings, "hydra.sweeper.n_trials=3", "launcher.pack=2")
    assert first.code == 0, first.output
    assert "up to 3 in all, 2 at once" in first.output
    assert "search: 3 of 3 trials" in first.output
    assert states() == ["completed"] * 3
    objectives = {manifest["id"]: manifest["objective"] for manifest in manifests()}
    assert f"best: validation/loss {min(objectives.values()):.4g} with" in first.output
    assert max(manifest["cost"]["packed_with"] for manifest in manifests()) == 2
    assert (Path(os.environ["RUNNER_OUTPUTS"]) / "dev" / "report.html").is_file()

    again = runner(*settings, "hydra.sweeper.n_trials=3")
    assert again.code == 0, again.output
    assert "nothing is left to try; raise hydra.sweeper.n_trials to go on" in again.output
    best = min(objectives, key=lambda job: objectives[job])
    assert f", in {Path(os.environ['RUNNER_OUTPUTS']) / 'dev' / best}" in again.output, (
        "also what an earlier command did"
    )

    more = runner(*settings, "hydra.sweeper.n_trials=5")
    assert more.code == 0, more.output
    assert states() == ["completed"] * 5
    assert {manifest["id"] for manifest in manifests()} > set(objectives)


@pytest.mark.slow
def test_pruned_trials_make_room_for_the_next(settings: list[str]) -> None:
    answer = runner(
        *settings,
        "hydra.sweeper.n_trials=10",
        "launcher.pack=4",
        "pruning=asha",
        "pruning.first=2",
        "pruning.reduction=2",
    )
    assert answer.code == 0, answer.output
    assert "search: 10 of 10 trials" in answer.output
    found = states()
    assert len(found) == 10
    assert found.count("pruned") >= 4
    assert found.count("completed") >= 1
    assert set(found) == {"completed", "pruned"}


@pytest.mark.slow  # tests/search/test_launch_search.py has it without workers
def test_a_trial_that_fails_does_not_end_the_search(settings: list[str]) -> None:
    answer = runner(*settings[:-1], "optimizer.lr=1e-3,1e30", "lora.rank=2,3", "hydra.sweeper.n_trials=4")
    assert answer.code == 1
    assert "search: 4 of 4 trials" in answer.output
    assert "the loss is" in answer.output
    assert set(states()) == {"completed", "failed"}


@pytest.mark.slow  # tests/tasks/test_evaluate_training.py has a search by another objective, too
def test_the_objective_is_chosen_by_name(settings: list[str]) -> None:
    answer = runner(*settings, "hydra.sweeper.n_trials=3", "objective.name=train/loss", "objective.direction=maximize")
    assert answer.code == 0, answer.output
    for manifest in manifests():
        lines = Path(os.environ["RUNNER_OUTPUTS"], "dev", manifest["id"], "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["train/loss"] for line in lines if "train/loss" in line]
        assert manifest["objective"] == losses[-1]
        assert (manifest["objective_name"], manifest["objective_direction"]) == ("train/loss", "maximize")
    best = max(manifest["objective"] for manifest in manifests())
    assert f"best: train/loss {best:.4g} with" in answer.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials = 0: should be at least 1"),
        (["hydra.sweeper.n_trails=3"], "hydra.sweeper.n_trails = 3: unknown key, did you mean n_trials?"),
        (["hydra.sweeper.sampler=tp"], "hydra.sweeper.sampler = 'tp': should be 'tpe' or 'random'"),
        (["lora.rank=interval(1,9)"], "lora.rank = 4.056: should be a whole number"),
        (["lora.rank=int(interval(-1,9))"], "lora.rank = -1: should be at least 1"),
        (["objective.name=train/los"], "objective.name = 'train/los': no job records it; there are validation/loss"),
        (["pruning=asha", "pruning.first=9"], "pruning.first = 9: the training ends after steps = 9"),
        (["pruning.first=9"], "pruning.first = 9: has no effect with pruning=none"),
        (["pruning=asha", "pruning.first=2", "objective.name=train/loss"], "only validation/... is measured there"),
    ],
)
def test_a_search_that_cannot_work_starts_nothing(settings: list[str], arguments: list[str], expected: str) -> None:
    answer = runner(*settings, *arguments)
    assert answer.code == 2, answer.output
    assert expected in answer.output
    assert "nothing was started" in answer.output
    assert not manifests()


def test_without_m_a_search_is_refused() -> None:
    answer = runner("hydra/sweeper=optuna")
    assert answer.code == 2
    assert "hydra/sweeper = optuna: has no effect without -m" in answer.output
