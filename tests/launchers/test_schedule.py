"""Signals at a bad time: no worker is left running that nobody can stop any more. With workers that do nothing."""

from __future__ import annotations

import dataclasses
import errno
import os
import pty
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner import work
from runner.errors import Interrupted
from runner.jobs.job import Job, State, read_manifest, register, state_of, update_manifest
from runner.jobs.lock import last_holder, lock
from runner.jobs.queue import Queue
from runner.launchers import schedule, worker
from runner.plan import Pack, Plan
from runner.schema import LocalLauncher
from runner.system import signals
from runner.system.machine import Device, Machine
from runner.system.signals import StopSignal
from runner.work import INTERRUPTED_CODE
from tests.plan.test_packs import seeds

MACHINE = Machine((Device("cpu", "a processor", 16.0),), cores=4)


class IdleWorker:
    """Takes no jobs, and ends when it is told to."""

    made: list[IdleWorker]
    when_made: Callable[[int], None]

    def __init__(self, *_: Any, places: list[str], **__: Any) -> None:
        self.places, self.log, self.exit_code = places, None, None
        self.made.append(self)
        type(self).when_made(len(self.made))

    exit_code: int | None

    def stop(self, *, at_once: bool = False, hung_up: bool = False) -> None:
        self.exit_code = -signal.SIGINT if at_once else -signal.SIGTERM


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plan:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(schedule, "Worker", IdleWorker)
    monkeypatch.setattr(IdleWorker, "made", [], raising=False)
    monkeypatch.setattr(IdleWorker, "when_made", lambda count: None, raising=False)
    jobs = seeds(3)
    for job in jobs:
        register(job)
    return Plan((Pack(tuple(jobs), 1, 3, 1, ""),), MACHINE, places=3)


def test_a_worker_on_the_terminal_hears_of_a_signal_to_the_runner_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(worker, "worker_command", lambda *_, **__: sleeps)
    queue = tmp_path / "queue.json"
    made = worker.Worker(queue, at_once=1, places=["0"], machine=MACHINE, device="cpu", log=None, at_most=1)
    made.stop()
    assert made.process.wait(timeout=30) == -signal.SIGTERM


