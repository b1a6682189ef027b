"""The stand-in itself: it treats training jobs as AWS does."""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.sagemaker.stand_in import Image, StandIn

TYPE = "ml.g5.12xlarge"
# Each job runs a few lines of shell. ML is its tree, however the host process finds it.
ML = "ML=${SM_ML_ROOT:-/opt/ml}\n"
SLEEPS = "trap 'echo saved > $ML/checkpoints/state; exit 0' TERM\necho ready\nwhile :; do sleep 0.05; done"


def submit(aws: StandIn, script: str, name: str = "job", hosts: int = 1, spot: bool = False, **members: Any) -> None:
    """Create a job whose image is a script."""
    uri = aws.add_image(f"{name}:1", ["sh", "-c", ML + script])
    waiting = {"MaxWaitTimeInSeconds": 120} if spot else {}
    request = {
        "TrainingJobName": name,
        "RoleArn": aws.role,
        "AlgorithmSpecification": {"TrainingImage": uri, "TrainingInputMode": "File"},
        "OutputDataConfig": {"S3OutputPath": f"s3://{aws.bucket}/out"},
        "ResourceConfig": {"InstanceType": TYPE, "InstanceCount": hosts, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60, **waiting},
        "CheckpointConfig": {"S3Uri": f"s3://{aws.bucket}/checkpoints/{name}"},
        "EnableManagedSpotTraining": spot,
        **members,
    }
    aws.client("sagemaker").create_training_job(**request)


