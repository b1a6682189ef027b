"""A job at a rung is judged by the folders that can be read, and all processes learn of it if none can."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.jobs.job import Job
from runner.paths import JobPaths
from runner.schema import PruningSettings
from runner.track import MetricsFile
from runner.train import loop
from runner.train.loop import _prune
from runner.train.pack import tried
from runner.train.place import Place
from runner.train.pruning import falls_behind, rungs
from tests.train.bench import Bench
from tests.train.ranks import in_both

PRUNING: dict[str, Any] = {"steps": 12, "pruning": {"name": "asha", "first": 2, "reduction": 2}}


def measured(bench: Bench, model: Path, outputs: Path, losses: Sequence[float], **settings: Any) -> list[Job]:
    """Jobs of one experiment that have reached step 2, each with its loss there."""
    jobs = [bench.job(model, outputs=outputs, seed=seed, **PRUNING, **settings) for seed in range(len(losses))]
    for job, loss in zip(jobs, losses, strict=True):
        MetricsFile(job.paths.metrics).append(2, {"validation/loss": loss})
    return jobs


def _as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: file.write_text(file.read_text()[:40]),
    "empty": lambda file: file.write_bytes(b""),
    "a folder": _as_folder,
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_job_whose_manifest_cannot_be_read_is_left_out(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, damage: str
) -> None:
    good, damaged, worse, worst = measured(bench, sdxl_folder, tmp_path, [0.1, 0.2, 0.3, 0.4])
    DAMAGES[damage](damaged.paths.manifest)
    assert falls_behind(good, 2) is None
    for behind in (worse, worst):
        assert "not among the best 1 of 3" in str(falls_behind(behind, 2))


@pytest.mark.parametrize(
    "other",
    [
        {"validation": {"timesteps": 2}},
        {"validation": {"max_images": 2}},
        {"validation": {"held_out": 0.5}},
        {"resolution": 32},
        {"model": {"prediction_type": "v_prediction"}},
        {"model": {"zero_terminal_snr": True}},
        {"dataset": {"buckets": True, "bucket_step": 8}},
    ],
    ids=["timesteps", "images", "held out", "resolution", "prediction", "noise", "shapes"],
)
def test_only_jobs_whose_loss_is_measured_alike_are_compared(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    better, job = measured(bench, sdxl_folder, tmp_path, [0.3, 0.4])
    for seed in (1, 2):
        measured_otherwise = bench.job(sdxl_folder, outputs=tmp_path, seed=seed, **PRUNING, **other)
        MetricsFile(measured_otherwise.paths.metrics).append(2, {"validation/loss": 0.1})
    assert falls_behind(better, 2) is None
    assert "not among the best 1 of 2" in str(falls_behind(job, 2))


@pytest.mark.parametrize(("direction", "best"), [("minimize", [0, 1]), ("maximize", [3, 4])])
def test_the_best_part_of_those_that_came_so_far_goes_on(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, direction: str, best: list[int]
) -> None:
    losses = [0.1, 0.2, 0.3, 0.4, 0.5]
    jobs = measured(bench, sdxl_folder, tmp_path, losses, objective={"direction": direction})
    behind = bench.job(sdxl_folder, outputs=tmp_path, seed=9, **PRUNING)
    MetricsFile(behind.paths.metrics).append(1, {"validation/loss": 0.0})
    assert [index for index, job in enumerate(jobs) if falls_behind(job, 2) is None] == best


def test_jobs_that_are_equally_good_go_on_together(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    jobs = measured(bench, sdxl_folder, tmp_path, [0.2, 0.2, 0.3])
    assert [falls_behind(job, 2) is None for job in jobs] == [True, True, False]


def test_a_job_that_has_come_again_to_a_rung_is_judged_by_what_it_measured_last(
    bench: Bench, sdxl_folder: Path, tmp_path: Path
) -> None:
    other, again = measured(bench, sdxl_folder, tmp_path, [0.2, 0.1])
    MetricsFile(again.paths.metrics).append(2, {"validation/loss": 0.3})
    assert falls_behind(other, 2) is None
    assert "0.3 at step 2 is not among the best 1 of 2" in str(falls_behind(again, 2))


def test_a_loss_that_is_no_number_never_goes_on(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    for alone in measured(bench, sdxl_folder, tmp_path, [math.nan]):
        assert falls_behind(alone, 2) is not None


def test_rungs_are_so_many_times_as_far_each() -> None:
    settings = PruningSettings(name="asha", first=2, reduction=3)
    assert rungs(settings, 60) == [2, 6, 18, 54]
    assert rungs(settings, 54) == [2, 6, 18], "at its end a job has nothing left to save"
    assert rungs(PruningSettings(), 60) == []


def test_what_is_left_out_is_said_once(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    *others, damaged = measured(bench, sdxl_folder, tmp_path, [0.1, 0.2, 0.3])
    damaged.paths.manifest.write_text("{")
    for job in others * 2:
        falls_behind(job, 2)
    assert caplog.text.count(f"{damaged.folder} is not compared with the others") == 1


def test_a_folder_that_the_system_refuses_to_show_is_left_out_unless_it_is_the_jobs_own(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = measured(bench, sdxl_folder, tmp_path, [0.2, 0.1])
    values = MetricsFile.values

    def refusing(file: MetricsFile, name: str) -> list[tuple[int, float]]:
        if file.path == JobPaths(other.folder).metrics:
            raise PermissionError(f"{file.path} is another user's")
        return values(file, name)

    monkeypatch.setattr(MetricsFile, "values", refusing)
    assert falls_behind(own, 2) is None
    with pytest.raises(PermissionError):
        falls_behind(other, 2)


def test_a_comparison_that_fails_in_the_main_process_leaves_all_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_job: Job, _step: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(loop, "falls_behind", failing)
    pruned: list[str] = []

    def process(place: Place) -> tuple[Any, bool]:
        run: Any = SimpleNamespace(
            at_rung=True,
            unmeasured=False,
            is_main=place.is_main,
            base=SimpleNamespace(place=place),
            job=SimpleNamespace(id="job"),
            step=2,
            prune=pruned.append,
        )
        outcome = tried(partial(_prune, run))
        return outcome, place.any(isinstance(outcome, Exception))  # as `Pack.each` does

    (main, main_heard), (_, other_heard) = in_both(process)
    assert isinstance(main, OSError)
    assert (main_heard, other_heard, pruned) == (True, True, [])
