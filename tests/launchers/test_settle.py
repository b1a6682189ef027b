"""What becomes of jobs whose worker is gone, depending on what it could still write itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.jobs.job import Job, State, read_manifest, register, state_of, update_manifest
from runner.jobs.lock import lock
from runner.launchers.cluster import Gone
from runner.launchers.settle import close, fail, halved, is_dead, last_words, take_up_again
from runner.plan import Pack
from tests.plan.test_packs import seeds


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    (made,) = seeds(1)
    register(made)
    return made


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"state": State.RUNNING, "error": "of an earlier time", "crashed": False}, "killed"),
        ({"state": State.FAILED, "error": "out of memory", "crashed": True}, "out of memory"),
        ({"state": State.FAILED, "error": None, "crashed": True}, "killed"),
    ],
)
def test_what_a_worker_could_still_say_counts_more_and_it_is_settled_once(
    job: Job, said: dict[str, Any], reason: str
) -> None:
    update_manifest(job.folder, **said)
    assert is_dead(job)
    fail(job, "killed")
    assert (read_manifest(job.folder)["error"], state_of(job.folder)) == (reason, State.FAILED)
    assert not is_dead(job), "or it would be taken along when another worker dies"


def test_a_folder_in_which_another_runner_has_not_written_anything_yet_is_nobodys_dead_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (taken,) = seeds(1)
    with lock(taken.folder):
        assert not is_dead(taken)
    assert not is_dead(taken)


def test_what_is_taken_up_again_is_as_if_nothing_had_been(job: Job) -> None:
    update_manifest(job.folder, state=State.FAILED, error="out of memory", crashed=True)
    take_up_again([job])
    manifest = read_manifest(job.folder)
    assert [manifest[key] for key in ("state", "error", "crashed")] == ["pending", None, False]


ENDED, BEGAN = Gone(words="ended"), Gone(words="ended", began=True)
TAKEN, CANCELLED = Gone(words="taken", reason="taken"), Gone(words="stopped", reason="cancelled")


@pytest.mark.parametrize(
    ("before", "gone", "after"),
    [
        (State.RUNNING, ENDED, State.FAILED),
        (State.RUNNING, BEGAN, State.FAILED),
        (State.SUBMITTED, ENDED, State.FAILED),
        (State.SUBMITTED, BEGAN, State.INTERRUPTED),
        (State.RUNNING, TAKEN, State.INTERRUPTED),
        (State.INTERRUPTED, ENDED, State.INTERRUPTED),
        (State.INTERRUPTED, CANCELLED, State.CANCELLED),
        (State.COMPLETED, CANCELLED, State.COMPLETED),
        (State.FAILED, TAKEN, State.FAILED),
    ],
)
def test_where_nobody_goes_on_with_a_job_it_is_said_how_that_came(
    job: Job, before: State, gone: Gone, after: State
) -> None:
    update_manifest(job.folder, state=before)
    with lock(job.folder):
        close([job], gone, "how")
    assert state_of(job.folder) is before, "who holds it is at it, here"
    close([job], gone, "how")
    assert state_of(job.folder) is after


@pytest.mark.parametrize(("died", "at_once"), [(1, 1), (2, 1), (3, 2), (5, 3)])
def test_half_of_those_that_died_go_on_at_once(died: int, at_once: int) -> None:
    jobs = seeds(5)
    pack = halved(Pack(tuple(jobs), 5, 1, 1, ""), jobs[:died])
    assert (pack.at_once, len(pack.jobs)) == (at_once, died)


def test_the_last_line_that_says_something_is_what_a_worker_said_last(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert last_words(log) == last_words(None) == ""
    log.write_bytes(b"MemoryError: too much\n 10 %\r 20 %\xff\r\n  \n")
    assert last_words(log) == "20 %\ufffd"
