"""Everything that would keep a training job from running is reported at once, before anything is sent."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from botocore.stub import Stubber

from runner.aws.account import Account, NoAccess
from runner.errors import AwsError
from runner.launchers.sagemaker.preflight import preflight
from runner.s3.access import bucket_region
from runner.schema import SageMakerLauncher
from tests.command_line import runner
from tests.sagemaker.stand_in import Image, StandIn
from tests.sagemaker.test_launch import job_settings

Faults = Callable[..., list[str]]


@pytest.fixture
def faults(aws: StandIn) -> Faults:
    """What preflight reports about settings that are good except for what a test changes."""
    image = aws.add_image("lora:1", Image((sys.executable, "-c", "pass"), {}))
    good = {"name": "sagemaker", "role": aws.role, "bucket": aws.bucket, "image": image}

    def look(**changes: Any) -> list[str]:
        settings = SageMakerLauncher.model_validate(good | changes)
        return preflight(settings, Account(settings), settings.image)

    return look


def test_a_good_account_has_none(aws: StandIn, faults: Faults) -> None:
    assert faults() == []
    assert aws.asked("CreateTrainingJob") == []


def test_everything_wrong_is_said_at_once(aws: StandIn, faults: Faults) -> None:
    aws.quotas.set("ml.g6e.xlarge", training=0, spot=0)
    aws.permissions.deny("s3:PutObject", role="execution")
    aws.permissions.deny("sagemaker:StopTrainingJob")
    found = faults(image="123456789012.dkr.ecr.us-east-1.amazonaws.com/lora:none", bucket="not-there", wandb_secret="w")
    text = "\n".join(found)
    assert len(found) == 6, text
    assert "launcher.bucket = 'not-there': there is no such bucket" in text
    assert "lora:none': there is no such image" in text
    assert "'ml.g6e.xlarge for spot training job usage' is 0, and 1 needed" in text
    assert "launcher.wandb_secret = 'w': Secrets Manager has no such secret" in text
    assert "its policy does not allow s3:PutObject" in text
    assert "may not sagemaker:StopTrainingJob" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"role": None}, "launcher.role = null: SageMaker's containers need an execution role"),
        ({"role": "nobody"}, "account 123456789012 has no such role"),
        ({"image": None}, "launcher.image = null: no image was pushed from here yet"),
        ({"image": "docker.io/lora:1"}, "SageMaker takes images from ECR"),
        (
            {"image": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/lora:1"},
            "is in eu-west-1, and jobs run in us-east-1",
        ),
    ],
)
def test_each_has_its_fix(faults: Faults, changes: dict[str, Any], said: str) -> None:
    (fault,) = faults(**changes)
    assert said in fault


def test_a_bucket_of_another_region(aws: StandIn, faults: Faults) -> None:
    """boto3 finds the bucket's region by itself, so using the bucket is not an error."""
    aws.s3.create_bucket(Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    (fault,) = faults(bucket="far-away")
    assert fault.startswith("launcher.bucket = 'far-away': far-away is in eu-west-1, and jobs run in us-east-1; ")
    assert fault.endswith("or set launcher.region=eu-west-1")


def test_the_bucket_of_sagemaker_is_made_only_where_it_is_missing(aws: StandIn) -> None:
    account = Account(SageMakerLauncher(name="sagemaker"))
    aws.permissions.deny("s3:ListBucket")
    with pytest.raises(NoAccess, match=r"AWS permissions: .*; add s3:ListBucket and s3:CreateBucket on sagemaker-us-"):
        account.make_bucket()
    assert aws.asked("CreateBucket") == [], "what may not be looked at may be there"

    aws.permissions.allow_all()
    aws.permissions.deny("s3:CreateBucket")
    with pytest.raises(NoAccess, match="not authorized to perform: s3:CreateBucket"):
        account.make_bucket()

    aws.permissions.allow_all()
    for _ in range(2):
        account.make_bucket()
    assert len(aws.asked("CreateBucket")) == 2, "one that was refused, and one that was not"
    assert account.bucket in [each["Name"] for each in aws.s3.list_buckets()["Buckets"]]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("BucketAlreadyOwnedByYou", None),
        (
            "BucketAlreadyExists",
            "launcher.bucket = null: sagemaker-us-east-1-123456789012 cannot be created .because.;",
        ),
    ],
)
def test_a_bucket_that_is_somebody_elses_by_now(aws: StandIn, code: str, said: str | None) -> None:
    account = Account(SageMakerLauncher(name="sagemaker"))
    with Stubber(account.s3) as s3, pytest.raises(AwsError, match=said) if said else nullcontext():
        s3.add_client_error("head_bucket", "404", http_status_code=404)
        s3.add_client_error("create_bucket", code, "because", 409)
        account.make_bucket()


