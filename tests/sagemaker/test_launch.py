"""launcher=sagemaker from the command line to weights in the run folder: real requests, real processes, real training."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.command_line import runner
from tests.launch.running import assert_bitwise_equal, manifests, only_folder
from tests.sagemaker.stand_in import Image, StandIn

IMAGE = Image((sys.executable, "-m", "runner.container"), {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
INSTANCE = "ml.m5.xlarge"


def job_settings(model: Path) -> list[str]:
    """A small job."""
    return [f"model.path={model}", "logger=none", "validation.prompts=[]", "steps=10", "checkpoint.every=5"]


@pytest.fixture
def settings(aws: StandIn, sdxl_folder: Path) -> list[str]:
    image = aws.add_image("lora:1", IMAGE)
    return [
        *job_settings(sdxl_folder),
        *("launcher=sagemaker", f"launcher.image={image}", f"launcher.role={aws.role}", f"launcher.bucket={aws.bucket}"),
        *(f"launcher.instance={INSTANCE}", "launcher.poll_s=0.5"),
    ]


def test_a_job_trains_there_and_gives_the_weights_of_a_local_one(
    aws: StandIn, settings: list[str], sdxl_folder: Path, tmp_path: Path
) -> None:
    answer = runner(*settings)
    assert answer.code == 0, answer.output
    there = only_folder()
    local = runner(*job_settings(sdxl_folder), extra={"RUNNER_OUTPUTS": str(tmp_path / "local")})
    assert local.code == 0, local.output
    assert_bitwise_equal(there, tmp_path / "local" / "dev" / there.name)
    (manifest,) = manifests().values()
    assert manifest["state"] == "completed"
    print(answer.output, manifest)
