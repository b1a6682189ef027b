"""A training container's file tree, as SageMaker lays it out, and the entry point started in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from runner.container.tree import ROOT as ML_ROOT
from runner.jobs.job import Job, read_manifest, update_manifest
from runner.parcel import CODE, CODE_FILE, Parcel, in_channel
from tests.command_line import ROOT, Answer
from tests.train.bench import weights
from tests.weights import weights_of

DEADLINE_S = 100.0
MODEL, IMAGES = "model", "images"
RESTORED = weights_of(321)
"""The weights of an earlier container."""


class OptMl:
    """/opt/ml of one host, in another place."""

    def __init__(self, root: Path, *, host: str = "algo-1", hosts: Sequence[str] = ("algo-1",)) -> None:
        self.root = root
        self.config = root / "input" / "config"
        self.data = root / "input" / "data"
        self.jobs = root / "checkpoints" / "jobs"
        self.failure = root / "output" / "failure"
        for folder in (self.config, self.data / "config", root / "model", root / "output" / "data"):
            folder.mkdir(parents=True)
        resources = {"current_host": host, "hosts": list(hosts), "network_interface_name": "lo"}
        (self.config / "resourceconfig.json").write_text(json.dumps(resources))

    def send(self, *jobs: Job, at_once: int = 8, processes: int = 1, device: str = "cpu", **more: Any) -> OptMl:
        """Put jobs into the channel `config`; their model and images have channels of their own."""
        for job in jobs:
            settings = job.experiment.model_dump(mode="json")
            for name, section in ((MODEL, "model"), (IMAGES, "dataset")):
                if not (self.data / name).exists():
                    shutil.copytree(settings[section]["path"], self.data / name)
                settings[section]["path"] = in_channel(name)
            folder = self.data / "config" / job.id
            folder.mkdir()
            (folder / "config.yaml").write_text(yaml.safe_dump(settings))
            shutil.copy(job.paths.manifest, folder)
        parcel = {"jobs": [job.id for job in jobs], "at_once": at_once, "processes": processes, "device": device}
        Parcel.model_validate(parcel | more).write(self.data / "config")
        return self

    def hyperparameters(self, **values: str) -> OptMl:
        """Set the values that a tuner chose; `__` stands for the dot of a key."""
        chosen = {key.replace("__", "."): value for key, value in values.items()}
        (self.config / "hyperparameters.json").write_text(json.dumps(chosen))
        return self

    def send_package(self) -> OptMl:
        """Send the package of this checkout along."""
        (self.data / CODE).mkdir()
        with zipfile.ZipFile(self.data / CODE / CODE_FILE, "w") as archive:
            for file in (ROOT / "runner").rglob("*"):
                if file.is_file() and "__pycache__" not in file.parts:
                    archive.write(file, file.relative_to(ROOT))
        return self

    def restore(self, job: Job, **manifest: object) -> None:
        """Restore the folder of a job as an earlier container left it, in the state of its manifest."""
        folder = shutil.copytree(self.data / "config" / job.id, self.jobs / job.id)
        update_manifest(folder, **manifest)
        weights = self.trained(job).paths.weights
        weights.parent.mkdir()
        weights.write_bytes(RESTORED)

    def start(self, extra: Mapping[str, str] | None = None) -> Entry:
        """Start the container's first process."""
        return Entry(self, extra or {})

    def run(self, extra: Mapping[str, str] | None = None) -> Answer:
        """Start it and wait for it to end."""
        return self.start(extra).end()

    def state(self, job: Job) -> str:
        return str(read_manifest(self.jobs / job.id)["state"])

    def trained(self, job: Job) -> Job:
        """The job as it is in the container."""
        return Job(job.id, job.settings, job.identity, self.jobs / job.id, job.overrides)


class Entry:
    """The running entry point."""

    def __init__(self, tree: OptMl, extra: Mapping[str, str]) -> None:
        self.tree = tree
        # The package is found as in the image, not because it is in the current folder.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", ML_ROOT: str(tree.root), **extra}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runner.container", "train"],
            cwd=tree.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, pattern: str) -> Path:
        """Wait for a file in the tree."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if found := sorted(self.tree.root.glob(pattern)):
                return found[0]
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.02)
        raise AssertionError(f"no {pattern}")

    def end(self) -> Answer:
        output = self.process.communicate(timeout=DEADLINE_S)[0]
        return Answer(self.process.returncode, output)


def files_with(root: Path, text: str) -> list[Path]:
    """Files below a folder that contain a text anywhere."""
    return [file for file in root.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


def same_bits(left: Job, right: Job) -> bool:
    """Whether two jobs produced identical weights."""
    one, other = weights(left), weights(right)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
