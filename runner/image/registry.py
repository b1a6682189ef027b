"""The account's image repository in ECR."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from runner.aws.image import REGISTRY
from runner.errors import RunnerError
from runner.s3.access import NoAccess, aws_session, client_config, message_of, require_boto3, understood


@dataclass(frozen=True)
class Login:
    """An engine's credentials for a registry; valid for twelve hours."""

    user: str
    password: str


class Repository:
    """A repository of this account, which need not exist yet.

    Args:
        region: where it is; None for that of the environment or profile.

    Raises:
        NoAccess: AWS's library is not installed, or nothing names a region.
    """

    def __init__(self, name: str, region: str | None = None) -> None:
        self.name = name
        self._ecr = _client(region)
        self.region = str(self._ecr.meta.region_name)

    def make(self) -> str:
        """Create the repository if needed, with immutable tags; returns its address, `<registry>/<name>`.

        Raises:
            NoAccess: no credentials, or not allowed.
        """
        with _asked("ecr:DescribeRepositories"):
            try:
                return self._address()
            except self._ecr.exceptions.RepositoryNotFoundException:
                pass
        with _asked("ecr:CreateRepository"):
            self._ecr.create_repository(
                repositoryName=self.name,
                imageTagMutability="IMMUTABLE",
                imageScanningConfiguration={"scanOnPush": True},
            )
        with _asked("ecr:DescribeRepositories"):
            return self._address()

    def _address(self) -> str:
        (found,) = self._ecr.describe_repositories(repositoryNames=[self.name])["repositories"]
        return str(found["repositoryUri"])

    def login(self) -> Login:
        """The credentials that an engine logs in with."""
        return _login(self._ecr)

    def digest(self, tag: str) -> str | None:
        """`sha256:...` of the image with that tag; None if there is none."""
        with _asked("ecr:DescribeImages"):
            try:
                answer = self._ecr.describe_images(repositoryName=self.name, imageIds=[{"imageTag": tag}])
            except (self._ecr.exceptions.ImageNotFoundException, self._ecr.exceptions.RepositoryNotFoundException):
                return None
        return str(answer["imageDetails"][0]["imageDigest"])

    def latest(self) -> str:
        """The reference, by digest, of the image that was pushed last.

        Raises:
            RunnerError: there is none.
        """
        images: list[dict[str, Any]] = []
        with _asked("ecr:DescribeImages"):
            pages = self._ecr.get_paginator("describe_images").paginate(
                repositoryName=self.name, filter={"tagStatus": "TAGGED"}
            )
            try:
                images = [image for page in pages for image in page["imageDetails"]]
            except self._ecr.exceptions.RepositoryNotFoundException:
                images = []
        if not images:
            raise RunnerError(f"the repository {self.name} in {self.region} has no image; python -m runner.image push")
        newest = max(images, key=lambda image: image["imagePushedAt"])
        with _asked("ecr:DescribeRepositories"):
            return f"{self._address()}@{newest['imageDigest']}"


def login_to(image: str) -> tuple[str, Login] | None:
    """The registry of an image and its credentials, if it is in ECR, in any account; None otherwise.

    Raises:
        NoAccess: no credentials, or not allowed.
    """
    registry = image.partition("/")[0]
    found = REGISTRY.fullmatch(registry)
    return (registry, _login(_client(found["region"]))) if found else None


def _client(region: str | None) -> Any:
    require_boto3()
    session = aws_session(region)
    if not session.region_name:
        raise NoAccess("AWS region: there is none; name it with --region, or set AWS_REGION")
    return session.client("ecr", config=client_config())


def _login(ecr: Any) -> Login:
    with _asked("ecr:GetAuthorizationToken"):
        (answer,) = ecr.get_authorization_token()["authorizationData"]
    user, _, password = base64.b64decode(answer["authorizationToken"]).decode().partition(":")
    return Login(user, password)


@contextmanager
def _asked(what: str) -> Iterator[None]:
    """Turn AWS errors into errors for the user; `what` is the permission that is needed."""
    from botocore.exceptions import ClientError

    try:
        with understood(what):
            yield
    except ClientError as error:
        raise RunnerError(f"{what}: {message_of(error)}") from error
