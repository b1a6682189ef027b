"""The progress lines of a training pack are correct for any model size."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.jobs.job import Job, read_manifest
from runner.train import admission, clock, progress
from runner.train.job_run import JobRun
from runner.train.pack import Pack
from runner.train.progress import Progress
from tests.train.bench import Bench, records


class Watch:
    """A clock that advances only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize(
    ("jobs", "before_s", "step_s", "images_per_s", "said"),
    [
        (1, 600.0, 40.0, 0.025, ["step 1 of 101", "0.025 images/s", " 1 h 06 min left"]),
        (1, 30.0, 12.0, 3.14159, ["3.14 images/s", " 20 min 00 s left"]),
        (2, 30.0, 12.0, 3.0, ["2 of 202 steps of 2 jobs", "6 images/s", " 20 min 00 s left"]),
    ],
)
def test_the_time_left_is_that_of_the_steps_alone(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    jobs: int,
    before_s: float,
    step_s: float,
    images_per_s: float,
    said: list[str],
) -> None:
    caplog.set_level(logging.INFO)
    watch = Watch(monkeypatch)
    runs: list[Any] = [
        SimpleNamespace(
            job=SimpleNamespace(id=number), settings=SimpleNamespace(steps=101), step=1, last_loss=0.1,
            images_per_s=images_per_s,
        )
        for number in range(jobs)
    ]  # fmt: skip
    shown = Progress(enabled=True)
    watch.now += before_s  # loading and encoding
    shown.begin()
    watch.now += step_s
    shown.update(runs)
    for each in said:
        assert each in caplog.text


def test_steps_that_are_made_to_be_timed_do_not_slow_the_training_in_its_records(
    bench: Bench, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_s, passed = 5000.0, 0.0
    real_s, time_alone = time.perf_counter, Pack._time_alone

    def slowly(pack: Pack, run: JobRun) -> float:
        nonlocal passed
        found = time_alone(pack, run)
        passed += timed_s
        return found

    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: real_s() + passed))
    monkeypatch.setattr(Pack, "_time_alone", slowly)
    jobs = [bench.job(sdxl_folder, steps=1, seed=seed, validation={"prompts": [], "timesteps": 1}) for seed in (1, 2)]
    assert bench.train(*jobs)
    assert passed == timed_s
    timings = [read_manifest(job.folder)["timings_s"] for job in jobs]
    assert all(each["train"] < timed_s / 2 <= each["load"] for each in timings)
    for job in jobs:
        assert records(job, "train/images_per_s")[1] > 2 * job.experiment.batch_size / timed_s


def test_what_is_spent_before_a_job_trains_is_its_own_or_its_share(
    bench: Bench, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = 0.0
    real_s, prepare, start = time.perf_counter, admission.prepare, admission._start

    def prepare_slowly(job: Job, *given: Any) -> Any:
        nonlocal passed
        passed += 1000.0 * job.experiment.seed
        return prepare(job, *given)

    def start_slowly(job: Job, *given: Any) -> Any:
        nonlocal passed
        passed += 500.0 * job.experiment.seed
        return start(job, *given)

    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: real_s() + passed))
    monkeypatch.setattr(admission, "prepare", prepare_slowly)
    monkeypatch.setattr(admission, "_start", start_slowly)
    jobs = [bench.job(sdxl_folder, steps=1, seed=seed) for seed in (1, 3)]
    assert bench.train(*jobs)
    timings = [read_manifest(job.folder)["timings_s"] for job in jobs]
    assert [each["cache"] for each in timings] == pytest.approx([1000, 3000], abs=100)
    assert [each["load"] for each in timings] == pytest.approx([1000, 1000], abs=100), "the base is there for both"
