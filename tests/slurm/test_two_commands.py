"""Commands that submit the same jobs at the same time: each job is submitted once, and both wait for it."""

from __future__ import annotations

from contextlib import ExitStack
from threading import Thread

import pytest

from runner.errors import Detached
from runner.jobs.job import Job, State
from runner.jobs.lock import lock
from runner.jobs.queue import Queue
from runner.launchers import dispatch
from runner.launchers.cluster import Gone, Order
from runner.launchers.dispatch import Dispatch
from tests.slurm.script import (
    ENDED,
    LAUNCHER,
    TAKEN,
    Script,
    die,
    finish,
    make_jobs,
    make_plan,
    run,
    states,
    write,
)


def test_two_commands_at_once_submit_a_job_once(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(2)
    cluster = Script()
    submit = cluster.submit
    outcomes, waits = [], []

    def command(*chosen: Job) -> None:
        with pytest.raises(Detached) as detached:
            run(cluster, make_plan(chosen), monkeypatch, wait=False)
        outcomes.append(str(detached.value))

    second = Thread(target=command, args=jobs)

    def slowly(order: Order, *, after: str | None) -> str:
        monkeypatch.setattr(cluster, "submit", submit)
        second.start()
        second.join(0.3)
        waits.append(second.is_alive())
        return submit(order, after=after)

    monkeypatch.setattr(cluster, "submit", slowly)
    command(jobs[0])
    second.join()

    assert waits == [True]
    assert [Queue(order.queue).read()[0] for order, _ in cluster.orders] == [[jobs[0].folder], [jobs[1].folder]]
    assert "w1 go on" in outcomes[0] and "w1, w2 go on" in outcomes[1]


def test_what_had_to_wait_and_another_command_has_submitted_is_not_submitted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = make_jobs(1)
    monkeypatch.setattr(dispatch, "TRY_AGAIN_S", 0.0)

    def another(cluster: Script) -> None:
        with pytest.raises(Detached):
            Dispatch(make_plan(jobs), LAUNCHER.model_copy(update={"wait": False}), cluster).run()

    cluster = Script(another, finish(jobs), full="1 2")
    run(cluster, make_plan(jobs), monkeypatch)

    assert len(cluster.orders) == 1
    assert states(jobs) == ["completed"]


def test_what_another_command_has_sent_again_is_watched_and_not_sent_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = make_jobs(2)
    monkeypatch.setattr(dispatch, "GRACE_S", 0.0)

    def another(cluster: Script) -> None:
        die(jobs[:1], "w1", TAKEN)(cluster)
        with pytest.raises(Detached):
            Dispatch(make_plan(jobs), LAUNCHER.model_copy(update={"wait": False}), cluster).run()

    cluster = Script(another, finish(jobs))
    made = run(cluster, make_plan(jobs), monkeypatch)
    assert len(cluster.orders) == 2
    assert made.lots[-1].workers == ["w2"]
    assert states(jobs) == ["completed", "completed"]


@pytest.mark.parametrize("apart", [False, True], ids=["shared files", "apart"])
def test_a_search_takes_up_what_an_earlier_command_has_submitted_whenever_it_comes_to_it(
    apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = make_jobs(4)
    cluster = Script(apart=apart)
    with pytest.raises(Detached):
        run(cluster, make_plan(jobs[:3]), monkeypatch, wait=False)
    # Only the first job of the other command's list is known at first, and the others come in another order.
    further = [jobs[2], jobs[3], jobs[1]]

    def ends(cluster: Script) -> None:
        finish(jobs)(cluster)
        cluster.ended |= dict.fromkeys(("w1", "w2"), Gone(words="has ended", began=True))

    cluster.moves = [lambda _: None, lambda _: None, lambda _: None, ends]
    made = run(cluster, make_plan(jobs[:1]), monkeypatch, lambda count: [further.pop(0)] if further else [])

    assert len(cluster.orders) == (2 if apart else 1), "what was given to a worker is not given to another one"
    first = next(lot for lot in made.lots if lot.workers == ["w1"])
    assert {job.folder for job in first.jobs} >= {job.folder for job in jobs[:3]}
    assert states(jobs) == ["completed"] * 4


def test_what_another_runner_has_taken_over_from_a_worker_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "GRACE_S", 0.0)
    jobs = make_jobs(2)
    with ExitStack() as held:

        def take_over(cluster: Script) -> None:
            held.enter_context(lock(jobs[0].folder))
            write(jobs[:1], State.RUNNING)
            write(jobs[1:], State.COMPLETED)
            cluster.ended["w1"] = ENDED

        run(Script(take_over), make_plan(jobs), monkeypatch)
    assert states(jobs) == ["running", "completed"]