def channel(aws: StandIn, name: str, prefix: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{aws.bucket}/{prefix}"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def wait_until_printed(aws: StandIn, name: str, line: str, times: int = 1) -> None:
    """A job is ready for orders only once its own code runs."""
    aws.wait(name, "Training")
    while aws.printed(name).count(line) < times:
        assert not aws.jobs[name].has_ended, aws.printed(name)


def body(aws: StandIn, key: str) -> bytes:
    content: bytes = aws.s3.get_object(Bucket=aws.bucket, Key=key)["Body"].read()
    return content


def test_a_job_takes_its_channels_and_leaves_its_results(aws: StandIn) -> None:
    aws.s3.put_object(Bucket=aws.bucket, Key="run/config/config.yaml", Body=b"rank: 4\n")
    script = (
        "cat $ML/input/data/config/config.yaml > $ML/model/seen.yaml; echo more > $ML/output/data/more.txt\n"
        'cat $ML/input/config/hyperparameters.json; echo; echo "$TRAINING_JOB_NAME $MODE"; nvidia-smi -L; echo $0'
    )
    submit(
        aws,
        script,
        InputDataConfig=[channel(aws, "config", "run/config/")],
        HyperParameters={"lora.rank": "4"},
        Environment={"MODE": "test"},
    )
    job = aws.wait("job")

    assert job.status == "Completed", job.failure_reason
    parameters, named, *gpus, argument = aws.printed("job")
    assert json.loads(parameters) == {"lora.rank": "4"}
    assert (named, len(gpus), argument) == ("job test", 4, "train")
    with tarfile.open(fileobj=BytesIO(body(aws, "out/job/output/model.tar.gz"))) as archive:
        assert archive.extractfile("seen.yaml").read() == b"rank: 4\n"  # type: ignore[union-attr]
    told = aws.client("sagemaker").describe_training_job(TrainingJobName="job")
    assert told["ModelArtifacts"]["S3ModelArtifacts"] == f"s3://{aws.bucket}/out/job/output/model.tar.gz"
    passed = [one["Status"] for one in told["SecondaryStatusTransitions"]]
    assert passed == ["Starting", "Downloading", "Training", "Uploading", "Completed"]


def test_uncompressed_results_are_files(aws: StandIn) -> None:
    output = {"S3OutputPath": f"s3://{aws.bucket}/out/", "CompressionType": "NONE"}
    submit(aws, "mkdir $ML/model/lora; echo weights > $ML/model/lora/a.bin", OutputDataConfig=output)
    aws.wait("job")

    assert aws.keys("out/") == ["out/job/output/model/lora/a.bin"]


def test_a_job_that_fails_says_why(aws: StandIn) -> None:
    submit(aws, "echo 'RuntimeError: out of memory' > $ML/output/failure; exit 3")
    told = aws.wait("job").describe()

    assert told["TrainingJobStatus"] == "Failed"
    assert told["FailureReason"] == "AlgorithmError: RuntimeError: out of memory\n, exit code: 3"


def test_a_job_without_its_data_fails_before_it_starts(aws: StandIn) -> None:
    submit(aws, "echo never", InputDataConfig=[channel(aws, "data", "nothing/")])

    assert "No S3 objects found" in str(aws.wait("job").failure_reason)


def test_a_job_that_is_stopped_may_save_first(aws: StandIn) -> None:
    submit(aws, SLEEPS)
    wait_until_printed(aws, "job", "ready")
    aws.client("sagemaker").stop_training_job(TrainingJobName="job")

    assert aws.wait("job").status == "Stopped"
    assert body(aws, "checkpoints/job/state") == b"saved\n"


def test_a_job_that_does_not_end_is_killed(tmp_path: Path) -> None:
    with StandIn(tmp_path, grace_s=0.3) as aws:
        submit(aws, "trap '' TERM; echo ready; sleep 60 & wait; sleep 60")
        wait_until_printed(aws, "job", "ready")
        aws.client("sagemaker").stop_training_job(TrainingJobName="job")

        assert aws.wait("job", within_s=5).status == "Stopped"


def test_a_job_ends_at_its_longest_time(aws: StandIn) -> None:
    submit(aws, SLEEPS, StoppingCondition={"MaxRuntimeInSeconds": 1})

    assert aws.wait("job").secondary == "MaxRuntimeExceeded"


def test_an_interrupted_spot_job_goes_on_from_its_checkpoints(aws: StandIn) -> None:
    submit(aws, f"test -e $ML/checkpoints/state && exit 0\n{SLEEPS}", spot=True)
    wait_until_printed(aws, "job", "ready")
    aws.interrupt("job")
    job = aws.wait("job")

    assert (job.status, job.attempts) == ("Completed", 2)
    told = job.describe()
    assert "Interrupted" in [one["Status"] for one in told["SecondaryStatusTransitions"]]
    assert told["BillableTimeInSeconds"] < told["TrainingTimeInSeconds"]


def test_checkpoints_follow_what_the_job_writes_and_deletes(aws: StandIn) -> None:
    aws.s3.put_object(Bucket=aws.bucket, Key="checkpoints/job/old", Body=b"1")
    submit(aws, f"rm $ML/checkpoints/old; echo 2 > $ML/checkpoints/new\n{SLEEPS}")
    wait_until_printed(aws, "job", "ready")
    while aws.keys("checkpoints/") != ["checkpoints/job/new"]:
        assert not aws.jobs["job"].has_ended


def test_two_hosts_know_each_other(aws: StandIn) -> None:
    aws.s3.put_object(Bucket=aws.bucket, Key="data/a", Body=b"1")
    aws.s3.put_object(Bucket=aws.bucket, Key="data/b", Body=b"2")
    sharded = channel(aws, "data", "data/")
    sharded["DataSource"]["S3DataSource"]["S3DataDistributionType"] = "ShardedByS3Key"
    submit(
        aws,
        "cat $ML/input/config/resourceconfig.json; echo; ls $ML/input/data/data",
        hosts=2,
        InputDataConfig=[sharded],
    )
    aws.wait("job")

    first, seen_first, second, seen_second = aws.printed("job")
    assert json.loads(first)["hosts"] == json.loads(second)["hosts"] == ["algo-1", "algo-2"]
    assert [json.loads(each)["current_host"] for each in (first, second)] == ["algo-1", "algo-2"]
    assert (seen_first, seen_second) == ("a", "b")


def test_one_host_that_fails_ends_the_others(aws: StandIn) -> None:
    submit(
        aws, f'grep -q \'"current_host": "algo-2"\' $ML/input/config/resourceconfig.json && exit 4\n{SLEEPS}', hosts=2
    )

    assert aws.wait("job").failure_reason == "AlgorithmError: , exit code: 4"


def test_the_quota_counts_instances(aws: StandIn) -> None:
    aws.quotas.set(TYPE, training=2)
    submit(aws, SLEEPS, hosts=2)
    with pytest.raises(ClientError, match=r"is 2 Instances, with current utilization of 2 Instances"):
        submit(aws, "true", "another")
    aws.jobs["job"].order_stop()
    aws.wait("job")

    submit(aws, "true", "another")
    assert aws.wait("another").status == "Completed"


def test_a_job_for_which_there_is_no_instance_fails(aws: StandIn) -> None:
    aws.capacity.withhold(TYPE, jobs=1)
    submit(aws, "true", "first")
    assert str(aws.wait("first").failure_reason).startswith("CapacityError")

    submit(aws, "true", "second")
    assert aws.wait("second").status == "Completed"


def test_names_are_used_once(aws: StandIn) -> None:
    submit(aws, "true")
    with pytest.raises(ClientError, match="ResourceInUse"):
        submit(aws, "true")


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"HyperParameters": {"prompt": "two\nlines"}}, "regular expression pattern"),
        ({"Environment": {"LONG": "x" * 513}}, "less than or equal to 512"),
        ({"RoleArn": "arn:aws:iam::123456789012:role/nobody"}, "Could not assume role"),
        ({"EnableManagedSpotTraining": True}, "MaxWaitTimeInSeconds"),
    ],
)
def test_what_aws_refuses_is_refused(aws: StandIn, members: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ClientError, match=complaint):
        submit(aws, "true", **members)


