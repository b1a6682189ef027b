"""After a stop nothing is submitted, whatever a waiting command was about to do, and however the workers ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Thread

import pytest

from runner import stop
from runner.errors import Detached, Interrupted
from runner.jobs.job import Job, State, make_job, register
from runner.jobs.lock import lock
from runner.launchers.cluster import Gone, Order
from runner.launchers.dispatch import Dispatch
from runner.paths import outputs_dir
from runner.schema import Experiment
from tests.slurm.script import CANCELLED, LAUNCHER, TAKEN, Script, die, finish, make_jobs, make_plan, run, states, write

FOLDER = "sweep"


def stop_all() -> None:
    assert stop.main([str(outputs_dir() / FOLDER)]) == 0


def then_stop(move: Callable[[Script], None]) -> Callable[[Script], None]:
    def both(cluster: Script) -> None:
        move(cluster)
        stop_all()

    return both


def test_what_the_cluster_had_taken_away_before_it_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(2)
    cluster = Script(then_stop(die(jobs[:1], "w1", TAKEN)))
    monkeypatch.setattr("runner.launchers.dispatch.GRACE_S", 0.0)
    run(cluster, make_plan(jobs), monkeypatch)
    assert len(cluster.orders) == 1
    assert states(jobs) == ["cancelled", "cancelled"]


def test_what_has_saved_and_ended_is_not_sent_again_where_the_cluster_does_not_say_why_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = make_jobs(1)

    def saves(cluster: Script) -> None:
        write(jobs, State.RUNNING, worker="w1")
        stop_all()
        write(jobs, State.INTERRUPTED)
        cluster.ended["w1"] = Gone(words="has ended")

    cluster = Script(saves)
    monkeypatch.setattr("runner.launchers.dispatch.GRACE_S", 0.0)
    run(cluster, make_plan(jobs), monkeypatch)
    assert len(cluster.orders) == 1
    assert states(jobs) == ["cancelled"]
    # The stop does not affect the next command.
    cluster.moves = [die(jobs, "w2", TAKEN), finish(jobs)]
    run(cluster, make_plan(jobs), monkeypatch)
    assert len(cluster.orders) == 3
    assert states(jobs) == ["completed"]


def test_what_is_sent_again_at_this_moment_is_waited_for_and_stopped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = make_jobs(1)
    monkeypatch.setattr("runner.launchers.dispatch.GRACE_S", 0.0)
    caplog.set_level("INFO")
    stopping = Thread(target=stop_all)

    class Slow(Script):
        def submit(self, order: Order, *, after: str | None) -> str:
            if self.orders:
                stopping.start()
                while "waiting for another process, which is submitting jobs of sweep" not in caplog.text:
                    assert stopping.is_alive(), "it does not wait"
                    time.sleep(0.01)
            return super().submit(order, after=after)

    def ends(cluster: Script) -> None:
        stopping.join()
        assert cluster.cancelled == ["w2"]
        cluster.ended["w2"] = Gone(words="has ended")

    cluster = Slow(die(jobs, "w1", TAKEN), ends)
    monkeypatch.setattr("runner.launchers.local.cluster", lambda settings: cluster)
    run(cluster, make_plan(jobs), monkeypatch)
    assert len(cluster.orders) == 2
    assert states(jobs) == ["cancelled"]


def test_a_second_worker_that_there_was_no_room_for_is_not_sent_when_the_first_one_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = make_jobs(2)
    monkeypatch.setattr("runner.launchers.dispatch.TRY_AGAIN_S", 0.0)

    def saves(cluster: Script) -> None:
        write(jobs[:1], State.RUNNING, worker="w1")
        stop_all()
        write(jobs[:1], State.INTERRUPTED)

    def ends(cluster: Script) -> None:
        cluster.ended["w1"] = Gone(words="has ended")

    cluster = Script(saves, ends, full="2 3")
    monkeypatch.setattr("runner.launchers.dispatch.GRACE_S", 0.0)
    run(cluster, make_plan(jobs, at_once=1, workers=2), monkeypatch)
    assert len(cluster.orders) == 1
    assert states(jobs) == ["cancelled", "cancelled"]


def test_a_search_goes_on_with_no_further_jobs_when_it_was_stopped_between_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = make_jobs(2)

    def more(count: int) -> list[Job]:
        return jobs[1:]

    cluster = Script(then_stop(finish(jobs[:1])))
    run(cluster, make_plan(jobs[:1], at_once=1), monkeypatch, more)
    assert len(cluster.orders) == 1
    assert states(jobs) == ["completed", "pending"]


def test_who_ends_its_workers_at_a_terminal_ends_them_for_others_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(1)
    monkeypatch.setattr("runner.launchers.dispatch.GRACE_S", 0.0)
    monkeypatch.setattr("runner.launchers.dispatch.is_to_end", lambda question: True)

    def another(cluster: Script) -> None:
        def ctrl_c() -> None:
            raise KeyboardInterrupt

        second = Dispatch(make_plan(jobs), LAUNCHER, cluster)
        monkeypatch.setattr(second, "_watch", ctrl_c)
        with pytest.raises(Interrupted):
            second.run()
        assert cluster.cancelled == ["w1"]
        write(jobs, State.INTERRUPTED)
        cluster.ended["w1"] = Gone(words="has ended")

    cluster = Script(another)
    run(cluster, make_plan(jobs), monkeypatch)
    assert len(cluster.orders) == 1
    assert states(jobs) == ["cancelled"]


@pytest.mark.parametrize("state", [State.INTERRUPTED, State.CANCELLED, State.RUNNING])
@pytest.mark.parametrize("gone", [CANCELLED, Gone(words="has ended")], ids=["cancelled", "ended"])
def test_a_command_that_comes_after_it_goes_on_with_what_the_stopped_workers_leave(
    state: State, gone: Gone, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = make_jobs(2)
    cluster = Script()
    with pytest.raises(Detached):
        run(cluster, make_plan(jobs), monkeypatch, wait=False)
    stop_all()

    def ends(cluster: Script) -> None:
        write(jobs[:1], state, worker="w1")  # cancelled by a command that was waiting before the stop
        cluster.ended["w1"] = gone

    monkeypatch.setattr("runner.launchers.dispatch.GRACE_S", 0.0)
    cluster.moves = [ends, finish(jobs)]
    run(cluster, make_plan(jobs), monkeypatch)
    assert len(cluster.orders) == 2
    assert states(jobs) == ["completed", "completed"]


def test_a_command_that_comes_after_it_is_stopped_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(1)
    cluster = Script()
    with pytest.raises(Detached):
        run(cluster, make_plan(jobs), monkeypatch, wait=False)
    stop_all()
    monkeypatch.setattr("runner.launchers.dispatch.GRACE_S", 0.0)
    cluster.moves = [then_stop(die(jobs, "w1", CANCELLED))]
    run(cluster, make_plan(jobs), monkeypatch)
    assert len(cluster.orders) == 1
    assert states(jobs) == ["cancelled"]


def test_what_its_worker_holds_until_it_has_saved_is_not_said_to_be_trained_by_a_command_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = Experiment.model_validate({"name": FOLDER, "launcher": {"name": "slurm", "gpus_per_node": 0}})
    job = make_job(experiment, model="m", dataset="d", outputs=outputs_dir())
    register(job)
    cluster = Script()
    monkeypatch.setattr("runner.launchers.slurm.cluster", lambda settings: cluster)
    with pytest.raises(Detached):
        run(cluster, make_plan([job]), monkeypatch, wait=False)
    write([job], State.RUNNING)

    with caplog.at_level("INFO"), lock(job.folder):
        stop_all()

    assert cluster.cancelled == ["w1"]
    assert "asked to save and stop: script w1" in caplog.text
    assert "trained by a command" not in caplog.text
