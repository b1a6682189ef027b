"""What commands do between the listing of what could be freed and its confirmation."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.clean.__main__ import find, free
from runner.clean.jobs import readable
from runner.jobs.job import Job, State, make_job, register, update_manifest
from runner.jobs.lock import lock
from runner.schema import Experiment
from tests.launchers.running import Running, manifests


def waiting(seed: int, outputs: Path) -> Job:
    job = make_job(Experiment(seed=seed), model="m", dataset="d", outputs=outputs)
    register(job)
    return job


def is_waiting_for_room(job: Job) -> None:
    update_manifest(job.folder, submission={"cluster": "slurm", "ids": []})


def is_taken_up(job: Job) -> None:
    """A command that is still running has taken up the job, and its workers have not started it."""
    job.paths.lock.write_text(str(os.getppid()))


@pytest.mark.parametrize("begin", [is_waiting_for_room, is_taken_up])
def test_an_unfinished_job_that_a_command_begins_with_stays(
    begin: Callable[[Job], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = waiting(1, tmp_path)
    found = find([job], only=["unfinished"])
    assert len(found) == 1
    begin(job)
    assert find([job], only=["unfinished"]) == []
    assert not free(found)
    assert "a command works on its experiment" in caplog.text
    assert job.paths.config.is_file()


def test_unfinished_jobs_beside_one_that_a_command_begins_with_stay(tmp_path: Path) -> None:
    job, beside = waiting(1, tmp_path), waiting(2, tmp_path)
    found = find([job], only=["unfinished"])
    with lock(beside.folder):
        assert not free(found)
        assert find([job], only=["unfinished"]) == []
    assert job.paths.config.is_file()
    assert free(found) and not job.folder.exists()


def test_what_a_command_is_about_to_train_stays_while_its_workers_load(sdxl_folder: Path) -> None:
    small = [f"model.path={sdxl_folder}", "logger=none", "validation.prompts=[]", "steps=2"]
    running = Running(small)
    folder = running.wait_for("dev/*/manifest.json").parent
    while not (folder / ".lock").read_text():  # it is still being prepared
        assert running.process.poll() is None
    found = find(readable([folder])[0], only=["unfinished"])
    answer = running.end()
    assert found == []
    assert answer.code == 0, answer.output
    assert [manifest["state"] for manifest in manifests().values()] == [State.COMPLETED]
