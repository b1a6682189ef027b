"""The files of a training container: where they are, and what SageMaker's files say of hosts and hyperparameters."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import RunnerError
from runner.parcel import CACHE, JOBS
from runner.paths import write_text
from runner.system.values import as_typed

ROOT = "SM_ML_ROOT"
"""Environment variable with the tree's folder, if it is not /opt/ml."""
PORT = "RUNNER_MEETING_PORT"
"""Environment variable with the port on the first host where several hosts find each other."""
USUAL_PORT = 7777
FAILURE_CHARACTERS = 1024
"""How much of a reason SageMaker shows."""
NOT_SETTINGS = ("_", "sagemaker_")
"""Hyperparameters with these prefixes are SageMaker's own."""


@dataclass(frozen=True)
class Host:
    """This container among those of a training job, in an order that is the same on all of them."""

    name: str
    names: tuple[str, ...]
    interface: str | None
    """The network interface on which they reach each other; None if the named one does not exist."""

    @property
    def rank(self) -> int:
        """Its place in the order."""
        return self.names.index(self.name)

    @property
    def is_first(self) -> bool:
        """Whether this one writes the job folders."""
        return self.rank == 0


class Tree:
    """The paths below /opt/ml."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.data = self.root / "input" / "data"
        self.checkpoints = self.root / "checkpoints"
        self.jobs = self.checkpoints / JOBS
        self.cache = self.checkpoints / CACHE
        self.model = self.root / "model"
        self.failure = self.root / "output" / "failure"
        self.written: tuple[Path, ...] = (self.checkpoints, self.model, self.failure.parent)

    @classmethod
    def here(cls) -> Tree:
        """The tree of this container."""
        return cls(Path(os.environ.get(ROOT) or "/opt/ml"))

    def channel(self, name: str) -> Path:
        """The folder of an input channel."""
        return self.data / name

    def host(self) -> Host:
        """Which of the job's hosts this is.

        Raises:
            RunnerError: resourceconfig.json cannot be read, or does not name this host among the others.
        """
        found = self._said("resourceconfig")
        names, current = found.get("hosts"), str(found.get("current_host"))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or current not in names:
            raise RunnerError(f"resourceconfig.json: current_host = {current!r} is not among hosts = {as_typed(names)}")
        interface = found.get("network_interface_name")
        # SageMaker's local mode names one that does not exist.
        exists = isinstance(interface, str) and interface and Path("/sys/class/net", interface).exists()
        return Host(current, tuple(sorted(names, key=_natural)), interface if exists else None)

    def overrides(self) -> dict[str, str]:
        """Hyperparameters that are settings of the job, by their dotted keys; none if the file does not exist.

        Raises:
            RunnerError: the file is damaged.
        """
        if not self._config_file("hyperparameters").exists():
            return {}
        found = self._said("hyperparameters")
        return {key: str(value) for key, value in found.items() if not key.startswith(NOT_SETTINGS)}

    def _config_file(self, name: str) -> Path:
        return self.root / "input" / "config" / f"{name}.json"

    def _said(self, name: str) -> Mapping[str, Any]:
        file = self._config_file(name)
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunnerError(f"{file} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise RunnerError(f"{file} should hold a mapping, and holds {as_typed(found)}")
        return found

    def write_failure(self, reason: str) -> None:
        """Record why the training job fails; SageMaker shows the beginning."""
        self.failure.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.failure, reason.strip()[:FAILURE_CHARACTERS])


def meeting_port() -> int:
    """The port on the first host where the processes of all hosts find each other.

    Raises:
        RunnerError: the environment names one that is not a number.
    """
    named = os.environ.get(PORT, str(USUAL_PORT))
    if not named.isdecimal():
        raise RunnerError(f"{PORT} = {named!r} is not a port")
    return int(named)


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts algo-2 before algo-10."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", name)]
