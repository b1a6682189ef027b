"""Commands that submit the same jobs at the same time: each job is submitted once, and both wait for it."""

from __future__ import annotations

from threading import Thread

import pytest

from runner.errors import Detached
from runner.job import Job
from runner.launchers import dispatch
from runner.launchers.cluster import Order
from runner.launchers.dispatch import Dispatch
from runner.queue import Queue
from tests.slurm.script import (
    LAUNCHER,
    Script,
    finish,
    make_jobs,
    make_plan,
    run,
    states,
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
