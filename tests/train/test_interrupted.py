"""A job that was stopped at any point ends like an undisturbed one, with the same means over several steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runner.artifacts import save_artifacts
from runner.cache.store import TensorCache
from runner.errors import Interrupted, SettingsError
from runner.jobs.job import Job, State, read_manifest, state_of
from runner.track import MetricsFile
from runner.train import loop
from runner.train.adapters.adapter import Adapter, Site
from runner.train.clock import Clock
from runner.train.drawing import UseRows
from runner.train.inputs import encode
from runner.train.job_run import JobRun
from runner.train.pack import Pack
from runner.train.place import Place
from runner.train.pruning import falls_behind
from tests.train.bench import CPU, Bench, difference, records, weights
from tests.train.ranks import in_both
from tests.train.test_resume import stopped_after

MEANS: dict[str, Any] = {"steps": 6, "logger": {"every": 4}}


@pytest.mark.parametrize("stops", [(3,), (1, 1, 1), (4,), (5,)], ids=str)
def test_means_over_steps_are_those_of_an_undisturbed_job(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    straight = bench.job(sdxl_folder, **MEANS, outputs=bench.root / "straight")
    if not straight.has_result:
        assert bench.train_only(straight)
    broken = bench.job(sdxl_folder, **MEANS, outputs=tmp_path)
    for steps in stops:
        with pytest.raises(Interrupted):
            bench.train_only(broken, stop=stopped_after(steps))
    assert bench.train_only(broken)
    for metric in ("train/loss", "train/grad_norm"):
        assert list(records(broken, metric)) == [4, 6]
        assert records(broken, metric) == records(straight, metric)


def test_a_checkpoint_from_before_they_were_kept_begins_a_new_mean(
    bench: Bench, sdxl_folder: Path, tmp_path: Path
) -> None:
    each = bench.job(sdxl_folder, steps=6, outputs=tmp_path / "each")
    broken = bench.job(sdxl_folder, **MEANS, outputs=tmp_path / "broken")
    assert bench.train_only(each)
    with pytest.raises(Interrupted):
        bench.train_only(broken, stop=stopped_after(3))
    file = broken.paths.checkpoint_at(3) / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    del state["window"]
    torch.save(state, file)
    assert bench.train_only(broken)
    assert records(broken, "train/loss")[4] == records(each, "train/loss")[4]


def test_the_losses_of_all_processes_are_in_the_mean_once(bench: Bench, sdxl_folder: Path) -> None:
    job = bench.job(sdxl_folder, steps=6, batch_size=1)
    losses = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]])

    def begun(place: Place) -> JobRun:
        adapter = Adapter(job.experiment.lora, [Site("unet", "0", (6,), 3)], seed=0, device=CPU.device)
        materials: Any = None
        base: Any = SimpleNamespace(place=place)
        return JobRun(job, materials, adapter, base, Clock())

    def process(place: Place) -> float:
        run = begun(place)
        for step, loss in enumerate(losses[place.rank]):
            if step in (1, 3):
                run.checkpoint()
            if step == 3:  # the checkpoint at step 1 did not end the process
                run = begun(place)
                run.resume()
            run.loss_of(loss[None])
            run.update()
        run.log_step()
        return run.last_loss

    assert in_both(process) == [27.5, 27.5]


def test_a_signal_while_one_job_is_measured_interrupts_it_and_the_others_of_its_pack(
    bench: Bench, sdxl_folder: Path, tmp_path: Path
) -> None:
    def job(steps: int, folder: str) -> Job:
        return bench.job(sdxl_folder, steps=steps, outputs=tmp_path / folder)

    straight, pack, signals = job(4, "straight"), [job(2, "pack"), job(4, "pack")], []

    def saved_and_stopped(run: JobRun, use_rows: UseRows, losses: Mapping[str, float]) -> None:
        save_artifacts(run, use_rows, losses)
        signals.append(run.job.id)
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        bench.train(*pack, stop=lambda: bool(signals), save=saved_and_stopped)
    assert signals == [pack[0].id]
    assert [state_of(each.folder) for each in pack] == [State.INTERRUPTED, State.INTERRUPTED]
    assert [read_manifest(each.folder)["steps_done"] for each in pack] == [2, 2]
    assert bench.train_only(*pack)
    assert bench.train_only(straight)
    assert [state_of(each.folder) for each in pack] == [State.COMPLETED, State.COMPLETED]
    assert list(records(pack[0], "validation/loss")) == [0, 2]
    assert difference(weights(pack[1]), weights(straight)) < 1e-5


def test_a_signal_is_heard_while_the_loss_is_measured_which_is_measured_when_it_goes_on(
    bench: Bench, sdxl_folder: Path, tmp_path: Path
) -> None:
    job = bench.job(sdxl_folder, steps=1, outputs=tmp_path)

    def asked() -> bool:
        return state_of(job.folder) is State.RUNNING

    with pytest.raises(Interrupted):
        bench.train_only(job, stop=asked, place=CPU)
    assert (state_of(job.folder), records(job, "validation/loss")) == (State.INTERRUPTED, {}), "it waited for the loss"
    assert bench.train_only(job)
    assert list(records(job, "validation/loss")) == [0, 1]


PICTURES: dict[str, Any] = {"prompts": ["a circle"], "inference_steps": 3, "every": 2}


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_signal_is_heard_while_a_job_is_drawn_from_which_is_done_when_it_goes_on(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """It may be the last minute before a machine is taken away; trained weights must not wait for pictures."""
    halving = {"name": "asha", "first": 2, "reduction": 2}

    def job(folder: str) -> Job:
        return bench.job(sdxl_folder, steps=4, outputs=tmp_path / folder, validation=PICTURES, pruning=halving)

    straight, broken, compared = job("straight"), job("broken"), list[int]()

    def measured() -> bool:
        lines = MetricsFile(broken.paths.metrics).read() if broken.paths.metrics.exists() else []
        return any(line["step"] == at and "validation/loss" in line for line in lines)

    def judged(of: Job, step: int) -> str | None:
        compared.append(step)
        return falls_behind(of, step)

    assert bench.train_only(straight)
    monkeypatch.setattr(loop, "falls_behind", judged)
    with pytest.raises(Interrupted):
        bench.train_only(broken, stop=measured, place=CPU)
    manifest = read_manifest(broken.folder)
    assert (manifest["state"], manifest["steps_done"]) == (State.INTERRUPTED, at)
    assert not broken.paths.samples_at(at).exists()
    assert broken.paths.checkpoint_at(at).is_dir()
    assert bench.train_only(broken)
    assert compared == [2], "once, by a figure that is there"
    assert records(broken, "validation/loss") == records(straight, "validation/loss")
    for step in (0, 2, 4):
        drawn, same = (each.paths.samples_at(step) / "p00-s0.png" for each in (broken, straight))
        assert drawn.read_bytes() == same.read_bytes()
    assert difference(weights(broken), weights(straight)) == 0


@pytest.mark.parametrize("part", ["drawing", "saving"])
def test_what_failed_after_the_last_step_is_tried_again_without_training_again(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    job = bench.job(sdxl_folder, steps=1, outputs=tmp_path, validation={"prompts": ["a circle"], "inference_steps": 1})

    def unreachable(run: JobRun, use_rows: UseRows, losses: Mapping[str, float]) -> None:
        raise SettingsError("evaluation.features.clip: is not reachable")

    in_the_way = job.paths.samples_at(1)
    if part == "drawing":
        in_the_way.parent.mkdir(parents=True)
        in_the_way.touch()
    assert not bench.train(job, save=unreachable)
    assert state_of(job.folder) is State.FAILED
    if part == "drawing":
        in_the_way.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(Pack, "step", lambda pack: pytest.fail("it is trained again"))
        assert bench.train_only(job)
    assert state_of(job.folder) is State.COMPLETED
    assert list(records(job, "train/loss")) == [1] and list(records(job, "validation/loss")) == [0, 1]


def test_a_signal_while_images_are_encoded_is_heard_between_them(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished encodings are kept, and the job is neither started nor failed."""
    monkeypatch.setattr(bench, "cache", tmp_path / "cache")
    monkeypatch.setattr(encode, "PIXELS_PER_BATCH", 64 * 64)
    job = bench.job(sdxl_folder, steps=1, outputs=tmp_path)
    posteriors, put = [], TensorCache.put

    def counted(cache: TensorCache, key: str, entry: dict[str, torch.Tensor]) -> None:
        put(cache, key, entry)
        posteriors.extend([key] * ("std" in entry))

    monkeypatch.setattr(TensorCache, "put", counted)
    with pytest.raises(Interrupted):
        bench.train_only(job, stop=lambda: len(posteriors) >= 2, place=CPU)
    assert (len(posteriors), state_of(job.folder)) == (2, State.PENDING)
    assert bench.train_only(job)
    assert (len(posteriors), len(set(posteriors))) == (7, 7)


