"""A job that was killed or stopped continues where it was, and its result is the same as without the stop."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner import work
from runner.errors import CheckpointError, Interrupted
from runner.jobs.job import Job, State, read_manifest, register, state_of
from runner.jobs.lock import is_held
from runner.jobs.queue import Claims, FixedQueue
from runner.system.signals import StopSignal
from runner.train.checkpoint import load_checkpoint, save_checkpoint
from runner.train.pack import reason_of, tried
from tests.train.bench import Bench, difference, records, weights

COMMON: dict[str, Any] = {"steps": 6, "checkpoint": {"every": 2}, "dataset": {"caption_dropout": 0.3}}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": {"eps": 1e-8}, "lr_scheduler": {"name": "cosine", "warmup_steps": 2}},
    "prodigy": {"optimizer": {"name": "prodigy", "lr": 1.0}, "lora": {"dropout": 0.2}},
    "adafactor": {"optimizer": {"name": "adafactor"}, "lr_scheduler": {"name": "linear"}},
    "LoRA+": {"optimizer": {"lora_plus_ratio": 4.0, "eps": 1e-8}, "lr_scheduler": {"name": "linear"}},
    "EMA": {"lora": {"ema": 0.7}},
    "DoRA": {"lora": {"dora": True}},
    "fp16": {"precision": "fp16", "lr_scheduler": {"name": "polynomial", "power": 2.0}},
}


class KilledError(Exception):
    """Stands in for SIGKILL: nothing runs after it."""


def killed_after(steps: int) -> Callable[[], bool]:
    """A stop signal that never comes, and a process that ends before step `steps` + 1."""
    rounds: Iterator[int] = iter(range(steps + 1))

    def ask() -> bool:
        if next(rounds) == steps:
            raise KilledError
        return False

    return ask


def stopped_after(steps: int) -> Callable[[], bool]:
    rounds = iter(range(10**6))
    return lambda: next(rounds) == steps


def checkpoints(job: Job) -> list[str]:
    return sorted(each.name for each in job.paths.checkpoints.iterdir())


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_resumed_job_is_bit_for_bit_the_uninterrupted_one(bench: Bench, sdxl_folder: Path, name: str) -> None:
    straight = bench.job(sdxl_folder, **COMMON, **OPTIMIZERS[name])
    assert bench.train_only(straight)
    broken = bench.job(sdxl_folder, **COMMON, **OPTIMIZERS[name])
    with pytest.raises(KilledError):
        bench.train_only(broken, stop=killed_after(3))
    assert sorted(records(broken, "train/loss")) == [1, 2, 3]
    torch.manual_seed(1)  # a new process has other random states
    np.random.seed(1)
    random.seed(1)
    assert bench.train_only(broken)
    assert difference(weights(straight), weights(broken)) == 0.0
    assert sorted(records(broken, "train/loss")) == [1, 2, 3, 4, 5, 6]
    for metric in ("train/loss", "train/grad_norm", "train/lr", "validation/loss"):
        assert records(straight, metric) == records(broken, metric)


def test_a_job_resumed_in_another_pack_gives_the_same(bench: Bench, sdxl_folder: Path) -> None:
    straight = bench.job(sdxl_folder, **COMMON)
    assert bench.train_only(straight)
    broken, other = bench.job(sdxl_folder, **COMMON), bench.job(sdxl_folder, steps=9, seed=5)
    with pytest.raises(Interrupted):
        bench.train_only(broken, stop=stopped_after(3))
    assert state_of(broken.folder) is State.INTERRUPTED
    assert checkpoints(broken) == ["step-000002", "step-000003"]
    assert bench.train_only(other, broken)
    assert difference(weights(straight), weights(broken)) < 1e-5


def test_a_job_killed_before_its_first_checkpoint_starts_anew(bench: Bench, sdxl_folder: Path) -> None:
    job = bench.job(sdxl_folder, steps=3)
    with pytest.raises(KilledError):
        bench.train_only(job, stop=killed_after(2))
    assert bench.train_only(job)
    assert sorted(records(job, "train/loss")) == [1, 2, 3]
    assert sorted(records(job, "validation/loss")) == [0, 3]
    assert read_manifest(job.folder)["attempts"] == 2


@pytest.fixture(scope="module")
def halfway(bench: Bench, sdxl_folder: Path) -> Job:
    """A job with checkpoints of steps 4 and 5 of 6."""
    job = bench.job(sdxl_folder, steps=6, checkpoint={"every": 1, "keep": 2})
    with pytest.raises(KilledError):
        bench.train_only(job, stop=killed_after(5))
    return job


@pytest.fixture
def half_done(halfway: Job, tmp_path: Path) -> Job:
    """A copy of that job, to be damaged."""
    shutil.copytree(halfway.folder, tmp_path / "job")
    return dataclasses.replace(halfway, folder=tmp_path / "job")


def test_no_more_checkpoints_are_kept_than_asked_for(half_done: Job) -> None:
    assert checkpoints(half_done) == ["step-000004", "step-000005"]
    assert all((half_done.paths.checkpoints / name).stat().st_mode & 0o055 for name in checkpoints(half_done))


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _end_at_once(file: Path) -> None:
    begins = pickle.PROTO + b"\x02"
    file.write_bytes(file.read_bytes().replace(begins + b"}", begins + pickle.STOP, 1))


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "adapter cut": ("adapter.safetensors", _cut),
    "adapter empty": ("adapter.safetensors", lambda file: file.write_bytes(b"")),
    "adapter gone": ("adapter.safetensors", Path.unlink),
    "optimizer cut": ("optimizer.pt", _cut),
    "optimizer empty": ("optimizer.pt", lambda file: file.write_bytes(b"")),
    "optimizer zeros": ("optimizer.pt", lambda file: file.write_bytes(bytes(file.stat().st_size))),
    "optimizer text": ("optimizer.pt", lambda file: file.write_bytes(b"<html>not found</html>")),
    "optimizer ends at once": ("optimizer.pt", _end_at_once),
    "about cut": ("about.json", _cut),
    "about without identity": ("about.json", lambda file: file.write_text('{"step": 5}')),
    "about a list": ("about.json", lambda file: file.write_text("[]")),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_checkpoint_falls_back_to_the_one_before(half_done: Job, damage: str) -> None:
    whole = load_checkpoint(half_done)
    assert whole is not None
    assert whole[0] == 5
    name, spoil = DAMAGES[damage]
    spoil(half_done.paths.checkpoint_at(5) / name)
    found = load_checkpoint(half_done)
    assert found is not None
    assert found[0] == 4


class Program:
    """Something that a pickle may contain and that runs code as soon as it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_checkpoint_runs_no_program_that_somebody_has_put_into_it(half_done: Job, tmp_path: Path) -> None:
    file = half_done.paths.checkpoint_at(5) / "optimizer.pt"
    torch.save({**torch.load(file, weights_only=True), "more": Program(tmp_path / "it ran")}, file)
    found = load_checkpoint(half_done)
    assert not (tmp_path / "it ran").exists()
    assert found is not None
    assert found[0] == 4


