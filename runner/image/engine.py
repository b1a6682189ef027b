"""The program that builds and pushes images: docker, podman or buildah, behind one interface."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from runner.errors import RunnerError

ENGINES = ("docker", "podman", "buildah")
PLATFORM = "linux/amd64"
"""The platform of SageMaker's instances, whatever machine the image is built on."""
OUTPUTS = ("--output", "-o", "--load", "--push")
"""Docker options that set an image's output; at most one may be given."""


class Engine:
    """A container engine on this machine.

    Args:
        name: which one; None takes the first that is installed.

    Raises:
        RunnerError: it is not installed.
    """

    def __init__(self, name: str | None = None) -> None:
        wanted = ENGINES if name is None else (name,)
        found = next((each for each in wanted if shutil.which(each)), None)
        if found is None:
            raise RunnerError(
                f"there is no {' and no '.join(wanted)} on this machine; images are built and pushed with one of them"
            )
        self.name = found

    def build(self, root: Path, dockerfile: Path, tag: str, arguments: dict[str, str], options: Sequence[str]) -> None:
        """Build an image; the engine's output goes to that of this process.

        Args:
            root: folder of everything that goes into it.
            dockerfile: relative to the root.
            options: further options, passed to the engine unchanged.
        """
        told = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        command = ["build", "--platform", PLATFORM, "--file", str(root / dockerfile), "--tag", tag, *told]
        self._run([*command, *self._as_docker(options), *options, str(root)])

    def _as_docker(self, options: Sequence[str]) -> list[str]:
        """Options for an image with Docker's own media types: SageMaker's endpoints reject images with OCI's.

        Args:
            options: the user's; if they set the output, its media types are left to them.
        """
        if self.name != "docker":
            return ["--format", "docker"]
        asked = subprocess.run([self.name, "build", "--help"], capture_output=True, text=True, check=False)
        if "--provenance" not in asked.stdout:
            return []  # a builder from before BuildKit, which writes only these types
        # With attestations, an image becomes an index of several parts, which has OCI's types whatever is asked for.
        plain = ["--provenance=false"]
        if any(option.partition("=")[0] in OUTPUTS for option in options):
            return plain
        return [*plain, "--output", "type=image,oci-mediatypes=false"]

    def size_bytes(self, tag: str) -> int | None:
        """The uncompressed size of an image on this machine; None if the engine does not report it."""
        if self.name == "buildah":
            return None
        asked = [self.name, "image", "inspect", "--format", "{{.Size}}", tag]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdecimal() else None

    def login(self, registry: str, user: str, password: str) -> None:
        """Log in to a registry; the password goes through stdin, because all users can read command lines."""
        self._run(["login", "--username", user, "--password-stdin", registry], given=password)

    def push(self, tag: str, target: str) -> None:
        """Push an image on this machine under another name."""
        self._run(["tag", tag, target])
        self._run(["push", target])

    def _run(self, arguments: Sequence[str], *, given: str | None = None) -> None:
        done = subprocess.run([self.name, *arguments], input=given, text=True, check=False)
        if done.returncode:
            raise RunnerError(f"{self.name} {arguments[0]} ended with code {done.returncode}; it says why above")
