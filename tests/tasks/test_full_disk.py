"""A disk that fills up while a task writes: one line with the reason, in the folder too if there is room for it."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import ones

from runner import work
from runner.check import Checker
from runner.errors import refusal
from runner.jobs.job import Job, State, read_manifest, register, state_of
from runner.paths import atomic_file, atomic_folder
from tests.mix.adapters import random_layers, write_peft_plainly
from tests.mix.conftest import Parts

ROOM = 4096
"""Bytes: more than a manifest, less than a picture or weights."""


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within it, the system refuses to let files grow beyond this size, as on a full disk but with another errno."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def job_of(folder: Path, **settings: Any) -> Job:
    job = Checker(folder).job({"name": "x", "logger": {"name": "none"}, **settings})
    register(job)
    return job


def generate(folder: Path, **more: Any) -> Job:
    return job_of(folder, task={"name": "generate"}, prompts="a house", inference_steps=1, seeds=[0, 1], **more)


def worked(*jobs: Job, size: int) -> int:
    with largest_file(size):
        return work.main(["--device", "cpu", *(str(job.folder) for job in jobs)])


def no_traceback(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> bool:
    said = "".join(capsys.readouterr())
    return not any(record.exc_info for record in caplog.records) and "Traceback" not in said


def test_pictures_that_cannot_be_written_are_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert work.main(["--device", "cpu", str(generate(tmp_path, guidance_scale=7.0).folder)]) == 0  # fills the cache
    job = generate(tmp_path)

    assert worked(job, size=ROOM) == 1
    assert no_traceback(caplog, capsys)
    reason = f"File too large: {job.paths.samples_at(0) / 'p00-s0.png'}; let files be larger (ulimit -f), or take"
    assert f"{job.id}: {reason}" in caplog.text
    assert state_of(job.folder) is State.FAILED
    assert read_manifest(job.folder)["error"].startswith(reason)


@pytest.mark.parametrize("output", ["folder", "adapter"])
def test_a_merged_model_that_cannot_be_written_is_one_line(
    output: str,
    tmp_path: Path,
    sdxl_folder: Path,
    sdxl_parts: Parts,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unet = {"unet": sdxl_parts["unet"]}
    files = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    given = [str(write_peft_plainly(file, random_layers(unet, seed=len(file.name)), {})) for file in files]
    model = {"family": "sdxl", "path": str(sdxl_folder)}
    job = job_of(tmp_path, task={"name": "merge"}, adapter=given, output=output, model=model)

    assert worked(job, size=ROOM) == 1
    assert no_traceback(caplog, capsys)
    error = read_manifest(job.folder)["error"]
    assert error.startswith(f"File too large: {job.folder}/") and "; let files be larger" in error
    assert f"{job.id}: {error}" in caplog.text


def test_where_not_even_the_reason_can_be_written_the_next_job_is_tried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log file has no room either: its lines are on the output as well. The lock tells the launcher."""
    jobs = [generate(tmp_path), generate(tmp_path, precision="bf16")]

    assert worked(*jobs, size=16) == 1
    assert no_traceback(caplog, capsys)
    assert [state_of(job.folder) for job in jobs] == [State.PENDING] * 2
    for job in jobs:
        assert f"{job.id}: File too large: {job.paths.manifest}; " in caplog.text
        assert f"{job.paths.manifest} cannot be written: [Errno 27] File too large" in caplog.text
    assert work.main(["--device", "cpu", *(str(job.folder) for job in jobs)]) == 0


def test_what_is_written_is_named_whoever_writes_it(tmp_path: Path) -> None:
    """Python names only files it cannot open, safetensors names none, and copying a folder reports errors as text."""
    tensors = {"a": ones(4096)}
    target = tmp_path / "target"
    for writes in (lambda file: file.write_bytes(bytes(8192)), lambda file: save_file(tensors, file)):
        with (
            largest_file(ROOM),
            pytest.raises(OSError, match=r"File too large: .*target'$"),
            atomic_file(target) as file,
        ):
            writes(file)
    with (
        largest_file(ROOM),
        pytest.raises(OSError, match=r"File too large: .*target'$"),
        atomic_folder(target) as folder,
    ):
        save_file(tensors, folder / "model.safetensors")
    assert list(tmp_path.iterdir()) == []

    save_file(tensors, tmp_path / "a.safetensors")
    with largest_file(ROOM), pytest.raises(shutil.Error) as copied:
        shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    assert refusal(copied.value) == "File too large; let files be larger (ulimit -f), or take another disk"


def test_what_the_system_refuses_is_told_with_what_to_do() -> None:
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert refusal(full) == "No space left on device; free some space"
    closed = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x/y.png")
    assert refusal(closed) == "Permission denied: /x/y.png; take a folder that can be used"
    assert refusal(FileNotFoundError(errno.ENOENT, "gone", "x")) is None
    assert refusal(ValueError("28")) is None
