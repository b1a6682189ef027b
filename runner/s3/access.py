"""Whether AWS can be asked at all: clients, and what its refusals mean to a user."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

from runner.errors import SettingsError

ATTEMPTS = 10
"""Tries of a call that is throttled or does not get through; the pauses between them grow."""
FEW_ATTEMPTS = 3
"""Of what a user waits for."""
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired")
"""Refusals of credentials that were good before: whoever logs in again renews them."""
BUSY = (
    "SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled",
    "RequestThrottledException", "RequestLimitExceeded", "TooManyRequestsException", "RequestTimeout",
)  # fmt: skip
"""Refusals of a request that is good, and comes too often or too slowly; other services say it with HTTP's status."""
TOO_MANY_REQUESTS, SERVER_ERROR = 429, 500


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


def aws_session(region: str | None = None) -> Any:
    """A session of boto3 with the credentials of the environment or profile, and their region unless one is named."""
    import boto3
    from botocore.session import get_session

    # It tells at this level where it has found credentials and endpoints.
    logging.getLogger("botocore").setLevel(logging.WARNING)
    bare = get_session()
    descriptions = _descriptions(bare.get_config_variable("data_path"))
    bare.register_component("data_loader", descriptions)
    session = boto3.Session(region_name=region, botocore_session=bare)
    # To which every session adds the same folder.
    descriptions.search_paths[:] = dict.fromkeys(descriptions.search_paths)
    return session


@cache
def _descriptions(folders: str | None) -> Any:
    """What botocore's files say of services; several MB for some, which each session would read anew."""
    from botocore.loaders import create_loader

    return create_loader(folders)


def s3_client() -> Any:
    """A client for S3 with the credentials of the environment or profile; buckets of any region answer it."""
    session = aws_session()
    # Without any region S3 is asked in this one, and says itself where a bucket is.
    return session.client("s3", region_name=session.region_name or "us-east-1", config=client_config(FEW_ATTEMPTS))


def aws_errors() -> tuple[type[Exception], ...]:
    """All that AWS's library ends a call with: refusals, no way there, and what transfers of files make of both."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    return Boto3Error, BotoCoreError, ClientError


def may_pass(error: Exception) -> bool:
    """Whether one of these is over after a while: a network that is away, too many requests, an expired login."""
    from boto3.exceptions import RetriesExceededError
    from botocore import exceptions

    if response := _response(error):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return code_of(error) in (*EXPIRED, *BUSY) or status == TOO_MANY_REQUESTS or status >= SERVER_ERROR
    kinds = (
        RetriesExceededError,
        exceptions.ConnectionError,
        exceptions.HTTPClientError,
        exceptions.IncompleteReadError,
        exceptions.SSOError,
        exceptions.TokenRetrievalError,
        exceptions.CredentialRetrievalError,
    )
    return isinstance(error, kinds)


def code_of(error: Exception) -> str:
    """AWS's name of an error, also of one that a transfer has ended with; empty if it is none of AWS's."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def _response(error: Exception) -> Mapping[str, Any]:
    """What AWS has answered; nothing where it has not."""
    from boto3.exceptions import Boto3Error

    # A transfer's error has AWS's own only as what it was raised for.
    told = error.__context__ if isinstance(error, Boto3Error) else error
    return getattr(told, "response", None) or {}


def message_of(error: Exception) -> str:
    """AWS's words, in one line."""
    response = getattr(error, "response", None) or {}
    words = response.get("Error", {}).get("Message") or str(error)
    # A transfer that was tried several times does not say itself why it failed.
    last = getattr(error, "last_exception", None)
    return " ".join((f"{words}: {last}" if last else words).split())


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
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError:
        raise NoAccess(
            "AWS credentials: there are none; `aws configure`, `aws sso login`, or set AWS_PROFILE"
        ) from None
    except (Boto3Error, ClientError) as error:
        code = code_of(error)
        if code in (*EXPIRED, "InvalidClientTokenId", "UnrecognizedClientException"):
            raise NoAccess(f"AWS credentials: {message_of(error)}; log in again, or set AWS_PROFILE") from None
        if "AccessDenied" in code or "Unauthorized" in code or code == "403":
            raise NoAccess(f"AWS permissions: {message_of(error)}; add {what} to your policy") from None
        if isinstance(error, ClientError):
            raise
        raise NoAccess(f"AWS cannot be reached for {what}: {message_of(error)}") from error
    except BotoCoreError as error:
        raise NoAccess(f"AWS cannot be reached for {what}: {message_of(error)}") from None
