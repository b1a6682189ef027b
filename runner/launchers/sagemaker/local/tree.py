"""What a container finds under /opt/ml, laid out for each host of a training job the way SageMaker does it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from runner.launchers.sagemaker.local.folders import FolderStorage
from runner.launchers.sagemaker.request import CHECKPOINTS, Channel
from runner.parcel import JOBS
from runner.s3 import Location

INTERFACE = "eth0"
STOPPED = "stopped"
EVERYBODY = 0o777
"""Containers may run as a user other than the one who starts them."""


class Hosts:
    """The hosts of a training job, and the folders that are mounted into each.

    Args:
        root: a folder for what belongs to a single host.
    """

    def __init__(self, root: Path, count: int) -> None:
        self.root = root
        self.names = [f"algo-{number}" for number in range(1, count + 1)]

    def lay(self, storage: FolderStorage, place: Location, channels: Sequence[Channel]) -> None:
        """Make the folders, and fill in what is known before the start."""
        for name in self.names:
            config = self.root / name / "input" / "config"
            config.mkdir(parents=True, exist_ok=True)
            for folder in ("input/data", "model", "output/data"):
                _make(self.root / name / folder)
            _make(self._checkpoints(name, storage, place))
            resources = {"current_host": name, "hosts": self.names, "network_interface_name": INTERFACE}
            described = {channel.name: {"TrainingInputMode": channel.mode} for channel in channels}
            for file, content in (
                ("resourceconfig", resources), ("inputdataconfig", described), ("hyperparameters", {}),
            ):  # fmt: skip
                (config / f"{file}.json").write_text(json.dumps(content))
            for channel in channels:
                if channel.kind == "ManifestFile":
                    self._lay_listed(name, channel, storage)

    def mounts(self, name: str, storage: FolderStorage, place: Location, channels: Sequence[Channel]) -> list[str]:
        """Arguments of `run` for one host."""
        mounts = [f"{self.root / name}:/opt/ml", f"{self._checkpoints(name, storage, place)}:/opt/ml/checkpoints"]
        mounts += [
            f"{storage.path(Location.parse(channel.uri))}:/opt/ml/input/data/{channel.name}:ro"
            for channel in channels
            if channel.kind == "S3Prefix"
        ]
        return [word for mount in mounts for word in ("--volume", mount)]

    def note_stopped(self) -> None:
        """Record that somebody asked them to end: saving and ending then counts as success."""
        (self.root / STOPPED).touch()

    @property
    def was_stopped(self) -> bool:
        """Whether somebody asked them to end."""
        return (self.root / STOPPED).exists()

    def failure(self) -> str:
        """The reason for failure from the first host that gives one."""
        for name in self.names:
            file = self.root / name / "output" / "failure"
            if file.is_file():
                return file.read_text(encoding="utf-8", errors="replace")
        return ""

    def _checkpoints(self, name: str, storage: FolderStorage, place: Location) -> Path:
        shared = storage.path(place / CHECKPOINTS)
        return shared if name == self.names[0] else self.root / name / "restored"

    def restore(self, storage: FolderStorage, place: Location) -> None:
        """Give every host the existing checkpoints, as SageMaker does at the start."""
        shared = storage.path(place / CHECKPOINTS)
        for name in self.names[1:]:
            if (shared / JOBS).is_dir():
                shutil.copytree(shared, self._checkpoints(name, storage, place), dirs_exist_ok=True)

    def _lay_listed(self, name: str, channel: Channel, storage: FolderStorage) -> None:
        """Lay out the files in a list, relative to the prefix that the list declares."""
        first, *rest = json.loads(storage.read(Location.parse(channel.uri)))
        root, target = Location.parse(first["prefix"]), self.root / name / "input" / "data" / channel.name
        for entry in rest:
            file = target / entry
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(storage.path(root / entry), file)
            except FileExistsError:
                continue
            except OSError:
                shutil.copyfile(storage.path(root / entry), file)


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(EVERYBODY)
