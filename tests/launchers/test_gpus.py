"""GPUs as the driver's tool lists them, and a worker for each; no GPU is needed for that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from runner import work
from runner.errors import RunnerError
from runner.launchers import local
from runner.schema import LocalLauncher
from runner.system.machine import Device, find_gpus, this_machine
from runner.train.place import Place
from tests.command_line import runner
from tests.launchers.running import Running, manifests, outputs

PARTS = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
  MIG 3g.40gb     Device  0: (UUID: MIG-cccc)
  MIG 1g.10gb     Device  1: (UUID: MIG-dddd)
GPU 1: NVIDIA L4 (UUID: GPU-bbbb)
"""
LISTED = "0, GPU-aaaa, NVIDIA H100 80GB HBM3, 81559\n1, GPU-bbbb, NVIDIA L4, 23034\n"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two GPUs, according to the driver's tool."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nif [ $1 = -L ]; then printf '{PARTS}'; else printf '{LISTED}'; fi\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tool


def selectors() -> list[str]:
    return [device.selector for device in find_gpus()]


def test_gpus_are_found_with_their_names_and_memory(driver: Path) -> None:
    first, second = find_gpus()
    assert first == Device("cuda", "NVIDIA H100 80GB HBM3", pytest.approx(85.5, abs=0.1), "0")  # type: ignore[arg-type]
    assert second.name == "NVIDIA L4"
    assert this_machine("auto").has_gpus
    assert not this_machine("cpu").has_gpus


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        *[("1", ["1"]), ("1,0", ["1", "0"]), ("GPU-bbbb", ["GPU-bbbb"]), ("", []), ("-1", []), ("0,7,1", ["0"])],
        *[("GPU-b", ["GPU-b"]), ("GPU-", []), ("MIG-dddd,MIG-cccc", ["MIG-dddd"]), ("MIG-eeee", [])],
    ],
)
def test_only_visible_gpus_count(
    driver: Path, monkeypatch: pytest.MonkeyPatch, visible: str, expected: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert selectors() == expected


def test_a_part_of_a_gpu_has_the_name_that_cuda_gives_it(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-dddd")
    assert find_gpus() == (Device("cuda", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10.0, "MIG-dddd"),)


@pytest.mark.parametrize("content", ["#!/bin/sh\nexit 9\n", "#!/bin/sh\necho No devices were found\n"])
def test_a_driver_that_finds_nothing_is_no_gpu(driver: Path, content: str) -> None:
    driver.write_text(content)
    assert find_gpus() == ()


def test_a_plan_names_the_gpus(driver: Path) -> None:
    answer = runner("-m", "seed=1,2,3,4", "launcher.dry_run=true")
    assert answer.code == 0, answer.output
    assert "on 2 x NVIDIA H100 80GB HBM3, 86 GB each" in answer.output
    assert "4 jobs, 2 at once per worker (shared among 2 workers); 2 workers" in answer.output


def test_where_a_gpu_is_asked_for_that_torch_cannot_use_nothing_is_trained_on_the_cpu(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.yaml").touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunnerError, match=r"device = 'cuda': torch \S+ finds no GPU: .*CUDA"):
        Place.here("cuda")
    assert work.main(["--device", "cuda", str(tmp_path)]) == work.CRASHED_CODE, "a job is not tried again for that"
    assert Place.here("auto").device.type == "cpu"
    assert "training on the CPU, although there is an NVIDIA GPU: torch" in caplog.text


NO_CUDA = "launcher.device = 'cuda': torch 2.13.0+cpu is a build without CUDA; install one with it, or set cpu"


@pytest.mark.parametrize(("version", "faults"), [("2.13.0", []), ("2.13.0+cu130", []), ("2.13.0+cpu", [NO_CUDA])])
def test_a_build_of_torch_that_knows_no_gpu_is_refused_before_anything_starts(
    driver: Path, monkeypatch: pytest.MonkeyPatch, version: str, faults: list[str]
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: version)
    assert local.check(LocalLauncher(name="local", device="cuda")) == faults
    assert local.check(LocalLauncher(name="local", device="auto")) == []


def test_more_workers_than_gpus_are_refused(driver: Path) -> None:
    answer = runner("launcher.concurrency=3", "launcher.processes=4", "batch_size=4")
    assert answer.code == 2
    assert "launcher.processes = 4: this machine has 2 GPUs; lower it" in answer.output
    assert "launcher.concurrency = 3: this machine has 2 GPUs, and each holds one pack at a time" in answer.output


def test_each_worker_sees_a_gpu_of_its_own(driver: Path, sdxl_folder: Path) -> None:
    settings = [f"model.path={sdxl_folder}", "logger=none", "validation=loss_only", "validation.timesteps=1"]
    running = Running(["-m", *settings, "steps=5000", "seed=1,2", "checkpoint.every=5"])
    try:
        for job_id in [running.wait_for("dev/*/manifest.json").parent.name, *manifests()]:
            running.wait_for(f"dev/{job_id}/checkpoints/step-*")
        seen = set()
        for job_id in manifests():
            pid = int((outputs() / "dev" / job_id / ".lock").read_text())
            variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
            seen |= {text for text in variables if text.startswith("CUDA_VISIBLE_DEVICES=")}
    finally:
        running.process.terminate()
        answer = running.end()
    assert seen == {"CUDA_VISIBLE_DEVICES=0", "CUDA_VISIBLE_DEVICES=1"}
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in variables, "or they would be other ones where GPUs differ"
    assert answer.code == 130, answer.output
    assert {manifest["state"] for manifest in manifests().values()} == {"interrupted"}