def test_torchrun_does_not_hear_a_terminal_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half a minute after a Ctrl-C, torchrun would kill processes that are still saving."""
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(worker, "worker_command", lambda *_, **__: sleeps)
    made = worker.Worker(
        tmp_path / "q.json", at_once=1, places=["0", "0"], machine=MACHINE, device="cpu", log=None, at_most=1
    )
    assert os.getsid(made.process.pid) == made.process.pid
    made.stop(hung_up=True)
    assert made.process.wait(timeout=30) == -signal.SIGHUP, "so that it does not write there any more"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_workers_are_being_started_reaches_all_of_them(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(schedule, "streams_on_terminal", list)
    monkeypatch.setattr(IdleWorker, "when_made", lambda count: os.kill(os.getpid(), number) if count == 2 else None)
    with pytest.raises(Interrupted):
        schedule.Schedule(plan, LocalLauncher(name="local"), None).run()
    assert len(IdleWorker.made) == 2, "none is started after it"
    assert all(each.exit_code is not None for each in IdleWorker.made)


class Busy(IdleWorker):
    """Has started the first jobs, and ends only when it is told to end at once."""

    def __init__(self, queue: Path, **more: Any) -> None:
        super().__init__(queue, **more)
        for folder in Queue(queue).read()[0][:2]:
            update_manifest(folder, state=State.RUNNING)
        os.kill(os.getpid(), signal.SIGINT)

    def stop(self, *, at_once: bool = False, hung_up: bool = False) -> None:
        if at_once:
            super().stop(at_once=True)
        else:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()


def test_a_second_ctrl_c_does_not_wait_until_all_is_saved(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "Worker", Busy)
    monkeypatch.setattr(schedule, "SECOND_AFTER_S", 0.05)
    with pytest.raises(Interrupted):
        schedule.Schedule(plan, LocalLauncher(name="local"), None).run()
    assert [each.exit_code for each in Busy.made] == [-signal.SIGINT]
    assert [state_of(job.folder) for job in plan.todo] == [State.INTERRUPTED, State.INTERRUPTED, State.PENDING]


def test_further_jobs_of_a_search_come_to_those_over_the_same_base(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    alike, other = seeds(4)[3], seeds(1, resolution=128)[0]
    further, lists = [[alike], [other]], list[tuple[str, set[Path]]]()

    class Done(IdleWorker):
        def __init__(self, queue: Path, **more: Any) -> None:
            super().__init__(queue, **more)
            lists.append((queue.name, set(Queue(queue).read()[0])))
            for folder in lists[-1][1]:
                update_manifest(folder, state=State.COMPLETED)
            self.exit_code = 0

    def more(room: int) -> list[Job]:
        if not further or any(state_of(job.folder) is State.PENDING for job in plan.todo):
            return []
        for job in further[0]:
            register(job)
        return further.pop(0)

    monkeypatch.setattr(schedule, "Worker", Done)
    monkeypatch.setattr(schedule, "POLL_S", 0.01)
    schedule.Schedule(plan, LocalLauncher(name="local"), more).run()
    first = {job.folder for job in plan.todo}
    assert lists[-2:] == [("1.json", first | {alike.folder}), ("2.json", {other.folder})]


def test_workers_save_and_end_before_the_runner_that_meets_an_error(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = []

    class Watched(IdleWorker):
        def __init__(self, queue: Path, **more: Any) -> None:
            super().__init__(queue, **more)
            self.queue = queue

        def stop(self, *, at_once: bool = False, hung_up: bool = False) -> None:
            lists.append(self.queue.is_file())
            super().stop(at_once=at_once)

    def full_disk(count: int) -> list[Job]:
        if IdleWorker.made:
            raise OSError(errno.ENOSPC, "No space left on device")
        return []

    monkeypatch.setattr(schedule, "Worker", Watched)
    monkeypatch.setattr(schedule, "POLL_S", 0.01)
    few = Plan((dataclasses.replace(plan.packs[0], jobs=plan.packs[0].jobs[:2]),), MACHINE, places=3)
    with pytest.raises(OSError, match="No space left"):
        schedule.Schedule(few, LocalLauncher(name="local"), full_disk).run()
    assert [each.exit_code for each in IdleWorker.made] == [-signal.SIGTERM] * 2
    assert lists == [True, True], "what they still look into is there"


def test_a_worker_takes_a_ctrl_c_that_reaches_it_twice_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        monkeypatch.setattr(signals, "SECOND_AFTER_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("by_torchrun", "ended"), [(True, {INTERRUPTED_CODE}), (False, set())], ids=["group", "alone"])
def test_processes_whose_torchrun_is_gone_do_not_wait_to_meet_each_other(
    monkeypatch: pytest.MonkeyPatch, by_torchrun: bool, ended: set[int]
) -> None:
    parents, codes, over = iter((10, 10)), set[int](), threading.Event()

    def leave(code: int) -> None:
        codes.add(code)
        over.set()

    monkeypatch.setattr(work, "LOOK_S", 0.01)
    monkeypatch.setattr(os, "getppid", lambda: next(parents, 1))
    monkeypatch.setattr(os, "_exit", leave)
    if by_torchrun:
        monkeypatch.setenv(work.MADE_BY_TORCHRUN, "none")
    with work._no_longer_than_its_parent():
        over.wait(5.0 if by_torchrun else 0.1)
    assert codes == ended


def test_a_list_of_jobs_that_the_system_has_cleared_away_is_written_again(plan: Plan, tmp_path: Path) -> None:
    share = schedule._Share(plan.packs[0], tmp_path / "lists", 1)
    share.write(is_open=False)
    shutil.rmtree(tmp_path / "lists")
    share.write(is_open=False)
    assert share.queue.read() == ([job.folder for job in plan.todo], False)


def test_who_is_told_to_outlive_the_terminal_does(plan: Plan) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop, schedule.Schedule(plan, LocalLauncher(name="local"), None)._signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_worker_whose_terminal_is_gone_is_to_save_and_may_still_write(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, stream = pty.openpty()
    monkeypatch.setattr(signals, "streams_on_terminal", lambda: [stream])
    with StopSignal() as stop:
        os.close(terminal)
        with pytest.raises(OSError, match="Input/output error"):
            os.write(stream, b"a line")
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested
    os.write(stream, b"a line")
    os.close(stream)


class Crashing:
    """Workers that die soon, one after the other: whenever one is seen to have died, others are still alive."""

    made = 0

    def __init__(self, *_: Any, places: list[str], **__: Any) -> None:
        self.places, self.log = places, None
        type(self).made += 1
        assert type(self).made < 100
        self.looks = min(type(self).made, 3)

    @property
    def exit_code(self) -> int | None:
        self.looks -= 1
        return None if self.looks > 0 else -signal.SIGSEGV

    def had(self, job: Job) -> bool:
        return False


def test_workers_that_all_die_before_they_take_a_job_are_not_begun_for_ever(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "Worker", Crashing)
    monkeypatch.setattr(schedule, "POLL_S", 0.0)
    schedule.Schedule(plan, LocalLauncher(name="local"), None).run()
    assert {state_of(job.folder) for job in plan.todo} == {State.FAILED}
    assert "before this job began" in read_manifest(plan.todo[0].folder)["error"]


class Preparing(IdleWorker):
    """Takes the first jobs, and dies before any of them is training; the next worker completes one."""

    takes = 2

    def __init__(self, queue: Path, *, places: list[str], **more: Any) -> None:
        super().__init__(queue, places=places, **more)
        folders = [folder for folder in Queue(queue).read()[0] if state_of(folder) is State.PENDING]
        self.taken = folders[: self.takes] if len(self.made) == 1 else []
        self.exit_code = -signal.SIGKILL if self.taken else 0
        for folder in [] if self.taken else folders:
            update_manifest(folder, state=State.COMPLETED)

    def had(self, job: Job) -> bool:
        return job.folder in self.taken


@pytest.mark.parametrize(("takes", "failed"), [(1, 1), (2, 0)], ids=["alone", "together"])
def test_a_worker_that_dies_while_it_prepares_jobs_takes_no_others_along(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, takes: int, failed: int
) -> None:
    monkeypatch.setattr(schedule, "Worker", Preparing)
    monkeypatch.setattr(Preparing, "takes", takes)
    monkeypatch.setattr(schedule, "POLL_S", 0.0)
    plan = dataclasses.replace(plan, packs=(dataclasses.replace(plan.packs[0], workers=1, at_once=2),), places=1)
    schedule.Schedule(plan, LocalLauncher(name="local"), None).run()
    states = [state_of(job.folder) for job in plan.todo]
    assert states == [State.FAILED] * failed + [State.COMPLETED] * (3 - failed)
    if failed:
        assert "while this job was being prepared" in read_manifest(plan.todo[0].folder)["error"]


@pytest.mark.parametrize("places", [["0"], ["0", "0"]], ids=["one process", "several"])
def test_a_worker_knows_by_the_locks_what_it_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plan: Plan, places: list[str]
) -> None:
    script = f"""
