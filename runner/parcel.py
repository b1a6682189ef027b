"""What a command sends to a container besides data: which jobs, how to work through them, and where files are.

The launcher writes it, the container reads it. A training job has input channels; the text `channel:NAME/rest` in a
configuration stands for a file or folder in one of them, wherever that is in the container.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from runner.errors import RunnerError
from runner.paths import write_text

CONTAINER_USER = "RUNNER_CONTAINER_USER"
"""Environment variable: the user that root becomes in the container, if it is not the image's."""
HUB_SECRET = "RUNNER_HUB_SECRET"
"""Environment variable of an endpoint's container: names the secret with the token for gated models; never the token.
"""
CONFIG, CODE, CACHE = "config", "code", "cache"
"""Channels: the parcel with a folder for each job, the project's package, and existing encodings."""
PLAN_FILE, CODE_FILE = "plan.json", "runner.zip"
JOBS = "jobs"
"""Folder of the job folders below a container's checkpoints; encodings made there are next to it, in `CACHE`."""

CHANNEL = re.compile(r"channel:(?P<name>[A-Za-z0-9._-]{1,64})(?:/(?P<rest>.*))?", re.DOTALL)
JobId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Parcel(BaseModel):
    """The content of `plan.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs: tuple[JobId, ...] = Field(min_length=1)
    """Ids in training order; `<id>/config.yaml` and `<id>/manifest.json` are beside the plan."""
    at_once: int = Field(ge=1)
    """How many jobs a worker trains together at most."""
    processes: int = Field(ge=1)
    """Processes of each worker, over all hosts."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    secrets: dict[str, str] = {}
    """Environment variable of the workers -> where its value is stored: an ARN, never the value."""
    region: str | None = None
    """The region where the secrets are stored."""

    @field_validator("jobs")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("should name each job once")
        return value

    def write(self, folder: Path) -> None:
        """Write it to the folder of the channel `CONFIG`."""
        write_text(folder / PLAN_FILE, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Parcel:
        """Read it from that folder.

        Raises:
            RunnerError: the file is missing or not a plan.
        """
        file = folder / PLAN_FILE
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            raise RunnerError(f"{file} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}" for fault in error.errors()]
            raise RunnerError(f"{file} is not a plan: {'; '.join(faults)}") from error


def in_channel(name: str, rest: str = "") -> str:
    """How a configuration names a file or folder in a channel."""
    return f"channel:{name}" + (f"/{rest}" if rest else "")


def unpacked(node: Any, data: Path) -> Any:
    """The configuration with every `channel:NAME/rest` replaced by a path.

    Args:
        data: the folder that holds a folder for each channel.

    Raises:
        RunnerError: there is no such channel, or it has nothing of that name.
    """
    if isinstance(node, Mapping):
        return {key: unpacked(value, data) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [unpacked(value, data) for value in node]
    found = CHANNEL.fullmatch(node) if isinstance(node, str) else None
    if found is None:
        return node
    path = data / found["name"] / (found["rest"] or "")
    if not path.exists():
        missing = "nothing of that name" if (data / found["name"]).is_dir() else "no such channel"
        raise RunnerError(f"the configuration names {node!r}, and there is {missing}")
    return str(path)
