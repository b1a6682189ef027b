"""Which workers are started when, and in which places. With workers that do only what is written here."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from runner.jobs.job import Job, State, register, state_of, update_manifest
from runner.jobs.lock import lock
from runner.jobs.queue import Queue
from runner.launchers import schedule
from runner.plan import Pack, Plan
from runner.schema import LocalLauncher
from tests.launchers.test_schedule import MACHINE, IdleWorker, plan
from tests.plan.test_packs import seeds

__all__ = ["plan"]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = list(range(100))

    def look_again(_: float) -> None:
        assert looks, "it waits for something that will never happen"
        looks.pop()

    monkeypatch.setattr(time, "sleep", look_again)


def run(plan: Plan, more: Callable[[int], list[Job]] | None = None) -> None:
    schedule.Schedule(plan, LocalLauncher(name="local"), more).run()


def test_a_worker_that_has_died_is_replaced_while_others_are_at_work(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (job.folder for job in plan.todo)
    held = ExitStack()

    class OneDies(IdleWorker):
        def __init__(self, *words: Any, **more: Any) -> None:
            super().__init__(*words, **more)
            if len(self.made) == 1:
                update_manifest(first, state=State.RUNNING)
                self.exit_code = -signal.SIGKILL
            elif len(self.made) == 2:
                held.enter_context(lock(second))
                update_manifest(second, state=State.RUNNING)
            else:
                held.close()
                for folder, each in ((second, self.made[1]), (third, self)):
                    update_manifest(folder, state=State.COMPLETED)
                    each.exit_code = 0

        def had(self, job: Job) -> bool:
            return job.folder == first

    monkeypatch.setattr(schedule, "Worker", OneDies)
    run(dataclasses.replace(plan, packs=(dataclasses.replace(plan.packs[0], workers=2),), places=2))
    assert [state_of(job.folder) for job in plan.todo] == [State.FAILED, State.COMPLETED, State.COMPLETED]


def test_a_worker_of_a_search_gives_its_place_to_a_pack_that_waits_for_one(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WhileOpen(IdleWorker):
        """Does all available jobs, and waits for more as long as its queue is open."""

        def __init__(self, queue: Path, **more: Any) -> None:
            super().__init__(queue, **more)
            self.queue = Queue(queue)
            for folder in self.queue.read()[0]:
                update_manifest(folder, state=State.COMPLETED)

        @property
        def exit_code(self) -> int | None:
            return None if self.queue.read()[1] else 0

        @exit_code.setter
        def exit_code(self, code: int | None) -> None:
            pass

    other, asked = seeds(1, resolution=128)[0], list[int]()
    register(other)

    def none(room: int) -> list[Job]:
        asked.append(room)
        return []

    monkeypatch.setattr(schedule, "Worker", WhileOpen)
    run(Plan((Pack(plan.todo[:1], 1, 1, 1, ""), Pack((other,), 1, 1, 1, "")), MACHINE, places=1), none)
    assert state_of(other.folder) is State.COMPLETED
    assert (asked[0], asked[-1]) == (1, 2), "as many as there is nothing else to do for"


def test_processes_of_a_worker_share_a_place_of_the_cpu(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    class Does(IdleWorker):
        def __init__(self, *words: Any, **more: Any) -> None:
            super().__init__(*words, **more)
            update_manifest(plan.todo[len(self.made) - 1].folder, state=State.COMPLETED)
            self.exit_code = 0 if len(self.made) > 1 else None
            self.made[0].exit_code = self.exit_code

    monkeypatch.setattr(schedule, "Worker", Does)
    run(Plan((Pack(plan.todo[:2], 1, 2, 2, ""),), MACHINE, places=2))
    assert [each.places for each in Does.made] == [["0", "0"], ["1", "1"]]


@pytest.mark.parametrize(("code", "tries"), [(-signal.SIGSEGV, 1), (1, 3), (0, 3)])
def test_a_worker_that_takes_no_job_is_begun_again_only_a_few_times(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, code: int, tries: int
) -> None:
    class TakesNone(IdleWorker):
        def __init__(self, *words: Any, **more: Any) -> None:
            super().__init__(*words, **more)
            self.exit_code = code

        def had(self, job: Job) -> bool:
            return False

    monkeypatch.setattr(schedule, "Worker", TakesNone)
    run(dataclasses.replace(plan, packs=(dataclasses.replace(plan.packs[0], workers=1),), places=1))
    assert len(TakesNone.made) == tries
    assert {state_of(job.folder) for job in plan.todo} == {State.FAILED}


def test_a_job_that_another_runner_is_about_to_begin_is_left_to_it(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    class TakesTheOthers(IdleWorker):
        def __init__(self, *words: Any, **more: Any) -> None:
            super().__init__(*words, **more)
            for job in plan.todo[1:]:
                update_manifest(job.folder, state=State.COMPLETED)
            self.exit_code = 0

    monkeypatch.setattr(schedule, "Worker", TakesTheOthers)
    with lock(plan.todo[0].folder):
        run(dataclasses.replace(plan, packs=(dataclasses.replace(plan.packs[0], workers=1),), places=1))
    assert len(TakesTheOthers.made) == 1
    assert state_of(plan.todo[0].folder) is State.PENDING
