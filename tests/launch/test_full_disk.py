"""A disk that is full when the runner itself writes: the outcome of the jobs is reported all the same."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.check import Checker
from runner.errors import JobsFailed, RunnerError
from runner.jobs.job import Job, State, register, update_manifest
from runner.launch import door
from runner.launch.outcome import conclude
from runner.paths import outputs_dir
from runner.system.machine import Device, Machine
from tests.plan.test_packs import seeds

FULL = OSError(errno.ENOSPC, "No space left on device", "report.html")


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sequence[Job]:
    monkeypatch.chdir(tmp_path)
    found = seeds(2)
    for job in found:
        register(job, State.COMPLETED)
    return found


def refuse(*_: Any) -> None:
    raise FULL


def test_the_table_is_shown_although_the_report_cannot_be_written(
    jobs: Sequence[Job], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("runner.report.write_report", refuse)
    with pytest.raises(RunnerError, match=r"but for the report.* python -m runner\.report ") as raised:
        conclude(jobs)
    assert str(raised.value).endswith(f"python -m runner.report {jobs[0].folder.parent}")
    assert not isinstance(raised.value, OSError), "that would mean that nothing was started"
    assert all(f"{job.id}  completed" in caplog.text for job in jobs)
    assert "the report cannot be written: [Errno 28]" in caplog.text
    update_manifest(jobs[0].folder, state=State.FAILED, error="the disk is full")
    with pytest.raises(JobsFailed, match="1 of 2 jobs failed"):
        conclude(jobs)


def test_a_command_that_ends_early_does_not_say_that_nothing_was_started(
    jobs: Sequence[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = SimpleNamespace(
        machine=lambda _: Machine((Device("cpu", "a processor", 16.0),), cores=1),
        collect=lambda *_: None,
        launch=refuse,
    )
    monkeypatch.setattr(door, "find_launcher", lambda _: here)
    monkeypatch.setattr(door, "show", lambda *_: None)
    update_manifest(jobs[0].folder, state=State.PENDING)
    with pytest.raises(RunnerError, match=r"No space left .* ended early, .* run the same command again"):
        door._run(jobs, Checker(outputs_dir()), expected=0)
