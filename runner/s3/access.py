"""Access to AWS: clients, and what its refusals mean to a user."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

from runner.errors import SettingsError

ATTEMPTS = 10
"""Attempts for a call that is throttled or does not get through, with growing pauses between them."""
FEW_ATTEMPTS = 3
"""Attempts for a call that a user waits for."""
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired")
"""Refusals of credentials that were valid before: logging in again renews them."""
BUSY = (
    "SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled",
    "RequestThrottledException", "RequestLimitExceeded", "TooManyRequestsException", "RequestTimeout",
)  # fmt: skip
"""Refusals of a valid request that comes too often or too slowly; other services use the HTTP status for this."""
TOO_MANY_REQUESTS, SERVER_ERROR = 429, 500


class NoAccess(SettingsError):
    """AWS cannot be used: no region, no credentials, no connection, or no permission."""


def client_config(attempts: int = ATTEMPTS) -> Any:
    """The configuration of boto3 clients: patient with throttling."""
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
    """A boto3 session with the credentials of the environment or profile, and their region unless one is given."""
    import boto3
    from botocore.session import get_session

    # At level INFO it logs where it found credentials and endpoints.
    logging.getLogger("botocore").setLevel(logging.WARNING)
    bare = get_session()
    descriptions = _descriptions(bare.get_config_variable("data_path"))
    bare.register_component("data_loader", descriptions)
    session = boto3.Session(region_name=region, botocore_session=bare)
    # Every session adds the same folder to the search paths.
    descriptions.search_paths[:] = dict.fromkeys(descriptions.search_paths)
    return session


@cache
def _descriptions(folders: str | None) -> Any:
    """botocore's service descriptions, several MB for some services, which each session would otherwise read anew."""
    from botocore.loaders import create_loader

    return create_loader(folders)


def s3_client() -> Any:
    """A client for S3 with the credentials of the environment or profile; works with buckets in any region."""
    session = aws_session()
    # If no region is configured, S3 in this one tells where a bucket is.
    return session.client("s3", region_name=session.region_name or "us-east-1", config=client_config(FEW_ATTEMPTS))


def aws_errors() -> tuple[type[Exception], ...]:
    """All exceptions that AWS's library raises: refusals, no connection, and what file transfers make of both."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    return Boto3Error, BotoCoreError, ClientError


def may_pass(error: Exception) -> bool:
    """Whether one of these errors may be temporary: a lost network, too many requests, an expired login."""
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
    """AWS's code for an error, also for one that ended a transfer; empty if the error is not AWS's."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def _response(error: Exception) -> Mapping[str, Any]:
    """AWS's response to the failed request; empty if there was none."""
    from boto3.exceptions import Boto3Error

    # A transfer's error has AWS's own error only as its context.
    told = error.__context__ if isinstance(error, Boto3Error) else error
    return getattr(told, "response", None) or {}


def message_of(error: Exception) -> str:
    """AWS's message, in one line."""
    response = getattr(error, "response", None) or {}
    words = response.get("Error", {}).get("Message") or str(error)
    # The error of a transfer that was retried does not itself say why it failed.
    last = getattr(error, "last_exception", None)
    return " ".join((f"{words}: {last}" if last else words).split())


def bucket_region(answer: Mapping[str, Any]) -> str | None:
    """The region of a bucket from the response to HeadBucket, which boto3 redirects to the right region.

    The field `BucketRegion` is newer than the header.
    """
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region: str | None = answer.get("BucketRegion") or headers.get("x-amz-bucket-region")
    return region


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Turn whatever prevents access to AWS into an error for the user.

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
