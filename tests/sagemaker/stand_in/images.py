"""Container images: which exist in ECR, and which command each stands for when no containers are used."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import uuid
from pathlib import Path
from typing import Any

from .platform import ACCOUNT, Platform
from .protocol import ServiceError

OWN = re.compile(rf"{ACCOUNT}\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com/([^:@]+)(?::([^@]+))?(?:@(sha256:\w+))?")


@dataclasses.dataclass(frozen=True)
class Image:
    """What is known about an image."""

    entrypoint: tuple[str, ...]
    """Its ENTRYPOINT, as a command of this machine (backend `processes`)."""
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    """Its ENV."""
    folder: Path | None = None
    """Its WORKDIR."""
    reference: str = ""
    """The container engine's name for it (backend `containers`)."""


class Images:
    """The images of the account's registry, and those of other registries that a test names."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._known: dict[str, Image] = {}
        self.default: Image | None = None
        """Used for every image that a test has not named."""

    def add(self, name: str, image: Image) -> str:
        """Make an image exist: `lora:1` in the account's registry, or a full URI of another one; returns the URI."""
        region = self._platform.settings.region
        uri = name if ".dkr.ecr." in name else f"{ACCOUNT}.dkr.ecr.{region}.amazonaws.com/{name}"
        image = dataclasses.replace(image, reference=image.reference or uri)
        self._known[uri] = image
        own = OWN.fullmatch(uri)
        if own:
            repository, tag = own[2], own[3] or "latest"
            self._known[f"{uri.partition('@')[0].removesuffix(f':{tag}')}@{self._push(repository, tag)}"] = image
        return uri

    def _push(self, repository: str, tag: str) -> str:
        """Put an image without content into ECR; returns its digest."""
        ecr = self._platform.ecr
        with contextlib.suppress(ecr.exceptions.RepositoryAlreadyExistsException):
            ecr.create_repository(repositoryName=repository)
        layer = {"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": 1}
        config = {"mediaType": "application/vnd.docker.container.image.v1+json", "size": 1}
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {**config, "digest": f"sha256:{uuid.uuid4().hex * 2}"},
            "layers": [{**layer, "digest": f"sha256:{uuid.uuid4().hex * 2}"}],
        }
        pushed = ecr.put_image(repositoryName=repository, imageTag=tag, imageManifest=json.dumps(manifest))
        return str(pushed["image"]["imageId"]["imageDigest"])

    def require(self, uri: str, role_arn: str, may_pull: bool = True) -> None:
        """Refuse an image missing from the account's registry; other registries are not checked.

        Raises:
            ServiceError: ValidationException, in AWS's words.
        """
        own = OWN.fullmatch(uri)
        if own is None:
            return
        _, repository, tag, digest = own.groups()
        wanted = {"imageDigest": digest} if digest else {"imageTag": tag or "latest"}
        ecr, missing = self._platform.ecr, not may_pull
        try:
            ecr.describe_images(repositoryName=repository, imageIds=[wanted])
        except ecr.exceptions.RepositoryNotFoundException:
            missing = True
        except ecr.exceptions.ImageNotFoundException as error:
            raise ServiceError("ValidationException", f"Requested image {uri} not found.") from error
        if missing:
            message = (
                f"Cannot find repository: {repository} in registry ID: {ACCOUNT} Please check if your ECR repository "
                f"exists and role {role_arn} has proper pull permissions for SageMaker: "
                "ecr:BatchCheckLayerAvailability, ecr:BatchGetImage, ecr:GetDownloadUrlForLayer"
            )
            raise ServiceError("ValidationException", message)

    def find(self, uri: str) -> Image:
        """What stands for an image that exists."""
        image = self._known.get(uri, self.default)
        if image is None and self._platform.settings.backend == "containers":
            return Image((), reference=uri)
        assert image is not None, f"the stand-in knows no command for {uri}: images.add(...) names it"
        return image


def entry_of(request: dict[str, Any], word: str) -> tuple[list[str], list[str]]:
    """Entry point (empty: the image's own) and arguments of a container; without either, it gets the service's word."""
    entrypoint = list(request.get("ContainerEntrypoint") or [])
    return entrypoint, list(request.get("ContainerArguments") or ([] if entrypoint else [word]))