def test_an_image_that_was_not_pushed_is_refused(aws: StandIn) -> None:
    missing = {"TrainingImage": "123456789012.dkr.ecr.us-east-1.amazonaws.com/none:1", "TrainingInputMode": "File"}
    with pytest.raises(ClientError, match="Cannot find repository: none"):
        submit(aws, "true", AlgorithmSpecification=missing)


def test_throttled_calls_are_recorded_and_told(tmp_path: Path) -> None:
    with StandIn(tmp_path, throttle_every={"ListTrainingJobs": 2}) as aws:
        for _ in range(2):  # the client retries by itself
            aws.client("sagemaker").list_training_jobs()

        errors = [call.error for call in aws.requests if call.operation == "ListTrainingJobs"]
        assert errors == ["", "ThrottlingException", ""]


def test_denied_actions_and_unreachable_services(aws: StandIn) -> None:
    aws.permissions.deny("s3:PutObject")
    with pytest.raises(ClientError, match="not authorized to perform: s3:PutObject"):
        aws.client("s3").put_object(Bucket=aws.bucket, Key="a", Body=b"")
    aws.permissions.unreachable.add("pricing")
    with pytest.raises(BotoCoreError, match="Connection was closed"):
        aws.client("pricing").get_products(ServiceCode="AmazonSageMaker")


def test_a_container_reads_secrets_as_its_role(aws: StandIn) -> None:
    aws.client("secretsmanager").create_secret(Name="hf", SecretString="hf_secret")
    client = "boto3.client('secretsmanager', region_name=os.environ['AWS_REGION'])"
    submit(aws, f"""exec python -c "import boto3, os; print({client}.get_secret_value(SecretId='hf')['Name'])" """)
    aws.wait("job")

    assert aws.printed("job") == ["hf"]
    assert [call.caller for call in aws.requests if call.operation == "GetSecretValue"] == ["execution"]
    assert len(aws.asked("CreateTrainingJob")) == 1


def test_logs_come_in_pages_and_metrics_out_of_them(aws: StandIn) -> None:
    specification = {
        "TrainingImage": aws.add_image("lines:1", ["sh", "-c", "seq 25; echo loss=0.5; echo loss=nan"]),
        "TrainingInputMode": "File",
        "MetricDefinitions": [{"Name": "loss", "Regex": r"^loss=(\S+)$"}],
    }
    submit(aws, "true", AlgorithmSpecification=specification)
    aws.wait("job")

    logs, group = aws.client("logs"), "/aws/sagemaker/TrainingJobs"
    (stream,) = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix="job/")["logStreams"]
    asked = {"logGroupName": group, "logStreamName": stream["logStreamName"], "startFromHead": True}
    page = logs.get_log_events(**asked, limit=20)
    following = logs.get_log_events(**asked, limit=20, nextToken=page["nextForwardToken"])
    assert [event["message"] for event in following["events"]] == [*map(str, range(21, 26)), "loss=0.5", "loss=nan"]
    assert aws.jobs["job"].metrics.value("loss") == 0.5


