"""A stand-in for Slurm, and the settings of small jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.fake_slurm import ENDED, FakeJob, install, jobs

DEADLINE_S = 120.0


class Slurm:
    """The cluster, as a test sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def jobs(self) -> list[FakeJob]:
        return jobs()

    @property
    def states(self) -> list[str]:
        return [job.state for job in self.jobs]

    def wait_until(self, number: int, *states: str) -> FakeJob:
        """Wait until there are `number` jobs and the last of them is in one of the states."""
        deadline = time.monotonic() + DEADLINE_S
        while len(self.jobs) < number or self.jobs[number - 1].state not in states:
            assert time.monotonic() < deadline, self.states
            time.sleep(0.05)
        return self.jobs[number - 1]

    def is_full(self, full: bool) -> None:
        """Let the cluster be full, so that nothing starts, or no longer full."""
        file = self.folder / "full"
        file.touch() if full else file.unlink()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """The commands of a single-machine Slurm on the PATH; what still runs at the end of the test is ended."""
    folder = tmp_path / "slurm"
    for name, value in install(folder).items():
        monkeypatch.setenv(name, value)
    yield Slurm(folder)
    deadline = time.monotonic() + DEADLINE_S
    while (running := [job for job in jobs() if job.state not in ENDED]) and time.monotonic() < deadline:
        for job in running:
            job.order("exhaust")  # a job whose node breaks might be started again
        time.sleep(0.2)


def job_settings(model: Path) -> list[str]:
    """A small job."""
    return [f"model.path={model}", "logger=none", "validation.prompts=[]", "steps=40", "checkpoint.every=5"]


@pytest.fixture
def settings(sdxl_folder: Path) -> list[str]:
    return [*job_settings(sdxl_folder), "launcher=slurm", "launcher.gpus_per_node=0"]
