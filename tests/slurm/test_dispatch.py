"""What becomes of jobs, whatever their workers do, on a cluster whose every move is scripted."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from runner.errors import Detached, Interrupted
from runner.jobs.job import Job, State, read_manifest, register, state_of
from runner.jobs.lock import lock
from runner.jobs.queue import Queue
from runner.launchers import dispatch
from runner.launchers.cluster import Gone
from runner.launchers.lots import Lot, recorded_lots
from runner.plan import Pack, Plan
from tests.slurm.script import (
    CANCELLED,
    ENDED,
    MACHINE,
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


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting between two looks makes the script's next move."""
    monkeypatch.setattr(dispatch, "GRACE_S", 0.0)


def test_jobs_are_submitted_with_the_ids_of_their_workers_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(4)
    cluster = Script(finish(jobs))
    seen: list[dict[str, Any]] = []
    cluster.moves.insert(0, lambda _: seen.extend(read_manifest(job.folder) for job in jobs))
    run(cluster, make_plan(jobs, at_once=2, workers=2), monkeypatch)

    assert [each["state"] for each in seen] == ["submitted"] * 4
    assert [each["submission"]["ids"] for each in seen] == [["w1", "w2"]] * 4
    (order, after), (other, _) = cluster.orders
    assert order == other and after is None
    assert (order.title, order.at_once, order.processes) == ("sweep", 2, 1)
    assert Queue(order.queue).read() == ([job.folder for job in jobs], False)


def test_who_dies_alone_is_to_blame_and_the_log_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(2)

    def last_words(cluster: Script) -> None:
        folder = cluster.orders[0][0].queue.parent
        (folder / "w1.log").write_text("loading\nTraceback\nMemoryError: too much\n")

    cluster = Script(last_words, finish(jobs[:1]), die(jobs[1:], "w1", ENDED))
    run(cluster, make_plan(jobs), monkeypatch)

    assert states(jobs) == ["completed", "failed"]
    assert read_manifest(jobs[1].folder)["error"] == "script w1 ended as FAILED: MemoryError: too much"
    assert len(cluster.orders) == 1


def test_who_dies_with_others_goes_on_in_halves_until_one_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(4)
    cluster = Script(
        die(jobs, "w1", ENDED),
        finish(jobs[:2]),
        die(jobs[2:], "w2", ENDED),
        finish(jobs[2:3]),
        die(jobs[3:], "w3", ENDED),
    )
    run(cluster, make_plan(jobs, at_once=4), monkeypatch)

    assert [order.at_once for order, _ in cluster.orders] == [4, 2, 1]
    assert states(jobs) == ["completed", "completed", "completed", "failed"]


def test_only_the_jobs_of_the_worker_that_is_gone_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(3)
    looked: list[list[str]] = []
    cluster = Script(
        # No lock shows who is alive, as on a file system whose locks do not work across nodes.
        lambda _: write(jobs[1:2], State.RUNNING, worker="w2"),
        die(jobs[:1], "w1", ENDED),
        lambda _: looked.append(states(jobs)),
        finish(jobs[1:]),
    )
    run(cluster, make_plan(jobs, at_once=1, workers=2), monkeypatch)

    assert looked == [["failed", "running", "submitted"]]
    assert states(jobs) == ["failed", "completed", "completed"]


def test_what_a_shared_disk_shows_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(2)
    monkeypatch.setattr(dispatch, "GRACE_S", 60.0)
    cluster = Script(die(jobs, "w1", ENDED), finish(jobs))
    run(cluster, make_plan(jobs), monkeypatch)

    assert states(jobs) == ["completed"] * 2
    assert len(cluster.orders) == 1


def test_what_the_cluster_takes_away_goes_on_in_another_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(3)

    def preempt(cluster: Script) -> None:
        write(jobs[1:2], State.INTERRUPTED, worker="w1")
        die(jobs[:1], "w1", TAKEN)(cluster)

    cluster = Script(preempt, finish(jobs))
    run(cluster, make_plan(jobs, at_once=2), monkeypatch)

    assert states(jobs) == ["completed"] * 3
    assert len(cluster.orders) == 2
    assert {folder.name for folder in Queue(cluster.orders[1][0].queue).read()[0]} == {job.id for job in jobs}


