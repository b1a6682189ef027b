"""The checkout that an image is built from, and the tag that identifies its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from runner import PACKAGE, __version__
from runner.errors import RunnerError

SOURCES = (
    "runner", "conf", "recipes", "container", "pyproject.toml", "constraints.txt", "README.md", "LICENSE",
)  # fmt: skip
"""What goes into an image; `.dockerignore` admits the same."""
DOCKERFILE = Path("container", "Dockerfile")
BASE_IMAGE = "public.ecr.aws/docker/library/python:3.11-slim-bookworm"
"""Python and nothing else: torch brings the parts of CUDA that it needs. The Dockerfile names the same image."""


def checkout() -> Path:
    """The root of the checkout that this package runs from.

    Raises:
        RunnerError: the package was installed without one.
    """
    root = PACKAGE.parent
    if not (root / DOCKERFILE).is_file():
        raise RunnerError(
            f"{root} is not a checkout of the project: it has no {DOCKERFILE}, from which an image is built"
        )
    return root


def files(root: Path) -> Iterator[Path]:
    """The files that go into an image, always in the same order."""
    for name in SOURCES:
        found = root / name
        for file in [found] if found.is_file() else sorted(found.rglob("*")):
            unwanted = any(part.startswith(".") or part == "__pycache__" for part in file.relative_to(root).parts)
            if file.is_file() and not unwanted and file.suffix != ".pyc":
                yield file


def default_tag(root: Path, base_image: str) -> str:
    """The project's version and a hash of the image's content: the same content gets the same tag."""
    digest = hashlib.sha256(base_image.encode())
    for file in files(root):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"\n{file.relative_to(root).as_posix()} {content}".encode())
    return f"{__version__}-{digest.hexdigest()[:8]}"
