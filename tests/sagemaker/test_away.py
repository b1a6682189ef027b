"""A network that is down for a while, an expired login and busy services end no command and fail no job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from boto3.exceptions import RetriesExceededError, S3UploadFailedError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from botocore.stub import Stubber

from runner.aws.account import Account, NoAccess, may_pass, understood
from runner.jobs.job import Job, make_job, register
from runner.jobs.queue import Queue
from runner.launchers.cluster import NoRoom, NotSubmitted, Order
from runner.launchers.sagemaker.logs import LogTail
from runner.launchers.sagemaker.training_jobs import SageMakerCluster
from runner.s3 import Location
from runner.schema import Experiment, SageMakerLauncher
from runner.search.tuning.job import TuningJob
from tests.sagemaker.stand_in import StandIn


@pytest.fixture
def settings(aws: StandIn) -> SageMakerLauncher:
    image = aws.add_image("lora:1", ["true"])
    place = {"image": image, "role": aws.role, "bucket": aws.bucket, "instance": "ml.m5.xlarge"}
    return SageMakerLauncher.model_validate({"name": "sagemaker", "poll_s": 0.1, **place})


@pytest.fixture
def reached(settings: SageMakerLauncher) -> SageMakerCluster:
    """The cluster; its clients try only once, because nothing here waits for a service that is down."""
    account = Account(settings)
    account.s3, account.sagemaker = account.client("s3", attempts=0), account.client("sagemaker", attempts=0)
    return SageMakerCluster(settings, account, image=settings.image or "")


@pytest.fixture
def job(settings: SageMakerLauncher, photos: Path, tmp_path: Path) -> Job:
    experiment = Experiment.model_validate(
        {"dataset": {"path": str(photos)}, "launcher": settings.model_dump(mode="json")}
    )
    made = make_job(experiment, model="m", dataset="d", outputs=tmp_path / "out")
    register(made)
    return made


@pytest.fixture
def order(job: Job, tmp_path: Path) -> Order:
    queue = Queue(tmp_path / "queue-0123.json")
    queue.write([job.folder], is_open=False)
    return Order(title="dev", queue=queue.file, at_once=1, processes=1, device="cpu")


def with_files(reached: SageMakerCluster, then: Callable[[], None]) -> None:
    """Run `then` before each upload of files, which is lost if `then` raises; everything else arrives."""
    send = reached.storage.upload

    def upload(files: Mapping[str, Path], folder: Location) -> None:
        then()
        send(files, folder)

    reached.storage.upload = upload  # type: ignore[method-assign]


def busy_with_files(aws: StandIn, reached: SageMakerCluster) -> None:
    with_files(reached, lambda: aws.permissions.throttle("PutObject", 1))


def busy(aws: StandIn, reached: SageMakerCluster) -> None:
    aws.permissions.throttle("CreateTrainingJob", 1)


def expired(aws: StandIn, reached: SageMakerCluster) -> None:
    aws.permissions.refused = "expired"


def cut_off(aws: StandIn, reached: SageMakerCluster) -> None:
    aws.permissions.unreachable.add("s3")


@pytest.mark.parametrize("trouble", [busy_with_files, busy, expired, cut_off])
def test_what_cannot_be_sent_at_this_moment_waits(
    trouble: Callable[[StandIn, SageMakerCluster], None], aws: StandIn, reached: SageMakerCluster, order: Order
) -> None:
    trouble(aws, reached)

    with pytest.raises(NoRoom):
        reached.submit(order, after=None)

    aws.permissions.refused = ""
    aws.permissions.unreachable.clear()
    for operation in ("PutObject", "CreateTrainingJob"):
        aws.permissions.throttle(operation, 0)
    reached.storage.__dict__.pop("upload", None)
    assert reached.submit(order, after=None) in aws.jobs


def test_what_may_not_be_sent_is_refused(aws: StandIn, reached: SageMakerCluster, order: Order) -> None:
    with_files(reached, lambda: aws.permissions.deny("s3:PutObject"))
    with pytest.raises(NotSubmitted, match=r"AccessDenied: Failed to upload .* not authorized to perform") as caught:
        reached.submit(order, after=None)
    assert not isinstance(caught.value, NoRoom)


BROKEN_OFF = RetriesExceededError(OSError("the body ended too early"))


def break_off(*args: Any, **named: Any) -> None:
    """What boto3 raises if the content of an object does not arrive."""
    raise BROKEN_OFF


def test_a_result_that_does_not_arrive_ends_no_waiting(
    aws: StandIn, reached: SageMakerCluster, job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    results = reached.places.training_job("dev", "photos-1") / f"checkpoints/jobs/{job.id}/"
    reached.storage.write(results / "metrics.jsonl", b"{}\n")
    monkeypatch.setattr(reached, "_statuses", lambda names: dict.fromkeys(names, "InProgress"))

    with monkeypatch.context() as away:
        away.setattr(reached.storage.client, "download_file", break_off)
        assert reached.gone({"photos-1": [job]}) == {}
    assert "SageMaker cannot be queried: " in caplog.text and "ended too early" in caplog.text
    monkeypatch.setattr(reached, "_looked_s", 0.0)
    assert reached.gone({"photos-1": [job]}) == {}
    assert job.paths.metrics.read_text() == "{}\n", "the next look brings it"


def test_a_refusal_about_one_training_job_keeps_no_other_from_being_looked_at(
    reached: SageMakerCluster, job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("photos-1", "photos-2", "photos-3")
    list_objects = reached.storage.listing
    reached.storage.write(reached.places.training_job("dev", names[-1]) / f"checkpoints/jobs/{job.id}/log.txt", b"end")

    def listing(folder: Location) -> Any:
        if names[-1] not in folder.uri:
            raise refused("AccessDenied", 403)
        return list_objects(folder)

    monkeypatch.setattr(reached, "_statuses", lambda names: dict.fromkeys(names, "InProgress"))
    monkeypatch.setattr(reached.storage, "listing", listing)
    assert reached.gone({name: [job] for name in names}) == {}
    assert job.paths.log.read_text() == "end"
    assert [record.args[0] for record in caplog.records if record.args] == [names[0]], "one refusal is said once"


def test_what_was_read_of_a_log_before_a_fault_is_kept(aws: StandIn, tmp_path: Path) -> None:
    def page(message: str) -> dict[str, Any]:
        return {"events": [{"message": message}] if message else [], "nextForwardToken": "end"}

    with Stubber(client := Account(SageMakerLauncher(name="sagemaker")).logs) as logs:
        streams = {"logStreams": [{"logStreamName": f"job/algo-{host}-0"} for host in (1, 2)]}
        logs.add_response("describe_log_streams", streams)
        for message in ("first", ""):
            logs.add_response("get_log_events", page(message))
        logs.add_client_error("get_log_events", "ThrottlingException")
        tail = LogTail(client, "job", tmp_path / "log", None)
        tail.look()
        logs.add_response("describe_log_streams", streams)
        for message in ("", "second", ""):
            logs.add_response("get_log_events", page(message))
        tail.look()
    assert (tmp_path / "log").read_text() == "algo-1: first\nalgo-2: second\n"


def test_a_search_waits_for_what_does_not_arrive(
    reached: SageMakerCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    search = TuningJob(
        reached,
        "search",
        request=dict,
        job_of=lambda values: pytest.fail("no trial was seen"),
        experiment_folder=tmp_path,
        ends_early=True,
    )
    monkeypatch.setattr(search, "_describe", lambda: {"HyperParameterTuningJobStatus": "InProgress"})
    monkeypatch.setattr(search, "_summaries", break_off)
    assert search._look() is None
    assert "SageMaker cannot be queried: " in caplog.text

    looked: list[str] = []

    def look_at(summary: Mapping[str, Any], _: str) -> None:
        looked.append(summary["TrainingJobName"])
        raise refused("AccessDenied", 403)

    monkeypatch.setattr(search, "_summaries", lambda: [{"TrainingJobName": "a"}, {"TrainingJobName": "b"}])
    monkeypatch.setattr(search, "_look_at", look_at)
    assert search._look() is None
    assert looked == ["a", "b"]
    assert caplog.text.count("SageMaker cannot be queried about ") == 1


def refused(code: str, status: int = 400) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")  # type: ignore[typeddict-item]


def of_a_transfer(error: ClientError) -> Exception:
    try:
        try:
            raise error
        except ClientError:
            raise S3UploadFailedError("Failed to upload")  # noqa: B904 (as boto3 does)
    except S3UploadFailedError as failed:
        return failed


def test_what_passes_and_what_does_not() -> None:
    passing = [refused("SlowDown", 503), refused("InternalError", 500), refused("ExpiredToken"), refused("Throttling")]
    for error in (*passing, *map(of_a_transfer, passing), BROKEN_OFF, EndpointConnectionError(endpoint_url="s3")):
        assert may_pass(error), error
    lasting = [refused("AccessDenied", 403), refused("NoSuchBucket", 404), refused("ValidationException")]
    for error in (*lasting, *map(of_a_transfer, lasting), NoCredentialsError()):
        assert not may_pass(error), error


def test_transfers_that_fail_are_understood() -> None:
    for error, said in (
        (of_a_transfer(refused("ExpiredToken")), "AWS credentials: .*; log in again"),
        (of_a_transfer(refused("AccessDenied", 403)), "AWS permissions: .*; add s3:PutObject to your policy"),
        (BROKEN_OFF, "AWS cannot be reached for s3:PutObject: .*ended too early"),
    ):
        with pytest.raises(NoAccess, match=said), understood("s3:PutObject"):
            raise error