def test_what_is_taken_away_too_often_is_left_for_the_next_command(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(1)
    cluster = Script(*(die(jobs, f"w{number}", TAKEN) for number in (1, 2, 3)))
    with pytest.raises(Interrupted):
        run(cluster, make_plan(jobs), monkeypatch, resubmissions=2)

    assert len(cluster.orders) == 3
    assert states(jobs) == ["interrupted"]


def test_what_is_cancelled_is_not_submitted_again_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(3)
    cluster = Script(
        lambda _: write(jobs[2:], State.RUNNING, worker="w2"), die(jobs[:1], "w1", CANCELLED), finish(jobs[1:])
    )
    run(cluster, make_plan(jobs, at_once=1, workers=2), monkeypatch)

    assert states(jobs) == ["cancelled", "completed", "completed"]
    assert len(cluster.orders) == 2


def test_a_worker_that_cannot_begin_fails_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(2)
    cluster = Script(lambda cluster: cluster.ended.update(w1=ENDED))
    run(cluster, make_plan(jobs), monkeypatch)

    assert states(jobs) == ["failed", "failed"]
    assert read_manifest(jobs[0].folder)["error"] == "script w1 ended as FAILED before this job began"


def test_no_more_workers_at_a_time_than_asked_for_over_all_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(5)
    packs = (Pack(tuple(jobs[:3]), 1, 2, 1, ""), Pack(tuple(jobs[3:]), 1, 2, 1, ""))
    cluster = Script(finish(jobs))
    run(cluster, Plan(packs, MACHINE), monkeypatch, concurrency=2)

    assert [after for _, after in cluster.orders] == [None, None, "w1", "w2"]


def test_a_refused_worker_is_made_up_for_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(4)
    cluster = Script(finish(jobs), refuses="1")
    run(cluster, make_plan(jobs, at_once=1, workers=3), monkeypatch)

    assert len(cluster.orders) == 1
    assert states(jobs) == ["completed"] * 4


def test_a_later_command_finds_its_workers_and_settles_those_that_have_gone_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = make_jobs(4)
    cluster = Script()
    with pytest.raises(Detached, match="cancel w1 w2"):
        run(cluster, make_plan(jobs, at_once=1, workers=2), monkeypatch, wait=False)
    write(jobs[:1], State.COMPLETED)
    die(jobs[1:2], "w1", TAKEN)(cluster)
    write(jobs[2:3], State.RUNNING, worker="w2")
    register(jobs[3])  # as a command does with all jobs that are not held

    cluster.moves = [finish(jobs[1:])]
    run(cluster, make_plan(jobs[1:], at_once=1, workers=2), monkeypatch)

    assert len(cluster.orders) == 2
    assert states(jobs) == ["completed"] * 4


def test_a_command_that_only_watches_says_which_job_has_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    jobs = make_jobs(2)
    cluster = Script()
    with pytest.raises(Detached):
        run(cluster, make_plan(jobs), monkeypatch, wait=False)
    cluster.moves = [finish(jobs)]
    run(cluster, Plan((), MACHINE, elsewhere=tuple(jobs)), monkeypatch)

    assert f"{jobs[0].id}  completed  seed=0" in caplog.text
    assert f"{jobs[1].id}  completed  seed=1" in caplog.text


def test_a_job_whose_workers_have_all_gone_is_submitted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(2)
    cluster = Script()
    with pytest.raises(Detached):
        run(cluster, make_plan(jobs), monkeypatch, wait=False)
    cluster.ended["w1"] = TAKEN
    cluster.moves = [finish(jobs)]
    run(cluster, make_plan(jobs), monkeypatch)

    assert len(cluster.orders) == 2
    assert states(jobs) == ["completed"] * 2
    assert [lot.workers for lot in recorded_lots(jobs, "script")] == [["w2"]]
    assert recorded_lots(jobs, "another") == []


def test_what_another_runner_holds_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(2)
    cluster = Script(finish(jobs[1:]))
    with lock(jobs[0].folder):
        run(cluster, make_plan(jobs), monkeypatch)

    assert states(jobs) == ["pending", "completed"]
    assert Queue(cluster.orders[0][0].queue).read()[0] == [jobs[1].folder]


def test_a_search_adds_jobs_to_workers_that_wait_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(4)
    further = jobs[2:]
    asked: list[int] = []

    def more(count: int) -> list[Job]:
        asked.append(count)
        return [further.pop(0)] if further and state_of(jobs[0].folder) is State.COMPLETED else []

    lists: list[tuple[int, bool]] = []

    def look(cluster: Script) -> None:
        folders, is_open = Queue(cluster.orders[0][0].queue).read()
        lists.append((len(folders), is_open))

    cluster = Script(look, finish(jobs[:2]), look, finish(jobs[:3]), look, finish(jobs))
    run(cluster, make_plan(jobs[:2], at_once=2), monkeypatch, more)

    assert lists == [(2, True), (3, True), (4, True)]
    assert Queue(cluster.orders[0][0].queue).read()[1] is False
    assert states(jobs) == ["completed"] * 4
    assert len(cluster.orders) == 1
    assert 1 in asked


def test_a_search_adds_jobs_beside_a_worker_that_waits_when_all_have_died_with_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = make_jobs(3)
    further = jobs[2:]

    def more(_: int) -> list[Job]:
        return [further.pop()] if further and len(cluster.orders) > 2 else []

    cluster = Script(die(jobs[:2], "w1", ENDED), finish(jobs))
    run(cluster, make_plan(jobs[:2], at_once=2, workers=2), monkeypatch, more)

    assert states(jobs) == ["completed"] * 3
    assert len(cluster.orders) == 4, "two workers, and two for those that died together"
    queue = Queue(cluster.orders[2][0].queue)
    assert queue.read() == ([job.folder for job in jobs], False)
    assert queue.about()["workers"] == ["w2", "w3", "w4"], "a stop finds who waits still, too"


@pytest.mark.parametrize("apart", [False, True], ids=["shared files", "apart"])
def test_a_search_gives_no_further_jobs_in_the_place_of_those_that_somebody_has_ended(
    apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = make_jobs(4)
    further = jobs[2:]

    def cancel(cluster: Script) -> None:
        cluster.ended["w1"] = CANCELLED

    cluster = Script(lambda _: write(jobs[:2], State.INTERRUPTED), cancel, apart=apart)
    run(cluster, make_plan(jobs[:2], at_once=2), monkeypatch, lambda count: [further.pop(0)] if further else [])

    assert states(jobs) == ["cancelled", "cancelled", "pending", "pending"]
    assert len(cluster.orders) == 1
    assert Queue(cluster.orders[0][0].queue).read()[0] == [job.folder for job in jobs[:2]]


def test_an_open_list_is_closed_by_time_when_its_command_has_died() -> None:
    jobs = make_jobs(1)
    lot = Lot(Pack(tuple(jobs), 1, 1, 1, ""), "script")
    lot.is_open = True
    lot.write()
    assert lot.queue.read()[1] is True
    lot.queue.write([job.folder for job in jobs], is_open=True, open_for_s=-1.0)
    assert lot.queue.read()[1] is False


def test_other_workers_of_a_list_take_what_one_was_interrupted_in() -> None:
    (job,) = make_jobs(1)
    lot = Lot(Pack((job,), 1, 2, 1, ""), "script")
    lot.begin([job])
    lot.write()
    queue = Queue(lot.queue.file)
    queue.read()
    taken = [state for state in State if queue.takes(state)]
    assert taken == [State.PENDING, State.SUBMITTED, State.INTERRUPTED]


@pytest.mark.parametrize(("answer", "ended"), [("n", ["w1"]), (" No ", ["w1"]), ("", []), (EOFError, []), (None, [])])
def test_who_stops_waiting_at_a_terminal_is_asked_whether_workers_go_on(
    monkeypatch: pytest.MonkeyPatch, answer: Any, ended: list[str]
) -> None:
    """None means that nobody is at a terminal; then they continue."""

    def interrupt(cluster: Script) -> None:
        raise KeyboardInterrupt

    def read(prompt: str) -> str:
        if isinstance(answer, str):
            return answer
        raise answer or AssertionError("nobody is there to ask")

    monkeypatch.setattr("sys.stdin.isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr("builtins.input", read)
    cluster = Script(interrupt)
    with pytest.raises(Interrupted, match="stopped waiting"):
        run(cluster, make_plan(make_jobs(2)), monkeypatch)
    assert cluster.cancelled == ended


def test_where_files_are_not_shared_it_waits_for_the_end_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(1)

    def ends(cluster: Script) -> None:
        cluster.ended["w1"] = Gone(words="has ended", began=True)

    cluster = Script(finish(jobs), lambda cluster: None, ends, apart=True)
    run(cluster, make_plan(jobs), monkeypatch)
    assert cluster.moves == [], "it has waited although all jobs were done"


@pytest.mark.parametrize(
    ("taken", "expected", "orders"),
    [(1, ["failed", "completed", "completed"], [3, 2]), (2, ["completed"] * 3, [3, 2, 1])],
    ids=["alone", "together"],
)
def test_a_worker_that_dies_while_it_loads_or_encodes_takes_along_only_what_it_had_taken(
    monkeypatch: pytest.MonkeyPatch, taken: int, expected: list[str], orders: list[int]
) -> None:
    jobs = make_jobs(3)

    def prepare_and_die(cluster: Script) -> None:
        for job in jobs[:taken]:
            job.paths.lock.write_text("1")
        cluster.ended["w1"] = Gone(words="ended as OUT_OF_MEMORY")

    cluster = Script(prepare_and_die, lambda _: write(jobs[expected.count("failed") :], State.COMPLETED))
    run(cluster, make_plan(jobs), monkeypatch)
    assert states(jobs) == expected
    assert [len(Queue(order.queue).read()[0]) for order, _ in cluster.orders] == orders


def test_a_worker_that_never_began_fails_its_jobs_and_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(2)

    def ends(cluster: Script) -> None:
        cluster.ended["w1"] = Gone(words="failed: no such image", began=False)

    cluster = Script(ends, apart=True)
    run(cluster, make_plan(jobs), monkeypatch)
    assert len(cluster.orders) == 1
    for job in jobs:
        manifest = read_manifest(job.folder)
        assert manifest["state"] == "failed"
        assert "no such image" in manifest["error"]
