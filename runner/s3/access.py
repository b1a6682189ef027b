"""Whether AWS can be asked at all: clients, and what its refusals mean to a user."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from runner.errors import SettingsError

ATTEMPTS = 10
"""Tries of a call that is throttled or does not get through; the pauses between them grow."""
FEW_ATTEMPTS = 3
"""Of what a user waits for."""
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60


class NoAccess(SettingsError):
    """AWS cannot be asked: no region, no credentials, no way there, or not allowed."""


def client_config(attempts: int = ATTEMPTS) -> Any:
    """How clients of boto3 behave: patient with throttling."""
    from botocore.config import Config

    return Config(
        retries={"mode": "adaptive", "max_attempts": attempts},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=32,
        user_agent_extra="lora-runner",
    )


def require_boto3() -> None:
    """Raise NoAccess if AWS's library is not installed."""
    if find_spec("boto3") is None:
        raise NoAccess("S3 needs the package boto3, which is not installed; pip install 'lora-runner[sagemaker]'")


def s3_client() -> Any:
    """A client for S3 with the credentials of the environment or profile; buckets of any region answer it."""
    import boto3

    # It tells at this level where it has found credentials and endpoints.
    logging.getLogger("botocore").setLevel(logging.WARNING)
    session = boto3.Session()
    # Without any region S3 is asked in this one, and says itself where a bucket is.
    return session.client("s3", region_name=session.region_name or "us-east-1", config=client_config(FEW_ATTEMPTS))


def code_of(error: Exception) -> str:
    """AWS's name of an error; empty if it is none of AWS's."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def message_of(error: Exception) -> str:
    """AWS's words, in one line."""
    response = getattr(error, "response", None) or {}
    return " ".join(str(response.get("Error", {}).get("Message") or error).split())


def bucket_region(answer: Mapping[str, Any]) -> str | None:
    """Where a bucket is by the answer of HeadBucket, which boto3 sends on to whatever region that is.

    The parameter is newer than the header.
    """
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region: str | None = answer.get("BucketRegion") or headers.get("x-amz-bucket-region")
    return region


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
