"""What becomes of workers that a cluster currently has no room for."""

from __future__ import annotations

import pytest

from runner.errors import Interrupted
from runner.jobs.job import State, state_of
from runner.jobs.queue import Queue
from runner.launchers import dispatch
from runner.plan import Pack, Plan
from tests.slurm.script import MACHINE, TAKEN, Script, die, finish, make_jobs, make_plan, run, states, write


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look tries again, and waiting between two looks makes the script's next move."""
    monkeypatch.setattr(dispatch, "GRACE_S", 0.0)
    monkeypatch.setattr(dispatch, "TRY_AGAIN_S", 0.0)


def test_what_there_is_no_room_for_waits_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(2)

    def still_waits(cluster: Script) -> None:
        assert [state_of(job.folder) for job in jobs] == [State.PENDING, State.PENDING]
        assert cluster.orders == []

    cluster = Script(still_waits, still_waits, finish(jobs), full="1 2 3")
    run(cluster, make_plan(jobs), monkeypatch)
    assert cluster.tries == 4
    assert len(cluster.orders) == 1
    assert [state_of(job.folder) for job in jobs] == [State.COMPLETED, State.COMPLETED]


def test_all_packs_that_there_is_no_room_for_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(3)
    cluster = Script(lambda _: None, lambda _: None, finish(jobs), full="1 2 3 4")
    run(cluster, Plan(tuple(Pack((job,), 1, 1, 1, "") for job in jobs), MACHINE), monkeypatch)
    assert [Queue(order.queue).read()[0] for order, _ in cluster.orders] == [[job.folder] for job in jobs]


@pytest.mark.parametrize(
    ("full", "begun", "orders"),
    [("2", 1, 2), ("2 3 4", 1, 2), ("2 3 4", 4, 1)],
    ids=["room at the next try", "room later", "nothing left for it"],
)
def test_where_there_is_room_for_some_workers_the_others_wait_and_no_job_is_begun_twice(
    monkeypatch: pytest.MonkeyPatch, full: str, begun: int, orders: int
) -> None:
    jobs = make_jobs(4)

    def begin(cluster: Script) -> None:
        # No lock shows it, as on a file system whose locks do not work across nodes.
        write(jobs[:begun], State.RUNNING, worker="w1")

    def look(cluster: Script) -> None:
        assert states(jobs) == ["running"] * begun + ["submitted"] * (4 - begun)

    cluster = Script(begin, look, look, look, look, finish(jobs), full=full)
    run(cluster, make_plan(jobs, at_once=1, workers=2), monkeypatch)
    assert len(cluster.orders) == orders, "as many as were planned, where there is something to do for them"
    assert states(jobs) == ["completed"] * 4


def test_what_a_worker_has_left_for_good_is_not_given_to_one_that_waits_for_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = make_jobs(3)
    packs = (Pack(tuple(jobs[:2]), 1, 2, 1, ""), Pack(tuple(jobs[2:]), 1, 1, 1, ""))
    cluster = Script(die(jobs[:1], "w1", TAKEN), lambda _: None, finish(jobs[2:]), full="2 4 5")
    with pytest.raises(Interrupted):
        run(cluster, Plan(packs, MACHINE), monkeypatch, resubmissions=0)
    assert len(cluster.orders) == 2
    assert states(jobs) == ["interrupted", "interrupted", "completed"]
