"""The program that builds and pushes images: docker, podman or buildah, told the same things."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from runner.errors import RunnerError

ENGINES = ("docker", "podman", "buildah")
PLATFORM = "linux/amd64"
"""What SageMaker's instances are, whatever the image is built on."""
OUTPUTS = ("--output", "-o", "--load", "--push")
"""Options of docker that say what becomes of an image; there may be one."""


class Engine:
    """A container engine on this machine.

    Args:
        name: which one; None takes the first that is there.

    Raises:
        RunnerError: it is not there.
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
        """Build an image; its output is this process's.

        Args:
            root: folder of everything that goes into it.
            dockerfile: relative to the root.
            options: others, as the engine has them.
        """
        told = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        command = ["build", "--platform", PLATFORM, "--file", str(root / dockerfile), "--tag", tag, *told]
        self._run([*command, *self._as_docker(options), *options, str(root)])

    def _as_docker(self, options: Sequence[str]) -> list[str]:
        """Options for an image of Docker's own media types: SageMaker's endpoints take no image of OCI's.

        Args:
            options: others; who says where the image goes says in what types.
        """
        if self.name != "docker":
            return ["--format", "docker"]
        asked = subprocess.run([self.name, "build", "--help"], capture_output=True, text=True, check=False)
        if "--provenance" not in asked.stdout:
            return []  # a builder of before BuildKit, which writes no other types
        # With attestations, an image becomes an index of several things, which is of OCI's types whatever is said.
        plain = ["--provenance=false"]
        if any(option.partition("=")[0] in OUTPUTS for option in options):
            return plain
        return [*plain, "--output", "type=image,oci-mediatypes=false"]

    def size_bytes(self, tag: str) -> int | None:
        """Of an image of this machine, uncompressed; None where the engine does not say."""
        if self.name == "buildah":
            return None
        asked = [self.name, "image", "inspect", "--format", "{{.Size}}", tag]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdecimal() else None

    def login(self, registry: str, user: str, password: str) -> None:
        """Log in to a registry; the password is on no command line, where every user of the machine could read it."""
        self._run(["login", "--username", user, "--password-stdin", registry], given=password)

    def push(self, tag: str, target: str) -> None:
        """Push an image of this machine under another name."""
        self._run(["tag", tag, target])
        self._run(["push", target])

    def _run(self, arguments: Sequence[str], *, given: str | None = None) -> None:
        done = subprocess.run([self.name, *arguments], input=given, text=True, check=False)
        if done.returncode:
            raise RunnerError(f"{self.name} {arguments[0]} ended with code {done.returncode}; it says why above")