from pathlib import Path
from runner.jobs.lock import lock
with lock(Path({str(plan.todo[0].folder)!r})):
    pass
"""
    monkeypatch.setattr(worker, "worker_command", lambda *_, **__: [sys.executable, "-c", script])
    queue = tmp_path / "queue.json"
    made = worker.Worker(queue, at_once=1, places=places, machine=MACHINE, device="cpu", log=None, at_most=1)
    made.process.wait(timeout=30)
    with lock(plan.todo[1].folder):
        pass
    assert [made.had(job) for job in plan.todo] == [True, False, False]


def test_what_is_taken_up_again_counts_as_had_by_nobody(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    class Taking(Preparing):
        def __init__(self, queue: Path, **more: Any) -> None:
            super().__init__(queue, **more)
            for folder in self.taken:
                (folder / ".lock").write_text("1")

    monkeypatch.setattr(schedule, "Worker", Taking)
    monkeypatch.setattr(schedule, "POLL_S", 0.0)
    plan = dataclasses.replace(plan, packs=(dataclasses.replace(plan.packs[0], workers=1, at_once=2),), places=1)
    schedule.Schedule(plan, LocalLauncher(name="local"), None).run()
    assert [last_holder(job.folder) for job in plan.todo[:2]] == [os.getpid()] * 2


class Late(Preparing):
    """The first dies without having done anything; before that is noticed, another command prepares its jobs."""

    takes = 0

    def __init__(self, queue: Path, **more: Any) -> None:
        super().__init__(queue, **more)
        if len(self.made) == 1:
            self.exit_code = -signal.SIGKILL
            for folder in Queue(queue).read()[0]:
                update_manifest(folder, state=State.PENDING)
                (folder / ".lock").write_text(str(os.getppid()))


def test_what_another_command_has_made_ready_meanwhile_is_not_failed(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "Worker", Late)
    monkeypatch.setattr(schedule, "POLL_S", 0.0)
    plan = dataclasses.replace(plan, packs=(dataclasses.replace(plan.packs[0], workers=1),), places=1)
    schedule.Schedule(plan, LocalLauncher(name="local"), None).run()
    assert {state_of(job.folder) for job in plan.todo} == {State.COMPLETED}


def test_what_another_command_has_done_since_the_look_is_not_done_again(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    share, job = schedule._Share(plan.packs[0], tmp_path, 1), plan.todo[0]
    update_manifest(job.folder, state=State.INTERRUPTED)
    share.look()

    def has_been_done(folder: Path) -> bool:
        update_manifest(folder, state=State.COMPLETED)
        return False

    monkeypatch.setattr(schedule, "is_held", has_been_done)
    share.recover()
    assert state_of(job.folder) is State.COMPLETED


def test_when_one_worker_is_stopped_the_others_are_too(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped_soon(count: int) -> None:
        if count == 3:
            IdleWorker.made[0].exit_code = INTERRUPTED_CODE

    monkeypatch.setattr(IdleWorker, "when_made", stopped_soon)
    begun = time.monotonic()
    with pytest.raises(Interrupted):
        schedule.Schedule(plan, LocalLauncher(name="local"), None).run()
    assert [each.exit_code for each in IdleWorker.made] == [INTERRUPTED_CODE, -signal.SIGTERM, -signal.SIGTERM]
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(("places", "is_search", "after"), [(3, False, 3), (1, False, None), (3, True, None)])
def test_the_libraries_are_kept_for_workers_still_to_come(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, places: int, is_search: bool, after: int | None
) -> None:
    forgotten: list[int] = []
    monkeypatch.setattr(schedule, "forget_libraries", lambda: forgotten.append(len(IdleWorker.made)))
    more = (lambda _room: []) if is_search else None
    now = schedule.Schedule(dataclasses.replace(plan, places=places), LocalLauncher(name="local"), more)
    now._shares = [schedule._Share(plan.packs[0], Path.cwd(), 1)]
    now._start_workers()
    assert forgotten == ([] if after is None else [after])
