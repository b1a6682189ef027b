"""A training that is evaluated before it completes: what it counts as, what is refused, and searches by its figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runner.check import Checker
from runner.errors import SettingsError
from runner.jobs.job import Job
from tests.command_line import runner
from tests.launchers.running import outputs
from tests.tasks.evaluations import Networks, networks

__all__ = ["networks"]

TRAINING: dict[str, Any] = {"name": "x", "task": {"name": "train"}, "model": {}, "dataset": {"path": "embedded"}}


def kid_of_training(tmp_path: Path, **changes: Any) -> Job:
    evaluation = {"metrics": ["kid"], "real": "embedded", "prompts": ["a star", "a circle"], **changes}
    return Checker(tmp_path).job({**TRAINING, "evaluation": evaluation})


def test_a_training_is_refused_a_distance_of_one_drawn_image(networks: Networks, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"evaluation\.prompts = .* more seeds \(of a training validation\.seeds\)"):
        kid_of_training(tmp_path, features={"inception": networks.inception}, prompts=["a star"])


def test_what_a_training_is_measured_with_counts_by_its_content(networks: Networks, tmp_path: Path) -> None:
    features = {"inception": networks.inception}
    before = kid_of_training(tmp_path, features=features)
    copy = shutil.copy(networks.inception, tmp_path / "copy.pt")
    assert kid_of_training(tmp_path, features={"inception": str(copy)}).id == before.id
    (tmp_path / "other.pt").write_bytes(Path(networks.inception).read_bytes() + b" ")
    assert kid_of_training(tmp_path, features={"inception": str(tmp_path / "other.pt")}).id != before.id
    real = tmp_path / "real"
    real.mkdir()
    for shade in (0, 9):
        Image.fromarray(np.full((64, 64, 3), shade, dtype=np.uint8)).save(real / f"{shade}.png")
    assert kid_of_training(tmp_path, features=features, real=str(real)).id != before.id


def test_a_training_that_is_not_measured_keeps_its_id(tmp_path: Path) -> None:
    plain = Checker(tmp_path).job(TRAINING)
    assert {key for key in plain.identity if not key.startswith("settings.")} == {"schema", "model", "dataset"}
    pixels = Checker(tmp_path).job({**TRAINING, "evaluation": {"metrics": ["base_drift"]}})
    assert "evaluation" not in pixels.identity, "it is measured with no file"


def test_a_search_over_trainings_goes_by_what_is_measured_of_their_results(networks: Networks) -> None:
    answer = runner(
        *(
            "-m",
            "hydra/sweeper=optuna",
            "hydra.sweeper.n_trials=2",
            "name=searched",
            "optimizer.lr=interval(1e-4,1e-2)",
        ),
        *("steps=2", "lora.rank=2", "logger=none", "validation.prompts=[]", "validation.inference_steps=2"),
        *("evaluation.metrics=[kid,base_drift]", f"evaluation.features.inception={networks.inception}"),
        *("evaluation.real=embedded", "evaluation.prompts=['a house','a red house']"),
        "objective.name=evaluation/kid_score",
    )

    assert answer.code == 0, answer.output
    assert "best: evaluation/kid_score" in answer.output
    for folder in (outputs() / "searched").glob("*/manifest.json"):
        manifest = json.loads(folder.read_text())
        assert manifest["objective"] == manifest["figures"]["kid_score"]["value"]
        assert manifest["objective_name"] == "evaluation/kid_score"
    assert (outputs() / "searched" / "sweep.csv").read_text().splitlines()[0].count("kid_score.low") == 1


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"evaluation": {"subject": "sks dog"}}, "evaluation.subject = 'sks dog': has no effect without"),
        (
            {"objective": {"name": "evaluation/kid_score"}},
            "evaluations measure: none, because evaluation.metrics is null",
        ),
        ({"evaluation": {"metrics": ["kid"]}}, "evaluation.metrics = [kid]: kid needs features.inception"),
        (
            {"evaluation": {"metrics": ["base_drift"]}, "objective": {"name": "evaluation/dino_score"}},
            "evaluations measure: evaluation/base_drift",
        ),
        (
            {
                "evaluation": {"metrics": ["dino"], "features": {"dino": "a/b"}, "real": "x"},
                "objective": {"name": "evaluation/dino_score"},
            },
            "more of evaluation/dino_score is better; set objective.direction=maximize",
        ),
        (
            {
                "evaluation": {"metrics": ["base_drift"]},
                "objective": {"name": "evaluation/base_drift", "direction": "maximize"},
            },
            "less of evaluation/base_drift is better; set objective.direction=minimize",
        ),
    ],
)
def test_a_training_that_cannot_be_measured_so_is_refused(said: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        Checker(tmp_path).job({"name": "x", "task": {"name": "train"}, **said})

    assert expected in str(refused.value)
