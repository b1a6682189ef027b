"""Evaluations with small networks of random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from runner.jobs.job import Job
from runner.schema.tasks.evaluate import Evaluate
from tests.measures.networks import save_clip, save_dino, save_inception


@dataclass(frozen=True)
class Networks:
    clip: str
    dino: str
    inception: str


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    root = tmp_path_factory.mktemp("networks")
    made = save_clip(root / "clip"), save_dino(root / "dino"), save_inception(root / "inception.pt")
    return Networks(*map(str, made))


def settings(networks: Networks, job: Job | None = None, **changes: Any) -> Evaluate:
    features = {"clip": networks.clip, "dino": networks.dino, "inception": networks.inception}
    given: dict[str, Any] = {
        "task": {"name": "evaluate"}, "features": features, "real": "embedded", "inference_steps": 1, "seeds": [0, 1],
        "prompts": ["a red {}", "a star"], "subject": "<one> house", "subject_class": "house", "guidance_scale": 1.0,
        **({"adapter": str(job.folder)} if job else {}),
    }  # fmt: skip
    return Evaluate.model_validate({**given, **changes})
