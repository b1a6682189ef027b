"""Damage to a job while a command is working on it affects no other job; its manifest is rewritten."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

import pytest

from runner import work
from runner.errors import JobsFailed, SettingsError
from runner.jobs import job as job_module
from runner.jobs.job import Job, State, read_job, read_manifest, register, state_of, update_manifest
from runner.jobs.lock import lock
from runner.jobs.queue import Claims, FixedQueue, Queue
from runner.launch.outcome import conclude
from runner.launchers.lots import Lot
from runner.launchers.schedule import _Share
from runner.launchers.settle import fail
from runner.plan import Pack
from runner.train.admission import SharedSource
from tests.plan.test_packs import seeds


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    monkeypatch.chdir(tmp_path)
    found = seeds(2)
    for job in found:
        register(job)
    return found


def in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, nothing is known but what is in the folders, as in a new process."""
    monkeypatch.setattr(job_module, "_remembered", {})


@pytest.mark.parametrize("content", ["", "[]", '{"state": "none"}', None])
def test_who_works_on_it_writes_it_anew(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    in_another_process(monkeypatch)
    taken = read_job(jobs[0].folder)
    update_manifest(taken.folder, state=State.RUNNING, worker="1")
    before = read_manifest(taken.folder)
    if content is None:
        taken.paths.manifest.unlink()
    else:
        taken.paths.manifest.write_text(content)
    update_manifest(taken.folder, steps_done=10)
    assert read_manifest(taken.folder) == before | {"steps_done": 10}
    assert f"{taken.paths.manifest} is damaged or gone: continuing with what it said before" in caplog.text


def test_a_process_that_does_not_know_it_says_what_to_do(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    in_another_process(monkeypatch)
    jobs[0].paths.manifest.write_text("")
    with pytest.raises(SettingsError, match="remove it"):
        update_manifest(jobs[0].folder, state=State.FAILED)


def test_who_has_removed_it_between_two_runs_gets_a_new_one(jobs: list[Job]) -> None:
    update_manifest(jobs[0].folder, state=State.COMPLETED, objective=0.5)
    jobs[0].paths.manifest.unlink()
    register(jobs[0])
    assert "objective" not in read_manifest(jobs[0].folder)


def test_a_worker_leaves_it_out_and_takes_the_others(
    jobs: list[Job], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue(tmp_path / "queue.json")
    queue.write([job.folder for job in jobs], is_open=False)
    text = jobs[0].paths.manifest.read_text()
    jobs[0].paths.manifest.write_text("")
    claims = Claims(queue, lambda _: nullcontext())
    assert [job.id for job in claims.take(2)] == [jobs[1].id]
    assert claims.take(2) == []
    assert caplog.text.count("left out") == 1
    jobs[0].paths.manifest.write_text(text)
    assert [job.id for job in claims.take(2)] == [jobs[0].id]
    claims.release_all()
    jobs[0].paths.manifest.write_text("")
    with pytest.raises(SettingsError):
        Claims(FixedQueue([jobs[0].folder]), lambda _: nullcontext()).take(1)


@pytest.mark.parametrize("damaged", ["config.yaml", "manifest.json"])
def test_a_worker_that_begins_with_it_does_the_others(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    """It may have been damaged while the worker waited in a cluster's queue."""
    queue = Queue(tmp_path / "queue.json")
    queue.write([job.folder for job in jobs], is_open=False)
    (jobs[0].folder / damaged).write_text("")
    begun: list[str] = []

    def train(source: SharedSource, *_: object, **__: object) -> bool:
        begun.extend(job.id for job in source.take(2))
        return True

    monkeypatch.setattr("runner.train.loop.train", train)
    assert work.main(["--device", "cpu", "--queue", str(queue.file)]) == 0
    assert begun == [jobs[1].id]


def test_the_launcher_leaves_it_to_the_worker_and_writes_it_anew_where_there_is_none(
    jobs: list[Job], tmp_path: Path
) -> None:
    share = _Share(Pack(tuple(jobs), 2, 1, 1, ""), tmp_path, 1)
    update_manifest(jobs[0].folder, state=State.RUNNING)
    share.look()
    jobs[0].paths.manifest.write_text("")
    with lock(jobs[0].folder):
        assert share.look() == []
        assert share.states[jobs[0].folder] is State.RUNNING
    share.look()
    assert share.states[jobs[0].folder] is state_of(jobs[0].folder) is State.PENDING
    assert read_manifest(jobs[0].folder)["id"] == jobs[0].id


def test_a_command_that_waits_for_a_cluster_goes_on_waiting(jobs: list[Job]) -> None:
    lot = Lot(Pack(tuple(jobs), 2, 1, 1, ""), "slurm")
    lot.begin(jobs)
    jobs[0].paths.manifest.write_text("")
    assert lot.look() == []
    assert lot.given_to_others() == []
    fail(jobs[0], "its node is gone")
    assert [(job.id, lot.states[job.folder]) for job in lot.look()] == [(jobs[0].id, State.FAILED)]


def test_one_that_is_damaged_at_the_end_does_not_hide_how_the_others_went(
    jobs: list[Job], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for job in jobs:
        update_manifest(job.folder, state=State.COMPLETED)
    jobs[0].paths.manifest.write_text("")
    with pytest.raises(JobsFailed, match=r"1 of 2 jobs failed:(.|\n)*manifest\.json is damaged .*; remove it"):
        conclude(jobs)
    assert f"{jobs[0].id}  failed" in caplog.text
    assert f"{jobs[1].id}  completed" in caplog.text
    assert (jobs[0].folder.parent / "report.html").is_file()