def test_a_job_goes_on_from_the_checkpoint_before_a_damaged_one(
    bench: Bench, sdxl_folder: Path, half_done: Job
) -> None:
    straight = bench.job(sdxl_folder, steps=6)
    assert bench.train_only(straight)
    _cut(half_done.paths.checkpoint_at(5) / "optimizer.pt")
    assert bench.train_only(half_done)
    assert difference(weights(straight), weights(half_done)) == 0.0
    assert sorted(records(half_done, "train/loss")) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("keep", "left"), [(1, ["step-000004"]), (2, ["step-000003", "step-000004"]), (3, ["step-000003", "step-000004"])]
)
def test_what_is_saved_after_a_damaged_checkpoint_is_kept_and_the_damaged_one_goes(
    half_done: Job, monkeypatch: pytest.MonkeyPatch, keep: int, left: list[str]
) -> None:
    paths = half_done.paths
    paths.checkpoint_at(5).rename(paths.checkpoint_at(8))
    paths.checkpoint_at(4).rename(paths.checkpoint_at(3))
    about = paths.checkpoint_at(3) / "about.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "step": 3}))
    _cut(paths.checkpoint_at(8) / "optimizer.pt")
    found = load_checkpoint(half_done)
    assert found is not None
    step, adapter, optimizer = found
    assert step == 3
    seen: list[int] = []
    remove = shutil.rmtree

    def looking(path: Path, **options: Any) -> None:
        if path.name.startswith("step-"):
            newest = load_checkpoint(half_done)
            seen.append(newest[0] if newest is not None else -1)
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", looking)
    experiment = half_done.experiment
    checkpoint = experiment.checkpoint.model_copy(update={"keep": keep})
    job = dataclasses.replace(half_done, settings=experiment.model_copy(update={"checkpoint": checkpoint}))
    save_checkpoint(job, 4, adapter, optimizer)
    assert checkpoints(job) == left
    assert set(seen) == {4}, "nothing is removed before the new one can be read"


