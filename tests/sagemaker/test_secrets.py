"""Planted secrets are found nowhere: not in requests, S3, logs, manifests, folders or output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.command_line import runner
from tests.launchers.running import outputs
from tests.sagemaker.stand_in import Image, StandIn
from tests.sagemaker.test_launch import job_settings, launcher_settings

WANDB, HUB = "planted-wandb-key-0123456789abcdef0123456789", "hf_plantedHubToken0123456789"


def found_in(aws: StandIn, secret: str) -> list[str]:
    """Every place that contains the secret."""
    places = []
    for call in aws.requests:
        if secret.encode() in call.body or secret in json.dumps(call.parameters, default=str):
            places.append(f"request {call.operation}")
    for key in list(aws.keys()):
        if secret.encode() in aws.s3.get_object(Bucket=aws.bucket, Key=key)["Body"].read():
            places.append(f"object {key}")
    for name in aws.jobs:
        places += [f"log of {name}" for line in aws.printed(name) if secret in line]
        if secret in json.dumps(aws.jobs[name].describe(), default=str):
            places.append(f"description of {name}")
    for file in outputs().rglob("*"):
        if file.is_file() and secret.encode() in file.read_bytes():
            places.append(str(file))
    return places


def test_secrets_of_secrets_manager_reach_the_training_and_nothing_else(
    aws: StandIn, sdxl_folder: Path, tmp_path: Path
) -> None:
    secrets = aws.platform.client("secretsmanager")
    secrets.create_secret(Name="lora-runner/wandb", SecretString=WANDB)
    secrets.create_secret(Name="lora-runner/hub", SecretString=HUB)
    # The training writes down what it received, outside of everything that is searched below.
    spy = tmp_path / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(
        "import os\n"
        "seen = os.environ.get('WANDB_API_KEY', '') + os.environ.get('HF_TOKEN', '')\n"
        f"open({str(spy / 'seen')!r}, 'a').write(seen)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(spy), "WANDB_MODE": "offline"}
    settings = [*job_settings(sdxl_folder, steps=2), *launcher_settings(aws)]
    image = aws.add_image("lora:spy", Image((sys.executable, "-m", "runner.container"), environment))

    answer = runner(
        *settings,
        f"launcher.image={image}",
        "launcher.wandb_secret=lora-runner/wandb",
        "launcher.hub_secret=lora-runner/hub",
        extra={"HF_TOKEN": HUB, "WANDB_API_KEY": WANDB},
    )

    assert answer.code == 0, answer.output
    assert WANDB + HUB in (spy / "seen").read_text(), "the training has them"
    assert WANDB not in answer.output
    assert HUB not in answer.output
    assert found_in(aws, WANDB) == []
    assert found_in(aws, HUB) == []


@pytest.mark.slow
def test_passing_them_in_the_request_is_asked_for_and_warned_of(aws: StandIn, sdxl_folder: Path) -> None:
    settings = [*job_settings(sdxl_folder, steps=2), *launcher_settings(aws), "launcher.pass_secrets=true"]
    extra = {"WANDB_API_KEY": WANDB}
    shown = runner(*settings, "launcher.dry_run=true", extra=extra)
    assert shown.code == 0, shown.output
    assert WANDB not in shown.output
    assert '"WANDB_API_KEY": "***"' in shown.output

    answer = runner(*settings, extra=extra)
    assert answer.code == 0, answer.output
    assert "WANDB_API_KEY can be read by everybody who may describe the training jobs" in answer.output
    (request,) = aws.asked("CreateTrainingJob")
    assert request["Environment"]["WANDB_API_KEY"] == WANDB
    places = [place for place in found_in(aws, WANDB) if "request CreateTrainingJob" not in place]
    assert [place for place in places if not place.startswith("description of ")] == []