def test_a_signal_while_captions_are_encoded_is_heard_between_them(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "cache", tmp_path / "cache")
    job = bench.job(sdxl_folder, steps=1, outputs=tmp_path)
    kept, put = [], TensorCache.put

    def counted(cache: TensorCache, key: str, entry: dict[str, torch.Tensor]) -> None:
        put(cache, key, entry)
        kept.append(sorted(entry))

    monkeypatch.setattr(TensorCache, "put", counted)
    with pytest.raises(Interrupted):
        bench.train_only(job, stop=lambda: len(kept) >= 2, place=CPU)
    assert (kept, state_of(job.folder)) == ([["embeds", "pooled"]] * 2, State.PENDING)


def test_a_signal_that_one_process_hears_stops_all_of_them() -> None:
    def process(place: Place) -> str:
        with place.hearing(lambda: place.rank == 1):
            place.heed()  # here, the other process would not learn of it
            with pytest.raises(Interrupted):
                place.together(place.heed, what="encode")
        return place.together(lambda: "goes on", what="go on")

    assert in_both(process) == ["goes on", "goes on"]


def test_a_signal_is_heard_after_an_action_within_another_and_its_fault_is_told_as_it_is() -> None:
    place = Place(torch.device("cpu"), 0, 1)

    def failing() -> None:
        raise ValueError("the caption is empty")

    with place.hearing(lambda: True), place.heeding():
        with pytest.raises(ValueError, match="the caption is empty"):
            place.together(failing, what="read captions")
        with pytest.raises(Interrupted):
            place.heed()
    with place.heeding():
        place.heed()
