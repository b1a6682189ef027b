"""What the gallery finds in a folder and draws with, without a server or a browser."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from runner.gallery.easel import WEIGHT, Easel
from runner.gallery.shelf import Shelf
from tests.train.bench import Bench


@pytest.mark.parametrize(("direction", "shown"), [("minimize", "low"), ("maximize", "high")])
def test_the_cover_shows_the_best_job_whichever_way_is_better(tmp_path: Path, direction: str, shown: str) -> None:
    for name, objective in (("low", 0.1), ("high", 0.9)):
        folder = tmp_path / "grid" / name
        (folder / "samples" / "step-000001").mkdir(parents=True)
        (folder / "samples" / "step-000001" / "p00-s0.png").touch()
        about: dict[str, Any] = {"state": "completed", "objective": objective, "task": "train"}
        about |= {"objective_name": "evaluation/dino_score", "objective_direction": direction}
        (folder / "manifest.json").write_text(json.dumps(about))
    shelf = Shelf(tmp_path)
    (experiment,) = shelf.experiments()
    assert shelf.cover(experiment).pictures == [f"grid/{shown}/samples/step-000001/p00-s0.png"]


def test_each_adapter_draws_in_the_precision_of_its_training(bench: Bench, tmp_path: Path) -> None:
    drawn = {"prompts": ["a red house"], "seeds": [3], "inference_steps": 2, "guidance_scale": 1.0}
    settings: dict[str, Any] = {"model": {"family": "sdxl"}, "steps": 1, "validation": drawn, "outputs": tmp_path}
    jobs = [bench.job(Path("embedded"), **settings, name=each, precision=each) for each in ("fp32", "bf16")]
    for job in jobs:
        assert bench.train(job)
    shelf = Shelf(tmp_path)
    (base,) = shelf.bases()
    assert len(base.adapters) == 2, "they can be mixed"
    easel = Easel(shelf, "cpu")
    for job in jobs:
        form = {"prompt": "a red house", "seed": "3", "steps": "2", "guidance": "1", "size": str(base.resolution)}
        (picture,) = asyncio.run(easel.draw({**form, f"{WEIGHT}{shelf.path_of(job.folder)}": "1"}))
        assert picture.png == (job.paths.samples_at(1) / "p00-s3.png").read_bytes(), job.settings.name
