"""`python -m runner.doctor`: what it finds on machines that have everything, and on machines that lack it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

from runner import doctor
from tests.command_line import command
from tests.sagemaker.stand_in import StandIn
from tests.tasks.hub_stand_in import serving
from tests.track.wandb_server import WandbServer

SECRETS = {"WANDB_API_KEY": "0123456789" * 4, "HF_TOKEN": "hf_writes", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-test"}


@pytest.fixture
def wandb_server() -> Iterator[WandbServer]:
    running = WandbServer()
    yield running
    running.stop()


def test_a_machine_that_has_everything_and_whose_secrets_stay_its_own(
    tmp_path: Path, wandb_server: WandbServer
) -> None:
    with serving() as hub, StandIn(tmp_path / "instances") as aws:
        there = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "WANDB_BASE_URL": wandb_server.url}
        answer = command("doctor", extra=there | aws.environment | SECRETS)
    assert answer.code == 0, answer.output
    lines = {line[2:].split()[0]: line for line in answer.output.splitlines()}
    assert f"torch {metadata.version('torch')}" in lines["packages"]
    assert f"reachable, as {next(iter(hub.accounts.values()))['name']}" in lines["Hub"]
    assert f"online at {wandb_server.url}" in lines["W&B"]
    assert " as " in lines["AWS"]
    assert str(tmp_path / "outputs") in lines["outputs"]
    assert "installed" in lines["[search]"]
    assert not [name for name, secret in SECRETS.items() if secret in answer.output]


def test_what_a_machine_lacks_is_said_with_what_to_do_and_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    assert "- W&B          offline (no API key): runs stay in their folders  ->  wandb login" in text
    assert "- AWS          no credentials  ->  aws configure" in text
    assert "HF_HUB_OFFLINE is set" in text


def test_a_package_out_of_bounds_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["torch<2.0", "no-such-package>=1", 'other>=1; extra == "gone"', "numpy>=2"]
    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    installed = metadata.version("torch")
    assert f"! packages     torch {installed} is installed, but <2.0 is required  ->  pip install 'torch<2.0'" in text
    lacking = (
        "! packages     no-such-package is not installed, but >=1 is required  ->  pip install 'no-such-package>=1'"
    )
    assert lacking in text
    assert "other" not in text


def test_gpus_that_torch_cannot_use_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nprintf '0, GPU-aaaa, NVIDIA H100 80GB HBM3, 81559\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert doctor.main([]) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "GPUs" in line)
    assert line.startswith("! GPUs         NVIDIA H100 80GB HBM3, 86 GB; torch ")


def test_gpus_that_only_torch_sees_are_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert doctor.main([]) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "GPUs" in line)
    assert "sees 2, and nvidia-smi lists none: plans are made for the CPU  ->  put nvidia-smi on the PATH" in line


def test_a_folder_that_cannot_be_written_to_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RUNNER_OUTPUTS", str(tmp_path / "file" / "outputs"))
    assert doctor.main([]) == 1
    assert "cannot be written to  ->  set RUNNER_OUTPUTS to another folder" in capsys.readouterr().out


def test_what_a_look_fails_at_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    assert "'sometimes': it must be one of auto, online" in text
    assert "[search]" in text
