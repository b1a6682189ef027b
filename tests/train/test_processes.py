"""A pack spread over two processes gives what one process gives, and a failure in one is known to both."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from runner.errors import RunnerError
from runner.jobs.job import Job, State, read_manifest, state_of
from runner.train.drawing import UseRows
from runner.train.loop import _finish_if_done
from runner.train.pack import tried
from runner.train.place import Place
from tests.command_line import ROOT
from tests.train.bench import Bench, difference, records, weights
from tests.train.ranks import in_both

SPREAD: dict[str, Any] = {
    "batch_size": 5,
    "accumulation": 2,
    "steps": 3,
    "seed": 1,
    "lora": {"rank": 3, "dropout": 0.2},
    "dataset": {"caption_dropout": 0.3},
    "checkpoint": {"every": 1},
}

SMALL: dict[str, Any] = {"steps": 4, "seed": 4, "batch_size": 1}
IN_BUCKETS: dict[str, Any] = {"steps": 4, "seed": 5, "batch_size": 3, "dataset": {"buckets": True, "bucket_step": 8}}
ALONE = {"good": SPREAD, "small": SMALL, "in buckets": IN_BUCKETS}

WORK = ("-m", "runner.work")
HAS_LEFT = "import sys, torch.distributed as dist, runner.work; sys.exit(runner.work.main() or dist.is_initialized())"


def train_in_two_processes(bench: Bench, *jobs: Job, program: Sequence[str] = WORK) -> subprocess.CompletedProcess[str]:
    # Not `accelerate launch --cpu`, which starts one process whatever --num_processes says (accelerate 1.15).
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, *program, "--device", "cpu", *(str(job.folder) for job in jobs)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RUNNER_CACHE": str(bench.root / "another-cache")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def spread(bench: Bench, sdxl_folder: Path) -> dict[str, Job]:
    """Jobs trained as one pack on two processes; one diverges, one cannot write its files."""
    jobs = {
        "good": bench.job(sdxl_folder, **SPREAD),
        "diverging": bench.job(sdxl_folder, steps=3, seed=2, optimizer={"lr": 1e30}),
        "unwritable": bench.job(sdxl_folder, steps=1, seed=3),
        "small": bench.job(sdxl_folder, **SMALL),
        "in buckets": bench.job(sdxl_folder, **IN_BUCKETS),
    }
    jobs["unwritable"].paths.lora.write_text("a file where a folder should be")
    done = train_in_two_processes(bench, *jobs.values())
    assert done.returncode == 1, done.stderr
    assert "the pack failed" not in done.stderr
    return jobs


@pytest.mark.parametrize("name", list(ALONE))
def test_two_processes_give_what_one_gives(bench: Bench, sdxl_folder: Path, spread: dict[str, Job], name: str) -> None:
    job = spread[name]
    assert state_of(job.folder) is State.COMPLETED
    alone = bench.job(sdxl_folder, **ALONE[name])
    assert bench.train(alone)
    # Encoded and summed in different parts, in a pack of five. Measured 1e-6.
    assert difference(weights(job), weights(alone)) < 1e-5
    assert records(job, "train/loss") == pytest.approx(records(alone, "train/loss"), rel=1e-5)
    assert records(job, "train/grad_norm") == pytest.approx(records(alone, "train/grad_norm"), rel=1e-4)
    assert records(job, "validation/loss") == pytest.approx(records(alone, "validation/loss"), rel=1e-4)


def test_what_fails_in_one_process_leaves_the_pack_in_both(spread: dict[str, Job]) -> None:
    assert state_of(spread["diverging"].folder) is State.FAILED
    error = read_manifest(spread["diverging"].folder)["error"]
    assert "the loss is" in error and error.endswith("try a lower optimizer.lr"), "there is no wider precision"
    assert state_of(spread["unwritable"].folder) is State.FAILED
    assert "FileExistsError" in read_manifest(spread["unwritable"].folder)["error"]


def test_a_last_validation_that_fails_in_the_main_process_leaves_both_in_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def validate(run: Any, use_rows: UseRows) -> dict[str, float]:
        if run.base.place.is_main:
            raise OSError("no space left")
        return {}

    monkeypatch.setattr("runner.train.loop.validate", validate)

    def finished(place: Place) -> Any:
        pack: Any = SimpleNamespace(rows_of=lambda run: None)
        run: Any = MagicMock(done=True, base=SimpleNamespace(place=place))
        run.adapter.weights = torch.zeros(1)
        return tried(partial(_finish_if_done, pack, lambda *given: None, run))

    main, other = in_both(finished)
    assert isinstance(main, OSError) and isinstance(other, RunnerError)


def test_processes_part_from_each_other_before_they_end(bench: Bench, sdxl_folder: Path) -> None:
    """Otherwise gloo aborts one of them now and then, and torchrun prints a page about a crash."""
    job = bench.job(sdxl_folder, **SMALL)
    done = train_in_two_processes(bench, job, program=("--no-python", sys.executable, "-c", HAS_LEFT))
    assert done.returncode == 0, done.stderr
    assert state_of(job.folder) is State.COMPLETED


def test_the_manifest_says_how_many_processes_there_were(spread: dict[str, Job]) -> None:
    assert read_manifest(spread["good"].folder)["device"].startswith("2 x ")
