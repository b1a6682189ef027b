"""The AWS account that jobs are sent to: clients, and what their refusals mean. The only module that makes clients."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from runner.errors import SettingsError
from runner.schema import SageMakerLauncher

ATTEMPTS = 10
"""Tries of a call that is throttled or does not get through; the pauses between them grow."""
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60


class NoAccess(SettingsError):
    """AWS cannot be asked: no region, no credentials, no way there, or not allowed."""


class Account:
    """Clients for one region; made when they are first needed."""

    def __init__(self, settings: SageMakerLauncher) -> None:
        import boto3

        # It tells at this level where it has found credentials and endpoints.
        logging.getLogger("botocore").setLevel(logging.WARNING)
        self.settings = settings
        self.session = boto3.Session(region_name=settings.region)

    @cached_property
    def region(self) -> str:
        """Where jobs are sent.

        Raises:
            NoAccess: nothing says which region.
        """
        if not self.session.region_name:
            raise NoAccess(
                "launcher.region = None: nor does AWS_REGION or your AWS profile name one; set launcher.region"
            )
        return str(self.session.region_name)

    def client(self, service: str, *, region: str | None = None, attempts: int = ATTEMPTS) -> Any:
        """A client of boto3 that is patient with throttling."""
        from botocore.config import Config

        config = Config(
            retries={"mode": "adaptive", "max_attempts": attempts},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=32,
            user_agent_extra="lora-runner",
        )
        return self.session.client(service, region_name=region or self.region, config=config)

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
        """Who asks."""
        return self._caller["Arn"]

    @cached_property
    def bucket(self) -> str:
        """The bucket for data and results."""
        return self.settings.bucket or f"sagemaker-{self.region}-{self.account_id}"

    @cached_property
    def role_arn(self) -> str:
        """The execution role.

        Raises:
            NoAccess: the settings name none.
        """
        role = self.settings.role
        if role is None:
            raise NoAccess(
                "launcher.role = None: training jobs need an execution role; set launcher.role to its ARN or name "
                "(docs/sagemaker.md has its policy)"
            )
        partition = self.caller_arn.split(":")[1] if not role.startswith("arn:") else ""
        return role if role.startswith("arn:") else f"arn:{partition}:iam::{self.account_id}:role/{role}"


def code_of(error: Exception) -> str:
    """AWS's name of an error; empty if it is none of AWS's."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def message_of(error: Exception) -> str:
    """AWS's words, in one line."""
    response = getattr(error, "response", None) or {}
    return " ".join(str(response.get("Error", {}).get("Message") or error).split())


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Turn what keeps AWS from being asked into an error for the user.

    Raises:
        NoAccess: no credentials, expired or refused ones, no network, no permission.
    """
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError:
        raise NoAccess(
            "AWS credentials: there are none; `aws configure`, `aws sso login`, or set AWS_PROFILE"
        ) from None
    except ClientError as error:
        code = code_of(error)
        if code in ("ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException"):
            raise NoAccess(f"AWS credentials: {message_of(error)}; log in again, or set AWS_PROFILE") from None
        if "AccessDenied" in code or "Unauthorized" in code or code == "403":
            raise NoAccess(f"AWS permissions: {message_of(error)}; add {what} to your policy") from None
        raise
    except BotoCoreError as error:
        raise NoAccess(f"AWS cannot be reached for {what}: {' '.join(str(error).split())}") from None