def test_jobs_are_listed_in_pages(aws: StandIn) -> None:
    for number in range(3):
        submit(aws, "true", f"sweep-{number}", Tags=[{"Key": "sweep", "Value": "s"}])
    submit(aws, "true", "other")
    pages = aws.client("sagemaker").get_paginator("list_training_jobs")
    found = pages.paginate(NameContains="sweep", SortBy="Name", SortOrder="Ascending", PaginationConfig={"PageSize": 2})

    assert [one["TrainingJobName"] for page in found for one in page["TrainingJobSummaries"]] == [
        "sweep-0",
        "sweep-1",
        "sweep-2",
    ]
    arn = aws.jobs["sweep-0"].arn
    assert aws.client("sagemaker").list_tags(ResourceArn=arn)["Tags"] == [{"Key": "sweep", "Value": "s"}]


def test_a_warm_pool_is_taken_over_where_the_quota_allows_one(aws: StandIn) -> None:
    aws.quotas.set(TYPE, warm_pool=1)
    kept = {"InstanceType": TYPE, "InstanceCount": 1, "VolumeSizeInGB": 10, "KeepAlivePeriodInSeconds": 60}
    uri = aws.add_image("same:1", ["true"])
    same = {"TrainingImage": uri, "TrainingInputMode": "File"}
    for name in ("first", "second"):
        submit(aws, "", name, ResourceConfig=kept, AlgorithmSpecification=same)
        aws.wait(name)

    assert aws.jobs["first"].describe()["WarmPoolStatus"]["ReusedByJob"] == "second"


def test_prices_quotas_and_images_are_told(aws: StandIn) -> None:
    aws.add_image("lora:7", ["true"])
    aws.quotas.set(TYPE, training=3)
    quotas = aws.client("service-quotas").get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
    values = {quota["QuotaName"]: quota["Value"] for page in quotas for quota in page["Quotas"]}
    filters = [
        {"Type": "TERM_MATCH", "Field": field, "Value": value}
        for field, value in (("instanceName", TYPE), ("regionCode", "us-east-1"), ("component", "Training"))
    ]
    (product,) = aws.client("pricing").get_products(ServiceCode="AmazonSageMaker", Filters=filters)["PriceList"]

    assert values[f"{TYPE} for training job usage"] == 3.0
    assert json.loads(product)["product"]["attributes"]["instanceName"] == TYPE
    assert aws.client("ecr").list_images(repositoryName="lora")["imageIds"][0]["imageTag"] == "7"


def test_without_root_a_job_finds_its_tree_by_a_variable(tmp_path: Path) -> None:
    with StandIn(tmp_path, images={"job:1": Image(("sh",), {"MORE": "1"})}, ml_root="variable") as aws:
        submit(aws, "sleep 60 & echo $SM_ML_ROOT; cat $SM_ML_ROOT/input/config/resourceconfig.json > $ML/model/a")
        job = aws.wait("job", within_s=5)

        assert job.status == "Completed"
        assert aws.printed("job") == [f"{tmp_path}/job/algo-1/ml"]
        assert aws.keys("out/") == ["out/job/output/model.tar.gz"]


def test_nothing_is_left_when_it_closes(tmp_path: Path) -> None:
    with StandIn(tmp_path) as aws:
        submit(aws, f"sleep 12345 & {SLEEPS}")
        wait_until_printed(aws, "job", "ready")
        (host,) = aws.training.executions[0].hosts

    assert host.exit_code is not None
    assert list(tmp_path.iterdir()) == []
    commands = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.is_file()]
    assert b"sleep\x0012345\x00" not in commands
