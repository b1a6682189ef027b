"""Jobs take turns in a pack: a leaving job makes room, a joining one finds everything, and no result changes."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from runner.cache.measured import measurements_file
from runner.errors import RunnerError
from runner.jobs.job import Job, State, read_manifest, state_of
from runner.train import pack, passes
from runner.train.adapters.packed import PackedAdapters
from runner.train.base import Base
from runner.train.cost import peak_memory_gb
from runner.train.job_run import JobRun
from runner.train.loop import train
from runner.train.memory import within_memory
from runner.train.place import Place
from tests.train.bench import CPU, Bench, Listed, difference, records, weights
from tests.train.ranks import in_both

ROUNDING = 1e-5
PICTURES: dict[str, Any] = {"prompts": ["a red circle"], "inference_steps": 2, "every": 2}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    from tests.train.bench import write_images

    others = write_images(tmp_path_factory.mktemp("others"), seed=7)
    return [
        {"seed": 1, "steps": 2, "validation": PICTURES},
        {"seed": 2, "steps": 5, "lora": {"rank": 5}, "dataset": {"path": str(others)}},
        {"seed": 3, "steps": 3, "lora": {"targets": "linear_conv"}, "validation": PICTURES},
        {"seed": 4, "steps": 4, "batch_size": 3, "accumulation": 2},
        {"seed": 5, "steps": 1},
    ]


def test_the_next_job_takes_the_place_of_one_that_leaves(
    bench: Bench, sdxl_folder: Path, settings: list[dict[str, Any]]
) -> None:
    jobs = [bench.job(sdxl_folder, **each) for each in settings]
    assert bench.train_only(*jobs, at_once=2)
    assert [state_of(job.folder) for job in jobs] == [State.COMPLETED] * 5
    assert [read_manifest(job.folder)["cost"]["packed_with"] for job in jobs] == [2] * 5
    for job, each in zip(jobs, settings, strict=True):
        alone = bench.job(sdxl_folder, **each)
        assert bench.train_only(alone)
        assert difference(weights(job), weights(alone)) < ROUNDING
        assert records(job, "validation/loss") == pytest.approx(records(alone, "validation/loss"), rel=1e-4)
        assert sorted(path.name for path in job.folder.glob("samples/*/*.png")) == sorted(
            path.name for path in alone.folder.glob("samples/*/*.png")
        )


def test_a_job_whose_images_broke_after_the_plan_fails_alone(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    from tests.train.bench import write_images

    images = write_images(tmp_path / "images")
    good, broken, diverging = (
        bench.job(sdxl_folder, seed=1),
        bench.job(sdxl_folder, seed=2, images=images),
        bench.job(sdxl_folder, seed=3, optimizer={"lr": 1e30}, steps=5),
    )
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:200])
    assert not bench.train_only(broken, good, diverging)
    assert [state_of(job.folder) for job in (good, broken, diverging)] == [State.COMPLETED, State.FAILED, State.FAILED]
    assert "2.png" in read_manifest(broken.folder)["error"]
    assert "lower optimizer.lr" in read_manifest(diverging.folder)["error"]
    alone = bench.job(sdxl_folder, seed=1)
    assert bench.train_only(alone)
    assert difference(weights(good), weights(alone)) < ROUNDING


def test_when_all_leave_at_once_the_next_ones_come(bench: Bench, sdxl_folder: Path) -> None:
    jobs = [bench.job(sdxl_folder, seed=seed, steps=2) for seed in range(5)]
    assert bench.train_only(*jobs, at_once=2)
    assert [state_of(job.folder) for job in jobs] == [State.COMPLETED] * 5


class Opening(Listed):
    """A source that gives its second job only after it was once asked in vain."""

    def __init__(self, jobs: list[Job]) -> None:
        super().__init__(jobs)
        self.asked = 0

    @property
    def more_may_come(self) -> bool:  # type: ignore[override]
        return bool(self.waiting)

    def take(self, count: int) -> list[Job]:
        self.asked += 1
        return super().take(1) if self.asked in (1, 9) else []


def test_a_worker_waits_for_jobs_that_may_come(bench: Bench, sdxl_folder: Path) -> None:
    jobs = [bench.job(sdxl_folder, seed=seed, steps=2) for seed in (1, 2)]
    source = Opening(jobs)
    with bench.own_cache():
        train(source, CPU, at_once=4, startup_s=0, about={}, save=lambda *_: None, stop_requested=lambda: False)
    assert [job.id for job in source.released] == [job.id for job in jobs]


def test_a_job_whose_record_cannot_be_opened_fails_alone_and_is_let_go_of(bench: Bench, sdxl_folder: Path) -> None:
    broken, good = jobs = [bench.job(sdxl_folder, seed=seed, steps=1) for seed in (1, 2)]
    broken.paths.metrics.mkdir()
    source = Listed(jobs)
    with bench.own_cache():
        assert not train(
            source, CPU, at_once=2, startup_s=0, about={}, save=lambda *_: None, stop_requested=lambda: False
        )
    assert [state_of(job.folder) for job in jobs] == [State.FAILED, State.COMPLETED]
    assert "metrics.jsonl" in read_manifest(broken.folder)["error"]
    assert {job.id for job in source.released} == {broken.id, good.id}


def test_the_time_of_a_worker_is_shared_out_among_its_jobs(bench: Bench, sdxl_folder: Path) -> None:
    jobs = [bench.job(sdxl_folder, seed=seed, steps=12, batch_size=batch) for seed, batch in ((1, 1), (2, 3))]
    assert bench.train_only(*jobs)
    small, large = (read_manifest(job.folder) for job in jobs)
    assert large["timings_s"]["train"] == pytest.approx(3 * small["timings_s"]["train"], rel=0.05)
    for manifest in (small, large):
        phases = {name: seconds for name, seconds in manifest["timings_s"].items() if name != "total"}
        assert manifest["timings_s"]["total"] == pytest.approx(sum(phases.values()), abs=0.01)
        assert manifest["cost"]["alone_s"] > 12 * 0.001
        assert manifest["cost"]["peak_memory_gb"] > 0.1


def test_the_memory_of_a_training_on_the_cpu_is_the_hosts_beside_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert peak_memory_gb() > 0.1


def test_macos_counts_bytes_where_linux_counts_kibibytes(monkeypatch: pytest.MonkeyPatch) -> None:
    held_gb = peak_memory_gb()
    monkeypatch.setattr("sys.platform", "darwin")
    assert peak_memory_gb() == pytest.approx(held_gb / 1024, rel=0.1)


def test_a_worker_remembers_how_fast_it_was(bench: Bench, sdxl_folder: Path) -> None:
    jobs = [
        bench.job(sdxl_folder, seed=1, steps=12, batch_size=1, validation={**PICTURES, "every": 0}),
        bench.job(sdxl_folder, seed=2, steps=12, batch_size=3),
    ]
    with bench.own_cache():
        measurements_file().unlink(missing_ok=True)
        assert bench.train_only(*jobs)
        with bench.own_cache():
            lines = [json.loads(line) for line in measurements_file().read_text().splitlines()]
    assert [line["rows"] for line in lines] == [1, 3, 4], "each job alone, and both together"
    assert all(0 < line["step_s"] < 60 for line in lines)
    (forward_s,) = {line["forward_s"] for line in lines}
    assert 0 < forward_s < 60
    assert {line["base"] for line in lines} == {jobs[0].identity["model"]}


def test_a_pack_gives_its_memory_back_before_the_next_one_takes_as_much(
    bench: Bench, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    packs: list[weakref.ref[PackedAdapters]] = []

    class Watched(PackedAdapters):
        def __init__(self, *given: Any, **named: Any) -> None:
            alive.append(sum(each() is not None for each in packs))
            packs.append(weakref.ref(self))
            super().__init__(*given, **named)

    monkeypatch.setattr(pack, "PackedAdapters", Watched)
    jobs = [bench.job(sdxl_folder, steps=steps, lora={"dora": steps == 2}) for steps in (1, 2, 3)]
    assert bench.train_only(*jobs)
    assert alive == [0, 0, 0], "of three jobs, then two, then one"


class Memory:
    """A device with room for a limited number of images."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, images: int, fault: RuntimeError) -> None:
        self.images = images
        self.passes: list[int] = []
        self.kept: list[bool] = []
        """For each attempt to release memory, whether the pass that did not fit was still held."""
        activations: list[weakref.ref[torch.Tensor]] = []
        backward, collect = passes.Passes._backward, Base.collect

        def limited(each: passes.Passes, adapters: PackedAdapters, slices: list[passes.Slice]) -> None:
            rows = sum(len(positions) for _, _, positions in slices)
            self.passes.append(rows)
            if rows > self.images:
                # Half-way through: what the gradients contain by then must be discarded.
                adapters.gradient.normal_()
                slices[0][1].window.add(torch.tensor(1000.0))
                activation = torch.ones(1)
                activations.append(weakref.ref(activation))
                raise fault
            backward(each, adapters, slices)

        def watched(base: Base) -> None:
            self.kept += [each() is not None for each in activations]
            activations.clear()
            collect(base)

        monkeypatch.setattr(passes.Passes, "_backward", limited)
        monkeypatch.setattr(Base, "collect", watched)


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
FULL_FOR_CUDA = torch.AcceleratorError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`")
FULL_FOR_CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
FULL_FOR_CUDNN = RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED")


@pytest.mark.parametrize(("images", "fault"), [(5, FULL), (2, FULL_FOR_CUDA), (1, FULL_FOR_CUBLAS)])
def test_what_does_not_fit_into_memory_is_done_in_parts(
    bench: Bench, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch, images: int, fault: RuntimeError
) -> None:
    settings: list[dict[str, Any]] = [
        {"seed": 1, "batch_size": 4, "lora": {"dropout": 0.2}},
        {"seed": 2, "batch_size": 3, "accumulation": 2, "steps": 5},
    ]
    roomy = [bench.job(sdxl_folder, **each) for each in settings]
    assert bench.train_only(*roomy)
    memory = Memory(monkeypatch, images, fault)
    jobs = [bench.job(sdxl_folder, **each) for each in settings]
    assert bench.train_only(*jobs)
    assert max(memory.passes) > images >= max(memory.passes[-3:])
    for job, plenty in zip(jobs, roomy, strict=True):
        assert difference(weights(job), weights(plenty)) < ROUNDING
        assert records(job, "train/loss") == pytest.approx(records(plenty, "train/loss"), rel=1e-5)


def test_when_one_image_does_not_fit_activations_are_recomputed_and_then_it_is_said(
    bench: Bench, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = bench.job(sdxl_folder, batch_size=2)
    memory = Memory(monkeypatch, 0, FULL)
    with pytest.raises(RunnerError, match="out of memory with a single image at a time; lower resolution"):
        bench.train_only(job)
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if text.startswith("out of memory")] == [
        "out of memory with 2 images at a time: continuing with 1",
        "out of memory with one image at a time: activations are computed twice from now on",
    ]
    assert memory.kept == [False, False, False], "what a failed pass has made is let go of before memory is given back"


def test_processes_of_a_pack_go_on_with_the_same_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of them was full, and however many rows of an unevenly divided batch each one has."""

    def full_in_one(made: passes.Passes, *_: object) -> None:
        if made.base.place.rank == 1 and made.most_rows is None:
            raise FULL

    def portions(place: Place) -> int | None:
        base = SimpleNamespace(place=place, collect=lambda: None, checkpoint_gradients=lambda: False)
        run = SimpleNamespace(
            positions=lambda _: place.share(11),
            rows_per_position=2,
            settings=SimpleNamespace(accumulation=1),
            forget_step=lambda: None,
        )
        made = passes.Passes(cast("Base", base))
        made.gradients(cast("PackedAdapters", SimpleNamespace(forget=lambda: None)), [(0, cast("JobRun", run))])
        return made.most_rows

    monkeypatch.setattr(passes.Passes, "_all_parts", full_in_one)
    assert in_both(portions) == [6, 6], "half of the twelve rows that the other one has"


@pytest.mark.parametrize("fault", [FULL, FULL_FOR_CUDNN])
def test_validation_goes_on_in_smaller_portions(fault: RuntimeError) -> None:
    tried, collected = [], []

    def action(size: int) -> str:
        tried.append(size)
        if size > 3:
            raise fault
        return f"in portions of {size}"

    assert within_memory(action, 12, collect=lambda: collected.append(1)) == "in portions of 3"
    assert (tried, len(collected)) == ([12, 6, 3], 2)
    with pytest.raises(type(fault), match=str(fault)):
        within_memory(lambda size: action(9), 4, collect=lambda: None)


def test_other_faults_of_a_gpu_are_not_taken_for_a_full_one() -> None:
    tried = []

    def action(size: int) -> None:
        tried.append(size)
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(torch.AcceleratorError, match="illegal"):
        within_memory(action, 12, collect=lambda: None)
    assert tried == [12]


PRUNING: dict[str, Any] = {"steps": 12, "pruning": {"name": "asha", "first": 2, "reduction": 2}}


def test_halving_ends_the_worse_half_at_each_rung(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    rates = [0.03, 1e-6, 0.02, 1e-7]
    jobs = [bench.job(sdxl_folder, outputs=tmp_path, optimizer={"lr": lr}, **PRUNING) for lr in rates]
    assert bench.train_only(*jobs)
    states = [state_of(job.folder) for job in jobs]
    assert sorted(states) == [State.COMPLETED, State.PRUNED, State.PRUNED, State.PRUNED]
    at_first = {job.id: records(job, "validation/loss")[2] for job in jobs}
    stopped = {job.id for job in jobs if read_manifest(job.folder)["steps_done"] == 2}
    assert stopped == set(sorted(at_first, key=at_first.__getitem__)[2:]), "the worse two of four end at step 2"
    winner = jobs[states.index(State.COMPLETED)]
    assert list(records(winner, "validation/loss")) == [0, 2, 4, 8, 12]
    loser = next(job for job in jobs if job.id in stopped)
    assert "at step 2 is not among the best 2 of 4" in read_manifest(loser.folder)["reason"]
    unpruned = bench.job(sdxl_folder, steps=12, optimizer={"lr": winner.experiment.optimizer.lr})
    assert bench.train_only(unpruned)
    assert difference(weights(winner), weights(unpruned)) < ROUNDING, "being measured changes nothing"


def test_a_pruned_job_makes_room_and_can_be_taken_up_again(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    rates = [0.03, 1e-6, 0.02]
    jobs = [bench.job(sdxl_folder, outputs=tmp_path, optimizer={"lr": lr}, **PRUNING) for lr in rates]
    assert bench.train_only(*jobs, at_once=2)
    pruned = jobs[1]
    assert state_of(pruned.folder) is State.PRUNED
    assert not (pruned.folder / "lora").exists()
    again = bench.job(sdxl_folder, outputs=tmp_path, steps=12, optimizer={"lr": rates[1]})
    assert again.folder == pruned.folder
    assert bench.train_only(again)
    straight = bench.job(sdxl_folder, steps=12, optimizer={"lr": rates[1]})
    assert bench.train_only(straight)
    assert difference(weights(again), weights(straight)) < ROUNDING


def test_jobs_on_other_data_are_not_compared(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    from tests.train.bench import write_images

    others = write_images(tmp_path / "images", seed=9)
    jobs = [
        bench.job(sdxl_folder, outputs=tmp_path, optimizer={"lr": 0.03}, **PRUNING),
        bench.job(sdxl_folder, outputs=tmp_path, images=others, optimizer={"lr": 1e-7}, **PRUNING),
    ]
    assert bench.train_only(*jobs)
    assert [state_of(job.folder) for job in jobs] == [State.COMPLETED] * 2


def test_the_base_without_an_adapter_is_measured_and_drawn_once(
    bench: Bench, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.train import validation

    drawn = []
    draw: Callable[..., Any] = validation.draw

    def counting(*arguments: Any) -> Any:
        drawn.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(validation, "draw", counting)
    jobs = [bench.job(sdxl_folder, seed=seed, steps=2, validation=PICTURES | {"every": 0}) for seed in (1, 2, 3)]
    assert bench.train_only(*jobs)
    assert len(drawn) == 1 + 3, "once before the training for all, and once after it for each"
    before = {(job.folder / "samples/step-000000/p00-s0.png").read_bytes() for job in jobs}
    after = {(job.folder / "samples/step-000002/p00-s0.png").read_bytes() for job in jobs}
    assert (len(before), len(after)) == (1, 3)
