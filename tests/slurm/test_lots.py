"""What the folders record about a pack in a queue, and what is concluded: whose its jobs are, and what it lacks."""

from __future__ import annotations

import json

import pytest

from runner.jobs.job import Job, State, read_manifest
from runner.launchers import dispatch
from runner.launchers.lots import Lot, all_given_to, recorded_lots
from runner.plan import Pack
from tests.slurm.script import Script, finish, make_jobs, make_plan, run, states, write


def lot_of(jobs: list[Job], *, at_once: int = 2, workers: int = 2) -> Lot:
    return Lot(Pack(tuple(jobs), at_once, workers, 1, ""), "script")


def ids(jobs: list[Job]) -> list[str]:
    return [job.id for job in jobs]


def test_what_is_done_by_then_is_not_submitted() -> None:
    jobs = make_jobs(2)
    write(jobs[:1], State.COMPLETED)
    lot = lot_of(jobs)
    lot.begin(jobs)
    assert states(jobs) == ["completed", "submitted"]
    assert ids(lot.jobs) == [jobs[1].id]


def test_a_job_that_a_worker_has_begun_with_is_not_told_of_further_ones() -> None:
    jobs = make_jobs(2)
    lot = lot_of(jobs)
    lot.begin(jobs)
    lot.add_worker("w1")
    write(jobs[:1], State.RUNNING)
    lot.add_worker("w2")
    assert [read_manifest(job.folder)["submission"]["ids"] for job in jobs] == [["w1"], ["w1", "w2"]]


def test_jobs_in_another_list_or_with_workers_of_others_are_not_its_own() -> None:
    jobs = make_jobs(4)
    lot = lot_of(jobs)
    lot.begin(jobs)
    lot.add_worker("w1")
    ours = read_manifest(jobs[0].folder)["submission"]
    write(jobs[:1], State.SUBMITTED, submission=ours | {"queue": "another list"})
    write(jobs[1:2], State.SUBMITTED, submission=ours | {"ids": ["w9"]})
    write(jobs[2:3], State.SUBMITTED, submission=ours | {"ids": ["w1", "w9"]})
    assert ids(lot.given_to_others()) == ids(jobs[:3])


def test_as_many_workers_are_missing_as_find_something_to_do() -> None:
    jobs = make_jobs(5)
    lot = lot_of(jobs, workers=3)
    lot.begin(jobs)
    assert lot.missing == 3
    lot.add_worker("w1")
    write(jobs[:2], State.RUNNING)
    write(jobs[2:], State.INTERRUPTED)
    lot.look()
    assert lot.missing == 2, "for three that were interrupted, two at once"
    assert [lot.part(jobs[:count], why="").workers for count in (1, 2, 3, 5)] == [1, 1, 2, 3]


def test_the_same_jobs_have_the_same_list_in_any_order_and_it_counts_once_it_has_workers() -> None:
    jobs = make_jobs(2)
    lot = lot_of(jobs)
    assert lot_of(jobs[::-1]).queue.file == lot.queue.file
    lot.begin(jobs)
    lot.write()
    assert recorded_lots(jobs, "script") == []
    lot.add_worker("w1")
    (found,) = recorded_lots(jobs, "script")
    assert (ids(found.jobs), found.alive) == (ids(jobs), ["w1"])
    assert ids(all_given_to("w1", jobs[:1])) == ids(jobs), "each once"


def test_a_list_is_open_for_as_long_as_its_command_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a worker that waits for jobs of a search would end while the command is still choosing them."""
    jobs, open_until = make_jobs(1), list[float]()
    monkeypatch.setattr(dispatch, "OPEN_FOR_S", 0.0)

    def look(cluster: Script) -> None:
        open_until.append(json.loads(cluster.orders[0][0].queue.read_text())["open_until"])

    run(Script(look, look, finish(jobs)), make_plan(jobs), monkeypatch, lambda _: [])
    assert open_until[0] < open_until[1]
