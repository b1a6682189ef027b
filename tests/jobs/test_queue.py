"""No job is taken twice, whatever else takes from the same queue."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import yaml

from runner.errors import RunnerError, SettingsError
from runner.jobs.job import Job, State, make_job, read_job, read_manifest, register, state_of, update_manifest
from runner.jobs.lock import LockedError, is_held, lock
from runner.jobs.queue import Claims, FixedQueue, Queue
from runner.schema import Experiment


def jobs(tmp_path: Path, count: int) -> list[Job]:
    found = []
    for seed in range(count):
        experiment = Experiment.model_validate({"seed": seed})
        found.append(make_job(experiment, model="m", dataset="d", outputs=tmp_path / "outputs"))
        register(found[-1])
    return found


def queue(tmp_path: Path, listed: list[Job], *, is_open: bool = False) -> Queue:
    found = Queue(tmp_path / "queue.json")
    found.write([job.folder for job in listed], is_open=is_open)
    return found


def claims(source: Queue) -> Claims:
    return Claims(source, lambda job: nullcontext())


def ids(taken: list[Job]) -> list[str]:
    return [job.id for job in taken]


# PyYAML's wheels include libyaml; if PyYAML was built from source without it, only the slow parser is available.
@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML was built without libyaml")
def test_settings_are_not_read_by_the_slow_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = jobs(tmp_path, 1)

    def refuse(_: object) -> None:
        raise AssertionError("5 ms more for each of hundreds of jobs")

    monkeypatch.setattr(yaml.scanner.Scanner, "fetch_more_tokens", refuse)
    assert read_job(job.folder).settings == job.settings


def test_jobs_are_taken_in_order_and_held_until_they_are_released(tmp_path: Path) -> None:
    listed = jobs(tmp_path, 3)
    taker = claims(queue(tmp_path, listed))
    taken = taker.take(2)
    assert ids(taken) == ids(listed[:2])
    assert [is_held(job.folder) for job in listed] == [True, True, False]
    taker.release(taken[0])
    assert [is_held(job.folder) for job in listed] == [False, True, False]
    assert ids(taker.take(5)) == ids(listed[2:])
    assert taker.take(5) == []
    taker.release_all()
    assert not any(is_held(job.folder) for job in listed)


def test_folders_may_be_named_from_the_folder_that_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = jobs(tmp_path, 1)
    monkeypatch.chdir(job.folder.parent)
    taker = claims(FixedQueue([Path(job.id)]))
    (taken,) = taker.take(1)
    taker.release(taken)
    assert not is_held(job.folder)


def test_two_takers_share_a_queue(tmp_path: Path) -> None:
    listed = jobs(tmp_path, 5)
    source = queue(tmp_path, listed)
    one, other = claims(source), claims(source)
    taken = ids(one.take(2)) + ids(other.take(2)) + ids(one.take(2)) + ids(other.take(2))
    assert sorted(taken) == sorted(ids(listed))


def _take_all(file: Path, results: multiprocessing.Queue[list[str]]) -> None:
    taker, taken = claims(Queue(file)), []
    while found := taker.take(1):
        update_manifest(found[0].folder, state=State.RUNNING)
        update_manifest(found[0].folder, state=State.COMPLETED)
        taker.release(found[0])
        taken += ids(found)
    results.put(taken)


def test_processes_that_take_at_the_same_time_take_each_job_once(tmp_path: Path) -> None:
    listed = jobs(tmp_path, 40)
    source = queue(tmp_path, listed)
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[list[str]] = context.Queue()
    takers = [context.Process(target=_take_all, args=(source.file, results)) for _ in range(3)]
    for each in takers:
        each.start()
    taken = [job_id for _ in takers for job_id in results.get(timeout=60)]
    for each in takers:
        each.join()
    assert sorted(taken) == sorted(ids(listed))


def test_a_queue_may_grow_while_it_is_open(tmp_path: Path) -> None:
    listed = jobs(tmp_path, 3)
    source = queue(tmp_path, listed[:1], is_open=True)
    taker = claims(source)
    assert ids(taker.take(5)) == ids(listed[:1])
    assert taker.more_may_come
    source.write([job.folder for job in listed], is_open=False)
    assert ids(taker.take(5)) == ids(listed[1:])
    assert not taker.more_may_come


def test_a_job_of_another_machine_is_found_by_its_experiment_and_its_id(tmp_path: Path) -> None:
    listed = jobs(tmp_path, 2)
    elsewhere = tmp_path / "there" / listed[1].folder.parent.name / listed[1].id
    source = queue(tmp_path, listed)
    assert source.here(listed[1].folder) == listed[1].folder
    assert source.here(elsewhere) == listed[1].folder
    for strange in (elsewhere.parent.with_name("another experiment") / elsewhere.name, elsewhere.with_name("another")):
        with pytest.raises(RunnerError, match="not among the jobs of this machine"):
            source.here(strange)


def test_a_list_that_is_gone_is_said_to_be_gone(tmp_path: Path) -> None:
    source = queue(tmp_path, jobs(tmp_path, 1))
    source.file.unlink()
    with pytest.raises(RunnerError, match="the list of jobs is gone"):
        _ = claims(source).more_may_come


@pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED, State.RUNNING, State.INTERRUPTED, State.PRUNED])
def test_only_pending_jobs_of_a_queue_are_taken(tmp_path: Path, state: State) -> None:
    first, second = jobs(tmp_path, 2)
    update_manifest(first.folder, state=state)
    assert ids(claims(queue(tmp_path, [first, second])).take(2)) == [second.id]
    assert state_of(first.folder) is state


def test_a_queue_may_say_that_the_next_worker_takes_up_what_was_interrupted(tmp_path: Path) -> None:
    interrupted, failed = jobs(tmp_path, 2)
    update_manifest(interrupted.folder, state=State.INTERRUPTED)
    update_manifest(failed.folder, state=State.FAILED)
    source = queue(tmp_path, [])
    source.write([interrupted.folder, failed.folder], is_open=False, resumes=True)
    assert ids(claims(source).take(9)) == [interrupted.id]


def test_a_job_whose_manifest_is_damaged_is_left_out_once_unless_it_was_asked_for_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged, whole = jobs(tmp_path, 2)
    damaged.paths.manifest.write_text("{")
    taker = claims(queue(tmp_path, [damaged, whole]))
    assert ids(taker.take(9)) == [whole.id]
    assert taker.take(9) == []
    assert caplog.text.count("left out") == 1
    with pytest.raises(SettingsError, match="is damaged"):
        claims(FixedQueue([damaged.folder])).take(1)


def test_a_job_of_a_list_that_cannot_be_read_costs_no_other_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, without_settings, removed, last = jobs(tmp_path, 4)
    without_settings.paths.config.unlink()
    shutil.rmtree(removed.folder)
    source = queue(tmp_path, [first, without_settings, removed, last])
    taker = claims(source)
    assert ids(taker.take(2)) == [first.id, last.id]
    assert taker.take(2) == []
    assert [is_held(job.folder) for job in (without_settings, removed)] == [False, False]
    manifest = read_manifest(without_settings.folder)
    assert manifest["state"] == State.FAILED
    assert "holds no job that can be read: it has no config.yaml" in manifest["error"]
    assert not removed.folder.exists(), "nor is it made anew"
    assert caplog.text.count("holds no job that can be read") == 2
    with pytest.raises(RunnerError, match="holds no job that can be read"):
        claims(FixedQueue([without_settings.folder])).take(1)


def test_folders_of_a_command_line_are_taken_in_any_state_but_completed(tmp_path: Path) -> None:
    first, second, third = jobs(tmp_path, 3)
    update_manifest(first.folder, state=State.FAILED)
    update_manifest(second.folder, state=State.COMPLETED)
    assert ids(claims(FixedQueue([job.folder for job in (first, second, third)])).take(9)) == [first.id, third.id]


def test_a_folder_of_a_command_line_that_is_held_is_an_error_that_names_the_holder(tmp_path: Path) -> None:
    (only,) = jobs(tmp_path, 1)
    with lock(only.folder), pytest.raises(LockedError, match=f"is being worked on by process {os.getpid()};"):
        claims(FixedQueue([only.folder])).take(1)


def test_what_is_attached_to_a_job_is_closed_with_it(tmp_path: Path) -> None:
    events = []

    @contextmanager
    def attached(job: Job) -> Iterator[None]:
        events.append(f"open {job.experiment.seed}")
        yield
        events.append(f"close {job.experiment.seed}")

    taker = Claims(queue(tmp_path, jobs(tmp_path, 2)), attached)
    first, _ = taker.take(2)
    taker.release(first)
    taker.release_all()
    assert events == ["open 0", "open 1", "close 0", "close 1"]