def test_a_checkpoint_torn_while_it_was_written_does_no_harm(bench: Bench, half_done: Job) -> None:
    torn = half_done.paths.checkpoints / ".step-000001.torn"
    torn.mkdir()
    (torn / "adapter.safetensors").write_bytes(b"half")
    with pytest.raises(KilledError):
        bench.train_only(half_done, stop=killed_after(0))
    assert bench.train_only(half_done)
    assert sorted(records(half_done, "train/loss")) == [1, 2, 3, 4, 5, 6]


def test_what_torn_writing_left_is_cleared_away(bench: Bench, sdxl_folder: Path) -> None:
    job = bench.job(sdxl_folder, steps=2, checkpoint={"every": 1})
    (job.paths.checkpoints / ".step-000001.torn").mkdir(parents=True)
    assert bench.train_only(job)
    assert checkpoints(job) == ["step-000001"]


@contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """No file may grow beyond this, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_called_by_its_name_and_is_no_crash_of_the_pack(bench: Bench, sdxl_folder: Path) -> None:
    job = bench.job(sdxl_folder)
    many = torch.zeros(100_000)
    with full_disk(10_000):
        optimizer = tried(lambda: save_checkpoint(job, 1, {}, {"state": many}))
        adapter = tried(lambda: save_checkpoint(job, 1, {"unet": {"a": many}}, {}))
    assert "File too large" in reason_of(optimizer)
    assert "File too large" in reason_of(adapter)
    assert checkpoints(job) == []


def test_a_worker_whose_manifests_cannot_be_written_ends_as_crashed_and_holds_nothing(
    bench: Bench, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise OSError("No space left on device")

    job = bench.job(sdxl_folder)
    register(job)
    claims = Claims(FixedQueue([job.folder]), lambda _: nullcontext())
    claims.take(1)
    monkeypatch.setattr(work, "_trains", fail)
    monkeypatch.setattr(work, "update_manifest", fail)
    options = work._parse(["--device", "cpu", str(job.folder)])
    assert work._work(claims, options, StopSignal()) == work.CRASHED_CODE
    assert f"{job.paths.manifest} cannot be written: No space left on device" in caplog.text
    assert not is_held(job.folder)


def test_a_checkpoint_is_not_written_twice(bench: Bench, sdxl_folder: Path) -> None:
    # Between removing the old folder and naming the new one, a kill would leave nothing.
    job = bench.job(sdxl_folder, steps=4, checkpoint={"every": 2, "keep": 1})
    with pytest.raises(KilledError):
        bench.train_only(job, stop=killed_after(2))
    written = (job.paths.checkpoint_at(2) / "about.json").stat().st_mtime_ns
    with pytest.raises(Interrupted):
        bench.train_only(job, stop=stopped_after(0))
    assert (job.paths.checkpoint_at(2) / "about.json").stat().st_mtime_ns == written


def test_a_checkpoint_of_another_configuration_is_refused_with_the_difference(bench: Bench, half_done: Job) -> None:
    other = dataclasses.replace(half_done, identity={**half_done.identity, "settings.lora.rank": 16})
    assert not bench.train_only(other)
    error = read_manifest(half_done.folder)["error"]
    assert "another configuration" in error
    assert "lora.rank: 2 there, 16 here" in error
    without = {key: value for key, value in half_done.identity.items() if key != "settings.lora.rank"}
    for identity, said in (
        (without, "lora.rank: 2 there, default here"),
        ({**half_done.identity, "settings.lora.dora": True}, "lora.dora: default there, True here"),
    ):
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(dataclasses.replace(half_done, identity=identity))


def test_checkpoints_of_very_long_trainings_are_found_in_order(half_done: Job) -> None:
    late = half_done.paths.checkpoint_at(1_000_000)
    half_done.paths.checkpoint_at(5).rename(late)
    half_done.paths.checkpoint_at(4).rename(half_done.paths.checkpoint_at(999_999))
    about = json.loads((late / "about.json").read_text())
    (late / "about.json").write_text(json.dumps({**about, "step": 1_000_000}))
    found = load_checkpoint(half_done)
    assert found is not None
    assert found[0] == 1_000_000
