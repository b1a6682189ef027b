"""Training jobs that cost money are found again, whatever happened to the command that sent them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from runner import stop
from runner.aws.account import Account
from runner.errors import RunnerError, SettingsError
from runner.jobs.job import Job, State, make_job, register, state_of
from runner.jobs.queue import Queue
from runner.launchers import sagemaker
from runner.launchers.cluster import NotSubmitted
from runner.launchers.elsewhere import Elsewhere
from runner.launchers.lots import Lot
from runner.launchers.sagemaker.record import note_arn, record_file
from runner.launchers.sagemaker.training_jobs import SageMakerCluster
from runner.launchers.searches import note, searches_of
from runner.plan import Pack
from runner.schema import Experiment, SageMakerLauncher
from runner.search.tuning.job import TuningJob
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
    """The cluster; it does not send the project's code, which would take seconds."""
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


def test_one_in_another_region_than_is_asked_is_not_taken_for_ended(
    aws: StandIn,
    job: Job,
    reached: SageMakerCluster,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lot = lot_of(job)
    lot.add_worker(reached.submit(lot.order("cpu"), after=None))
    (name,) = aws.jobs
    sagemaker._cluster_of.cache_clear()
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")

    Elsewhere().collect([job.folder])
    assert state_of(job.folder) is State.SUBMITTED
    assert stop.main([str(job.folder.parent)]) == 1
    said = f"training job {name} is in us-east-1 of account 123456789012, and eu-west-1 of 123456789012 is asked"
    assert caplog.text.count(said) == 2


def test_one_in_another_region_keeps_none_in_this_one_from_being_stopped(
    aws: StandIn, job: Job, reached: SageMakerCluster, caplog: pytest.LogCaptureFixture
) -> None:
    other = dataclasses.replace(job, id="0", folder=job.folder.with_name("0"))
    register(other)
    lot_of(other).add_worker("dev-0")
    note_arn(job.folder.parent, "dev-0", "arn:aws:sagemaker:eu-west-1:123456789012:training-job/dev-0")
    lot = lot_of(job)
    lot.add_worker(reached.submit(lot.order("cpu"), after=None))
    sagemaker._cluster_of.cache_clear()

    assert stop.main([str(job.folder.parent)]) == 1
    assert [each["TrainingJobName"] for each in aws.asked("StopTrainingJob")] == lot.workers
    assert caplog.text.count("training job dev-0 is in eu-west-1 of account 123456789012, and us-east-1 of") == 1
    sagemaker._cluster_of.cache_clear()
    ended = {"gone": {"words": "was stopped", "reason": "cancelled"}}
    record_file(job.folder.parent, lot.workers[0]).write_text(json.dumps(ended))
    Elsewhere().collect([other.folder, job.folder])
    assert [state_of(each.folder) for each in (other, job)] == [State.SUBMITTED, State.CANCELLED]
    assert caplog.text.count("training job dev-0 is in eu-west-1") == 2


def test_what_was_refused_is_no_worker(aws: StandIn, job: Job, reached: SageMakerCluster) -> None:
    aws.permissions.deny("sagemaker:CreateTrainingJob")
    lot = lot_of(job)
    with pytest.raises(NotSubmitted):
        reached.submit(lot.order("cpu"), after=None)
    assert Queue(lot.queue.file).about()["workers"] == []


def search_of(reached: SageMakerCluster, folder: Path) -> TuningJob:
    return TuningJob(
        reached,
        "search",
        request=lambda: {"HyperParameterTuningJobName": "search"},
        job_of=lambda values: pytest.fail("no trial was seen"),
        experiment_folder=folder,
        ends_early=True,
    )


def test_a_search_that_was_begun_in_another_region_is_not_begun_again(
    aws: StandIn, reached: SageMakerCluster, tmp_path: Path
) -> None:
    note(search_of(reached, tmp_path)._search, "sagemaker")
    far = reached.settings.model_copy(update={"region": "eu-west-1"})
    with pytest.raises(SettingsError, match="was begun in us-east-1, and eu-west-1 is asked"):
        search_of(SageMakerCluster(far, Account(far)), tmp_path).run()
    assert aws.asked("CreateHyperParameterTuningJob") == []


@pytest.mark.parametrize(("code", "status", "left"), [("InternalFailure", 500, 1), ("ValidationException", 400, 0)])
def test_a_search_is_forgotten_only_where_it_was_refused(
    reached: SageMakerCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, status: int, left: int
) -> None:
    def answered(**request: Any) -> None:
        said = {"Error": {"Code": code, "Message": "because"}, "ResponseMetadata": {"HTTPStatusCode": status}}
        raise ClientError(said, "CreateHyperParameterTuningJob")  # type: ignore[arg-type]

    search = search_of(reached, tmp_path)
    monkeypatch.setattr(search.client, "create_hyper_parameter_tuning_job", answered)
    with pytest.raises(RunnerError, match="has refused the search: because"):
        search.run()
    assert len(searches_of([tmp_path])) == left, "what may be there is found by a stop"
