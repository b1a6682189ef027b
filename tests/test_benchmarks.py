"""The benchmark meant for a GPU runs on a CPU, and what one pack leaves behind is not measured with the next."""

from __future__ import annotations

import runpy
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch

from runner.errors import OutOfMemoryError
from runner.train.job_run import JobRun
from runner.train.passes import Passes
from tests.command_line import ROOT, environment
from tests.train.bench import CPU


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return runpy.run_path(str(ROOT / "benchmarks" / "full_size_unet.py"))


def test_packs_on_the_full_size_unet_are_measured_one_by_one(
    benchmark: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = benchmark["parse"](["--tiny", "--warmup", "1", "--steps", "1"])
    base, measure = benchmark["SyntheticBase"](benchmark["TINY"], CPU, torch.bfloat16), benchmark["measure"]
    gradients: list[weakref.ref[torch.Tensor]] = []
    backward = Passes._backward

    def watched(passes: Passes, adapters: Any, slices: Any) -> None:
        gradients.append(weakref.ref(adapters.joint_gradient))
        backward(passes, adapters, slices)

    monkeypatch.setattr(Passes, "_backward", watched)
    found = measure(2, 1, False, base, options)
    assert (found.jobs, found.most_rows) == (2, None)
    assert found.step_ms > 0

    def full(*_: Any) -> None:
        assert not any(each() is not None for each in gradients), "the memory of the pack before is not given back"
        raise torch.OutOfMemoryError("the device is full")

    monkeypatch.setattr(Passes, "_backward", full)
    with pytest.raises(OutOfMemoryError):
        measure(2, 1, False, base, options)
    assert not any("forward" in vars(module) for module in base.denoiser.modules()), (
        "its adapters are still in the UNet"
    )


def test_a_pack_that_is_too_large_is_a_row_wherever_the_memory_ends(
    benchmark: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    update = JobRun.update

    def full(run: JobRun) -> None:
        if run.job.experiment.seed == 1:
            raise torch.OutOfMemoryError("there is no room for the moments of the second job")
        update(run)

    monkeypatch.setattr(JobRun, "update", full)
    words = ["--tiny", "--warmup", "1", "--steps", "1", "--packs", "2", "1", "--checkpointing", "off"]
    options = benchmark["parse"](words)
    benchmark["all_packs"](benchmark["SyntheticBase"](benchmark["TINY"], CPU, torch.bfloat16), options, 1.0)
    two, one = ([cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines())
    assert two == ["64", "2", "1", "off", "out of memory", *["-"] * 6]
    assert one[:4] == ["64", "1", "1", "off"]
    assert len(one) == len(two)


@pytest.mark.slow
def test_packs_are_compared_with_processes_at_once() -> None:
    script = ROOT / "benchmarks" / "full_size_unet.py"
    options = ["--tiny", "--packs", "1", "--processes", "2", "--checkpointing", "off", "--warmup", "1", "--steps", "2"]
    done = subprocess.run(
        [sys.executable, str(script), *options], env=environment(), capture_output=True, text=True, check=True
    )
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if line.startswith("| 64")]
    assert [row[2] for row in rows] == ["1", "2 processes"]
    alone, together = ({"ms": float(row[5]), "images_per_s": float(row[6])} for row in rows)
    assert together["images_per_s"] == pytest.approx(2 / together["ms"] * 1e3, rel=0.5)
    assert float(rows[1][10]) == pytest.approx(together["images_per_s"] / alone["images_per_s"], rel=0.02)
