"""Training jobs that cost money are found again, whatever became of the command that has sent them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner import stop
from runner.aws.account import Account
from runner.jobs.job import Job, make_job, register
from runner.jobs.queue import Queue
from runner.launchers.cluster import NotSubmitted
from runner.launchers.lots import Lot
from runner.launchers.sagemaker.training_jobs import SageMakerCluster
from runner.plan import Pack
from runner.schema import Experiment, SageMakerLauncher
from tests.sagemaker.stand_in import StandIn

WAITS = ["sh", "-c", "trap 'exit 0' TERM; while sleep 0.05; do :; done"]


@pytest.fixture
def job(aws: StandIn, tmp_path: Path) -> Job:
    place = {"image": aws.add_image("lora:1", WAITS), "role": aws.role, "bucket": aws.bucket}
    launcher = {"name": "sagemaker", "instance": "ml.m5.xlarge", "poll_s": 0.1, **place}
    made = make_job(Experiment.model_validate({"launcher": launcher}), model="m", dataset="d", outputs=tmp_path)
    register(made)
    return made


@pytest.fixture
def reached(job: Job, monkeypatch: pytest.MonkeyPatch) -> SageMakerCluster:
    """The cluster; of the project's code it sends nothing, which takes seconds."""
    settings = job.settings.launcher
    assert isinstance(settings, SageMakerLauncher)
    monkeypatch.setattr("runner.launchers.sagemaker.inputs.code_archive", lambda: b"code")
    return SageMakerCluster(settings, Account(settings), image=settings.image or "")


def lot_of(job: Job) -> Lot:
    lot = Lot(Pack((job,), 1, 1, 1, ""), "sagemaker")
    lot.begin(lot.jobs)
    lot.write()
    return lot


def broken_off(ask: Callable[..., object]) -> Callable[..., object]:
    def asked(**request: Any) -> object:
        ask(**request)
        raise KeyboardInterrupt

    return asked


def test_one_whose_command_ends_before_the_answer_is_stopped(
    aws: StandIn, job: Job, reached: SageMakerCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    lot, client = lot_of(job), reached.account.sagemaker
    monkeypatch.setattr(client, "create_training_job", broken_off(client.create_training_job))
    with pytest.raises(KeyboardInterrupt):
        reached.submit(lot.order("cpu"), after=None)
    (name,) = aws.jobs
    lot.find_workers()
    assert lot.alive == [name], "the command that was broken off says that it goes on"

    assert stop.main([str(job.folder.parent)]) == 0
    assert [each["TrainingJobName"] for each in aws.asked("StopTrainingJob")] == [name]


def test_what_was_refused_is_no_worker(aws: StandIn, job: Job, reached: SageMakerCluster) -> None:
    aws.permissions.deny("sagemaker:CreateTrainingJob")
    lot = lot_of(job)
    with pytest.raises(NotSubmitted):
        reached.submit(lot.order("cpu"), after=None)
    assert Queue(lot.queue.file).about()["workers"] == []
