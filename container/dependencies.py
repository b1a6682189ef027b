"""What the image installs: the project's dependencies in the tested versions, with the base image's own torch.

    python dependencies.py requirements sagemaker,optimizers
    python dependencies.py constraints

Prints lines for pip. A base image may come with a torch built for its drivers: if that satisfies the project, it stays
as it is, and so do the packages that belong to it.
"""

from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path

# Every pip ships it; a bare base image may not have it otherwise.
from pip._vendor.packaging.requirements import Requirement

PROJECT, CONSTRAINTS = Path("pyproject.toml"), Path("constraints.txt")
OF_TORCH = ("triton", "nvidia-", "cuda-")


def requirements(extras: list[str]) -> list[str]:
    """The dependencies of the project and of some of its extras."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(line for name in extras for line in project["optional-dependencies"][name])]


def constraints() -> list[str]:
    """The tested versions, but with the base image's own torch if it has a suitable one."""
    lines = [line.split("#")[0].strip() for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines()]
    kept = kept_torch()
    if kept is None:
        return [line for line in lines if line]
    others = [line for line in lines if line and not _name(line).startswith(OF_TORCH) and _name(line) != "torch"]
    return [*others, f"torch=={kept}"]


def kept_torch() -> str | None:
    """The version of the torch that is installed, if it satisfies the project."""
    try:
        found = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
    wanted = next(each for each in map(Requirement, requirements([])) if each.name == "torch")
    return found if wanted.specifier.contains(found, prereleases=True) else None


def _name(line: str) -> str:
    return Requirement(line).name.lower().replace("_", "-")


def main(arguments: list[str]) -> str:
    """The requested lines."""
    kind, *rest = arguments
    if kind == "constraints":
        return "\n".join(constraints())
    return "\n".join(requirements([name for name in ",".join(rest).split(",") if name]))


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")
