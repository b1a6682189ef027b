"""The AWS account that jobs are sent to: its clients, its bucket, the role of its jobs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

from runner.errors import AwsError
from runner.s3.access import (
    ATTEMPTS,
    NoAccess,
    aws_errors,
    aws_session,
    client_config,
    code_of,
    may_pass,
    message_of,
    understood,
)
from runner.schema.aws import AwsSettings

__all__ = [
    "NO_BUCKET",
    "Account",
    "NoAccess",
    "aws_errors",
    "code_of",
    "may_pass",
    "message_of",
    "one_refusal",
    "understood",
]

NO_BUCKET = ("404", "NoSuchBucket")
"""S3's error codes for a bucket that does not exist."""

log = logging.getLogger(__name__)


@contextmanager
def refusals_said() -> Iterator[None]:
    """Raises AwsError, with a one-line message, if AWS refuses something inside or cannot be reached."""
    try:
        yield
    except aws_errors() as error:
        raise AwsError(f"AWS: {message_of(error)}") from error
    except NoAccess as error:
        raise AwsError(str(error)) from error


@contextmanager
def one_refusal(of: str, said: set[str]) -> Iterator[None]:
    """Log what AWS refuses inside, for one of several training jobs: it says nothing about the others.

    A network that is away is raised: it would be for the others, too.

    Args:
        of: the training job.
        said: what has been logged about others, which is not repeated.
    """
    try:
        yield
    except aws_errors() as error:
        if not code_of(error):
            raise
        if (message := message_of(error)) not in said:
            said.add(message)
            log.warning("SageMaker cannot be queried about %s: %s", of, message)


class Account:
    """Clients for one region, created on first use.

    Args:
        section: where its settings are in the configuration, for messages about them.
    """

    def __init__(self, settings: AwsSettings, *, section: str = "launcher") -> None:
        self.settings, self.section = settings, section
        self.session = aws_session(settings.region)

    @cached_property
    def region(self) -> str:
        """Where jobs are sent.

        Raises:
            NoAccess: no region is configured.
        """
        if not self.session.region_name:
            raise NoAccess(
                f"{self.section}.region = null: AWS_REGION and your AWS profile name none either; set "
                f"{self.section}.region"
            )
        return str(self.session.region_name)

    def client(self, service: str, *, region: str | None = None, attempts: int = ATTEMPTS) -> Any:
        """A boto3 client that is patient with throttling."""
        return self.session.client(service, region_name=region or self.region, config=client_config(attempts))

    @cached_property
    def sagemaker(self) -> Any:
        """Training jobs."""
        return self.client("sagemaker")

    @cached_property
    def s3(self) -> Any:
        """The object store."""
        return self.client("s3")

    @cached_property
    def logs(self) -> Any:
        """CloudWatch Logs."""
        return self.client("logs")

    @cached_property
    def _caller(self) -> dict[str, str]:
        with understood("sts:GetCallerIdentity"):
            return dict(self.client("sts", attempts=3).get_caller_identity())

    @property
    def account_id(self) -> str:
        """The account's number."""
        return self._caller["Account"]

    @property
    def caller_arn(self) -> str:
        """The ARN of the caller."""
        return self._caller["Arn"]

    @cached_property
    def bucket(self) -> str:
        """The bucket for data and results."""
        return self.settings.bucket or f"sagemaker-{self.region}-{self.account_id}"

    def look_at_bucket(self, client: Any) -> Mapping[str, Any]:
        """S3's description of the bucket.

        Raises:
            AwsError: the settings name no bucket, and SageMaker's own is in another account. Its name can be guessed:
                whoever has created it there would be sent the data, and could change the code that runs.
        """
        from botocore.exceptions import ClientError

        if self.settings.bucket is not None:
            return dict(client.head_bucket(Bucket=self.bucket))
        try:
            return dict(client.head_bucket(Bucket=self.bucket, ExpectedBucketOwner=self.account_id))
        except ClientError as error:
            if code_of(error) not in ("403", "AccessDenied"):
                raise
        client.head_bucket(Bucket=self.bucket)  # also refused if access is merely not allowed
        raise AwsError(f"{self.section}.bucket = null: {self.bucket} belongs to another account; name your own")

    def make_bucket(self) -> None:
        """Create SageMaker's own bucket if it is missing, as SageMaker's SDK does; a bucket that is named must exist.

        Raises:
            NoAccess: not allowed.
            AwsError: it cannot be created.
        """
        from botocore.exceptions import ClientError

        if self.settings.bucket is not None:
            return
        try:
            with understood(f"s3:ListBucket and s3:CreateBucket on {self.bucket}"):
                self._make_missing_bucket()
        except ClientError as error:
            raise AwsError(
                f"{self.section}.bucket = null: {self.bucket} cannot be created ({message_of(error)}); name your own"
            ) from error

    def _make_missing_bucket(self) -> None:
        from botocore.exceptions import ClientError

        try:
            self.look_at_bucket(self.s3)
            return
        except ClientError as error:
            if code_of(error) not in NO_BUCKET:
                raise
        where = {"CreateBucketConfiguration": {"LocationConstraint": self.region}}
        try:
            self.s3.create_bucket(Bucket=self.bucket, **({} if self.region == "us-east-1" else where))
        except self.s3.exceptions.BucketAlreadyOwnedByYou:
            return  # another command was faster
        log.info("created the bucket %s", self.bucket)

    @cached_property
    def role_arn(self) -> str:
        """The execution role.

        Raises:
            NoAccess: the settings name no role.
        """
        role = self.settings.role
        if role is None:
            raise NoAccess(no_role(self.section))
        return role if role.startswith("arn:") else self._arn_of(role)

    def _arn_of(self, role: str) -> str:
        """The ARN of a role by name: it may have a path, like those created by SageMaker's console."""
        from botocore.exceptions import BotoCoreError, ClientError

        if "/" not in role:
            # Users who may not ask have to give the path or the ARN.
            with suppress(BotoCoreError, ClientError):
                return str(self.client("iam", attempts=3).get_role(RoleName=role)["Role"]["Arn"])
        return f"arn:{self.caller_arn.split(':')[1]}:iam::{self.account_id}:role/{role}"


def no_role(section: str) -> str:
    """The message if no role is named."""
    return (
        f"{section}.role = null: SageMaker's containers need an execution role; set {section}.role to its ARN or name "
        "(docs/sagemaker.md has its policy)"
    )
