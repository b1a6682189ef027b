"""How a command treats jobs that an earlier one submitted, before it has asked about their state."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from runner.check import Checker
from runner.errors import Detached, Interrupted, JobsFailed
from runner.jobs.job import Job, State, make_job, read_job, read_manifest, register, state_of, update_manifest
from runner.jobs.lock import lock
from runner.launch import door
from runner.launch.door import _take_up, check_one
from runner.launch.outcome import conclude, take_over
from runner.paths import outputs_dir
from runner.plan import Plan
from runner.schema import Experiment
from runner.system.machine import Device, Machine
from tests.weights import weights_of

THIS_MACHINE = Machine((Device("cpu", "here", memory_gb=None),), cores=1)
SLURM: dict[str, Any] = {"name": "slurm", "gpus_per_node": 0}


def submitted(state: State, ids: list[str]) -> Job:
    job = make_job(Experiment.model_validate({}), model="m", dataset="d", outputs=outputs_dir(), overrides=())
    register(job)
    update_manifest(job.folder, state=state, submission={"cluster": "slurm", "queue": "q", "ids": ids}, error="why")
    return job


@pytest.mark.parametrize(
    ("state", "ids", "launcher", "expected"),
    [
        (State.SUBMITTED, ["7"], SLURM, State.SUBMITTED),
        (State.RUNNING, ["7"], SLURM, State.RUNNING),
        (State.INTERRUPTED, ["7"], SLURM, State.INTERRUPTED),
        (State.FAILED, ["7"], SLURM, State.PENDING),
        (State.SUBMITTED, [], SLURM, State.PENDING),
        (State.RUNNING, ["7"], {"name": "local"}, State.PENDING),
    ],
)
def test_what_has_workers_in_a_queue_stays_to_be_found(
    state: State, ids: list[str], launcher: dict[str, Any], expected: State
) -> None:
    job = submitted(state, ids)
    _take_up(job, Experiment.model_validate({"launcher": launcher}).launcher)
    assert state_of(job.folder) is expected
    assert read_manifest(job.folder)["submission"]["ids"] == ids


@pytest.mark.parametrize("by", ["a worker of the queue", "another runner"])
def test_nobody_waits_for_what_is_worked_on_who_said_not_to(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = SLURM | {"wait": False}
    settings = Experiment.model_validate({"launcher": launcher})
    job = make_job(settings, model="m", dataset="d", outputs=outputs_dir(), overrides=())
    register(job)
    watched = []

    def submit(plan: Plan, *_: Any) -> None:
        watched.extend(plan.elsewhere)
        if by == "a worker of the queue":
            raise Detached("slurm 7 go on without this command.")

    queue = SimpleNamespace(machine=lambda _: THIS_MACHINE, collect=lambda *_: None, launch=submit)
    monkeypatch.setattr(door, "find_launcher", lambda _: queue)
    with lock(job.folder), pytest.raises(Detached):
        door._run([job], Checker(outputs_dir()), expected=0)

    assert [each.id for each in watched] == [job.id]


def test_where_nothing_can_be_locked_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Lustre that is mounted without flock: there, every job would seem to be another runner's, for ever."""

    def refuse(handle: object, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    checker = SimpleNamespace(job=lambda *_: Job("0", Experiment.model_validate({}), {}, outputs_dir() / "dev" / "0"))
    assert isinstance(check_one(checker, {}, (), {}), Job)  # type: ignore[arg-type]
    monkeypatch.setattr(fcntl, "flock", refuse)
    faults = check_one(checker, {}, (), {})  # type: ignore[arg-type]
    assert isinstance(faults, list) and [fault.partition(" = ")[0] for fault in faults] == [
        "RUNNER_OUTPUTS",
        "RUNNER_CACHE",
    ]
    assert "is on a file system without locks (Function not implemented; " in faults[0]


def test_why_a_job_was_pruned_once_is_not_said_of_what_became_of_it_since(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    job = make_job(Experiment.model_validate({}), model="m", dataset="d", outputs=outputs_dir(), overrides=())
    register(job)
    update_manifest(job.folder, state=State.PRUNED, reason="is not among the best")
    conclude([job])
    assert "pruned      is not among the best" in caplog.text
    caplog.clear()
    register(job)
    update_manifest(job.folder, state=State.INTERRUPTED)
    with pytest.raises(Interrupted):
        conclude([job])
    assert "interrupted" in caplog.text
    assert "among the best" not in caplog.text


def test_the_last_table_has_columns(caplog: pytest.LogCaptureFixture) -> None:
    """Even if a job has no result, or a longer one."""
    caplog.set_level(logging.INFO)
    jobs = []
    endings: list[dict[str, Any]] = [
        {"state": State.COMPLETED, "objective": 0.25, "objective_name": "validation/loss"},
        {"state": State.PRUNED, "reason": "validation/loss 0.5 at step 4 is not among the best"},
        {"state": State.FAILED, "error": "the loss is nan"},
    ]
    for seed, about in enumerate(endings):
        experiment = Experiment.model_validate({"seed": seed})
        given = (f"seed={seed}",)
        jobs.append(make_job(experiment, model="m", dataset="d", outputs=outputs_dir(), overrides=given))
        register(jobs[-1])
        update_manifest(jobs[-1].folder, **about)
    with pytest.raises(JobsFailed):
        conclude(jobs)
    lines = [line for line in caplog.messages if line.startswith(tuple(job.id for job in jobs))]
    assert len({line.index("seed=") for line in lines}) == 1 and len(lines) == 3


@pytest.mark.parametrize(("losses", "best"), [((0.25, 0.5), "seed=0"), ((0.25, 0.25), None), ((0.5,), None)])
def test_the_last_table_marks_the_best_of_several_jobs(
    losses: tuple[float, ...], best: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    jobs = []
    for seed, loss in enumerate(losses):
        given = Experiment.model_validate({"seed": seed})
        jobs.append(make_job(given, model="m", dataset="d", outputs=outputs_dir(), overrides=(f"seed={seed}",)))
        register(jobs[-1])
        update_manifest(jobs[-1].folder, state=State.COMPLETED, objective=loss, objective_name="validation/loss")
    conclude(jobs)
    marked = [line for line in caplog.messages if "(best)" in line]
    assert [f"validation/loss 0.2500 (best)  {best}" in line for line in marked] == [True] * (best is not None)


def test_a_failure_is_told_with_its_reason_although_other_jobs_are_not_done_either() -> None:
    settings = [Experiment.model_validate({"seed": seed}) for seed in (1, 2)]
    failed, stopped = (
        make_job(each, model="m", dataset="d", outputs=outputs_dir(), overrides=("steps=9", f"seed={each.seed}"))
        for each in settings
    )
    for job in (failed, stopped):
        register(job)
    update_manifest(failed.folder, state=State.FAILED, error="the loss is nan")
    update_manifest(stopped.folder, state=State.INTERRUPTED)
    with pytest.raises(JobsFailed) as raised:
        conclude([failed, stopped, failed])
    assert str(raised.value).splitlines() == [
        "1 of 2 jobs failed:",
        f"  {failed.id} seed=1",
        "    the loss is nan",
        f"    log: {failed.paths.log}",
        "Run the same command again to retry only these.",
    ]


def test_trainings_that_differ_are_shown_in_a_workspace_by_what_they_differ_in(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[tuple[str, list[str]]] = []

    def save(_: object, *, experiment: str, keys: list[str], **__: object) -> None:
        saved.append((experiment, keys))

    monkeypatch.setattr("runner.track.save_workspace", save)
    settings = [Experiment.model_validate({"seed": seed}) for seed in (1, 2)]
    jobs = [make_job(each, model="m", dataset="d", outputs=outputs_dir(), overrides=()) for each in settings]
    for job in jobs:
        register(job, State.COMPLETED)
    conclude(jobs[:1])
    conclude(jobs)
    assert saved == [(jobs[0].settings.name, ["seed"])] * 2, "the folder counts, not the command"


@pytest.mark.parametrize(
    ("asked", "found"), [("train/loss", 0.3), ("validation/loss", 0.9), ("validation/loss_t0062", None)]
)
def test_jobs_that_are_done_are_judged_by_the_objective_of_this_command(
    asked: str, found: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not part of their ids, so another objective starts nothing; the record has the value that it asks for."""
    caplog.set_level(logging.INFO)
    job = make_job(Experiment.model_validate({}), model="m", dataset="d", outputs=outputs_dir(), overrides=())
    register(job)
    judged = {"objective": 0.7, "objective_name": "validation/loss", "objective_direction": "minimize"}
    update_manifest(job.folder, state=State.COMPLETED, **judged)
    job.paths.weights.parent.mkdir()
    job.paths.weights.write_bytes(weights_of())
    last = {"step": 2, "train/loss": 0.3, "validation/loss": 0.9}
    job.paths.metrics.write_text('{"step": 1, "train/loss": 0.5}\n' + json.dumps(last) + "\n")

    other = Experiment.model_validate({"objective": {"name": asked, "direction": "maximize"}})
    again = make_job(other, model="m", dataset="d", outputs=outputs_dir(), overrides=())
    assert again.folder == job.folder
    door._run([again], Checker(outputs_dir()), expected=0)

    manifest = read_manifest(job.folder)
    assert manifest["objective_name"] == asked
    assert manifest["objective_direction"] == "maximize"
    assert manifest["objective"] == found
    assert read_job(job.folder).experiment == job.experiment.model_copy(update={"objective": other.objective})
    assert (f"{asked} {found or 0:.4f}" in caplog.text) is (found is not None)
    assert (f"{job.id}: its record has no {asked}" in caplog.text) is (found is None)


def test_a_job_that_another_runner_has_taken_up_is_not_judged_meanwhile() -> None:
    job = make_job(Experiment.model_validate({}), model="m", dataset="d", outputs=outputs_dir(), overrides=())
    register(job)
    update_manifest(job.folder, objective=0.7, objective_name="validation/loss", objective_direction="minimize")
    other = Experiment.model_validate({"objective": {"name": "train/loss"}})
    held, config = read_manifest(job.folder), job.paths.config.read_text()
    with lock(job.folder):
        take_over(dataclasses.replace(job, settings=other))
    assert read_manifest(job.folder) == held
    assert job.paths.config.read_text() == config
    take_over(dataclasses.replace(job, settings=other))
    assert read_manifest(job.folder)["objective_name"] == "train/loss"


@pytest.mark.parametrize("content", [None, "", "task: {name: train"])
def test_a_job_that_is_done_gets_its_settings_back(content: str | None) -> None:
    """Reports, tasks and clean read them, and say that the command which made the job writes them again."""
    job = make_job(Experiment.model_validate({"seed": 3}), model="m", dataset="d", outputs=outputs_dir(), overrides=())
    register(job, State.COMPLETED)
    job.paths.weights.parent.mkdir()
    job.paths.weights.write_bytes(weights_of())
    if content is None:
        job.paths.config.unlink()
    else:
        job.paths.config.write_text(content)

    door._run([job], Checker(outputs_dir()), expected=0)

    assert read_job(job.folder).experiment == job.experiment
    assert state_of(job.folder) is State.COMPLETED
