"""Signals that come at a bad time: no worker goes on that nobody can stop any more. With workers that do nothing."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.errors import Interrupted
from runner.job import register
from runner.launchers import schedule, worker
from runner.machine import Device, Machine
from runner.plan import Pack, Plan
from runner.schema import LocalLauncher
from runner.work import INTERRUPTED_CODE
from tests.plan.test_packs import seeds

MACHINE = Machine((Device("cpu", "a processor", 16.0),), cores=4)


class IdleWorker:
    """Takes nothing, and ends when it is told to."""

    made: list[IdleWorker]
    when_made: Callable[[int], None]

    def __init__(self, *_: Any, places: list[str], **__: Any) -> None:
        self.places, self.log, self.exit_code = places, None, None
        self.made.append(self)
        type(self).when_made(len(self.made))

    exit_code: int | None

    def stop(self) -> None:
        self.exit_code = -signal.SIGTERM


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_workers_are_being_started_reaches_all_of_them(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(IdleWorker, "when_made", lambda count: os.kill(os.getpid(), number) if count == 2 else None)
    with pytest.raises(Interrupted):
        schedule.Schedule(plan, LocalLauncher(name="local"), None).run()
    assert len(IdleWorker.made) == 2, "none is started after it"
    assert all(each.exit_code is not None for each in IdleWorker.made)


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