def test_a_bucket_of_sagemakers_name_in_another_account_is_not_used(aws: StandIn, faults: Faults) -> None:
    """Its name can be guessed: whoever made it would receive the data, and could change the code that runs."""
    account = Account(SageMakerLauncher(name="sagemaker"))
    aws.s3.create_bucket(Bucket=account.bucket)
    assert faults(bucket=None) == []
    account.make_bucket()

    aws.permissions.owners[account.bucket] = "210987654321"
    said = f"launcher.bucket = null: {account.bucket} belongs to another account; name your own"
    with pytest.raises(AwsError, match=said):
        account.make_bucket()
    (fault,) = faults(bucket=None)
    assert fault == said
    assert faults(bucket=account.bucket) == [], "whoever names a bucket of others means it"


def test_older_libraries_name_the_region_of_a_bucket_in_a_header_alone() -> None:
    headers = {"x-amz-bucket-region": "eu-west-1"}
    assert bucket_region({"ResponseMetadata": {"HTTPHeaders": headers}}) == "eu-west-1"
    assert bucket_region({"BucketRegion": "us-west-2", "ResponseMetadata": {"HTTPHeaders": headers}}) == "us-west-2"
    assert bucket_region({"ResponseMetadata": {"HTTPHeaders": {}}}) is None


def test_a_role_that_sagemaker_may_not_take_on(aws: StandIn, faults: Faults) -> None:
    trust = (
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, '
    )
    trust += '"Action": "sts:AssumeRole"}]}'
    aws.platform.iam.create_role(RoleName="other", AssumeRolePolicyDocument=trust)
    (fault,) = faults(role="other")
    assert "SageMaker may not assume this role" in fault


def test_a_role_is_found_by_its_name_and_one_who_may_not_ask_names_its_path(aws: StandIn) -> None:
    def arn(role: str) -> str:
        return Account(SageMakerLauncher.model_validate({"name": "sagemaker", "role": role})).role_arn

    assert "/service-role/" in aws.role
    assert arn("execution") == arn("service-role/execution") == arn(aws.role) == aws.role
    aws.permissions.deny("iam:GetRole")
    assert arn("service-role/execution") == aws.role


@pytest.mark.parametrize("why", ["expired", "invalid"])
def test_refused_credentials_are_all_there_is_to_say(aws: StandIn, faults: Faults, why: str) -> None:
    aws.permissions.refused = why
    (fault,) = faults()
    assert (
        fault
        == f"AWS credentials: The security token included in the request is {why}; log in again, or set AWS_PROFILE"
    )


def test_without_credentials_or_region(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (fault,) = faults()
    assert fault.startswith("AWS credentials: there are none; `aws configure`")
    assert len(faults(role=None, image=None)) == 3, "what the settings leave out is said with it"
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    (fault,) = faults()
    assert fault.startswith("launcher.region = null")


def test_what_may_not_be_looked_at_is_passed_over(aws: StandIn, faults: Faults) -> None:
    for action in (
        "iam:GetRole",
        "iam:SimulatePrincipalPolicy",
        "servicequotas:ListServiceQuotas",
        "ecr:DescribeImages",
    ):
        aws.permissions.deny(action)
    assert faults() == []


def test_the_command_starts_nothing(aws: StandIn, sdxl_folder: Path) -> None:
    answer = runner(*job_settings(sdxl_folder), "launcher=sagemaker", "launcher.image=docker.io/x", "-m", "seed=1,2")
    assert answer.code == 2, answer.output
    assert "2 of 2 jobs are invalid" in answer.output
    assert answer.output.count("launcher.role = null") == 1
    assert "SageMaker takes images from ECR" in answer.output
    assert aws.asked("CreateTrainingJob") == []
    assert aws.keys() == []
