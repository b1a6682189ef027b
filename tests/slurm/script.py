"""A cluster whose every move is scripted, jobs for it, and commands that use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from runner.jobs.job import Job, State, make_job, register, state_of, update_manifest
from runner.launchers import dispatch
from runner.launchers.cluster import Gone, NoRoom, NotSubmitted, Order
from runner.launchers.dispatch import Dispatch
from runner.paths import outputs_dir
from runner.plan import Pack, Plan
from runner.schema import Experiment, SlurmLauncher
from runner.system.machine import Device, Machine

ENDED, TAKEN = Gone(words="ended as FAILED"), Gone(words="ended as PREEMPTED", reason="taken")
CANCELLED = Gone(words="was cancelled", reason="cancelled")
LAUNCHER = SlurmLauncher.model_validate({"name": "slurm", "gpus_per_node": 0})
MACHINE = Machine((Device("cpu", "a node", None),), cores=1)


class Script:
    """A cluster that makes its next move at each look, and does nothing else."""

    name = "script"

    def __init__(
        self, *moves: Callable[[Script], None], refuses: str = "", full: str = "", apart: bool = False
    ) -> None:
        self.moves, self.refuses, self.full = list(moves), refuses, full
        self.shares_files = not apart
        self.cancelled: list[str] = []
        self.tries = 0
        self.orders: list[tuple[Order, str | None]] = []
        self.ended: dict[str, Gone] = {}

    def submit(self, order: Order, *, after: str | None) -> str:
        self.tries += 1
        if str(self.tries) in self.full.split():
            raise NoRoom("full")
        if str(len(self.orders)) in self.refuses.split():
            raise NotSubmitted("no more")
        self.orders.append((order, after))
        return f"w{len(self.orders)}"

    def gone(self, workers: Mapping[str, Sequence[Job]]) -> Mapping[str, Gone]:
        return {worker: self.ended[worker] for worker in workers if worker in self.ended}

    def log(self, worker: str, folder: Path) -> Path:
        return folder / f"{worker}.log"

    def cancel(self, workers: Sequence[str]) -> None:
        self.cancelled += workers

    def how_to_cancel(self, workers: Sequence[str]) -> str:
        return " ".join(["cancel", *workers])


def make_jobs(count: int) -> list[Job]:
    jobs = []
    for seed in range(count):
        experiment = Experiment.model_validate({"name": "sweep", "seed": seed})
        jobs.append(make_job(experiment, model="m", dataset="d", outputs=outputs_dir(), overrides=(f"seed={seed}",)))
        register(jobs[-1])
    return jobs


def make_plan(jobs: Sequence[Job], *, at_once: int = 8, workers: int = 1) -> Plan:
    return Plan((Pack(tuple(jobs), at_once, workers, 1, ""),), MACHINE)


def run(cluster: Script, plan: Plan, monkeypatch: pytest.MonkeyPatch, more: Any = None, **settings: Any) -> Dispatch:
    def next_move(seconds: float) -> None:
        assert cluster.moves, "it waits for something that will never happen"
        cluster.moves.pop(0)(cluster)

    monkeypatch.setattr(dispatch, "sleep", next_move)
    launcher = SlurmLauncher.model_validate({"name": "slurm", "gpus_per_node": 0, **settings})
    made = Dispatch(plan, launcher, cluster, more)
    made.run()
    return made


def write(jobs: Sequence[Job], state: State, **fields: Any) -> None:
    for job in jobs:
        update_manifest(job.folder, state=state, **fields)


def states(jobs: Sequence[Job]) -> list[str]:
    return [state_of(job.folder).value for job in jobs]


def finish(jobs: Sequence[Job]) -> Callable[[Script], None]:
    return lambda cluster: write(jobs, State.COMPLETED)


def die(jobs: Sequence[Job], worker: str, gone: Gone) -> Callable[[Script], None]:
    """A move: a worker is killed in the middle of these jobs."""

    def move(cluster: Script) -> None:
        write(jobs, State.RUNNING, worker=worker)
        cluster.ended[worker] = gone

    return move
