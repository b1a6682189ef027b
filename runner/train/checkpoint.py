"""What a killed job resumes from: one folder per checkpoint, complete or absent, of which a few are kept.

The adapter, its average, the optimizer, the schedule and the sums for the next record are the whole state: order, noise
and dropout are functions of the step, and every process holds the same weights, so one process's files are complete for
any number of processes.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.errors import CheckpointError
from runner.jobs.job import Job
from runner.paths import atomic_folder

log = logging.getLogger(__name__)

ADAPTER, REST, ABOUT = "adapter.safetensors", "optimizer.pt", "about.json"

DAMAGES = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, RuntimeError),
    *(pickle.UnpicklingError, SafetensorError),
)
"""What reading a truncated or empty file can raise."""


def save_checkpoint(job: Job, step: int, adapter: Mapping[str, Mapping[str, Tensor]], rest: Mapping[str, Any]) -> Path:
    """Write a checkpoint of `step` atomically; then remove the oldest beyond `checkpoint.keep`, and all later ones.

    Args:
        rest: everything in the state apart from the adapter.
    """
    target = job.paths.checkpoint_at(step)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as temporary:
        save_file(
            {f"{part}/{key}": tensor for part, layers in adapter.items() for key, tensor in layers.items()},
            temporary / ADAPTER,
        )
        # In memory first: torch's own message about a full disk is incomprehensible.
        content = io.BytesIO()
        torch.save(dict(rest), content)
        content.seek(0)
        with (temporary / REST).open("wb") as file:
            shutil.copyfileobj(content, file)
        (temporary / ABOUT).write_text(json.dumps({"step": step, "identity": job.identity}), encoding="utf-8")
        for each in temporary.iterdir():
            with each.open("rb") as written:
                os.fsync(written.fileno())
        if target.exists():  # one that could not be read
            shutil.rmtree(target)
    steps = _steps(job.paths.checkpoints)
    until = steps.index(target) + 1
    for old in steps[:until][: -job.experiment.checkpoint.keep]:
        shutil.rmtree(old)
    for unreadable in steps[until:]:  # otherwise the job would later resume from there
        shutil.rmtree(unreadable, ignore_errors=True)
    for torn in job.paths.checkpoints.glob(".step-*"):
        shutil.rmtree(torn, ignore_errors=True)
    return target


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=lambda each: (len(each.name), each.name))


def load_checkpoint(job: Job) -> tuple[int, dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """(step, adapter, rest) of the newest readable checkpoint, or None if there is none.

    Raises:
        CheckpointError: it belongs to another configuration or data set.
    """
    for folder in reversed(_steps(job.paths.checkpoints)):
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            tensors = load_file(folder / ADAPTER)
            rest = torch.load(folder / REST, map_location="cpu", weights_only=True)
            step, identity = int(about["step"]), dict(about["identity"])
        except DAMAGES as error:
            log.warning("%s cannot be read (%s); going back to the one before", folder, error)
            continue
        _refuse_other(identity, job.identity, folder)
        adapter: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, key = name.partition("/")
            adapter.setdefault(part, {})[key] = tensor
        return step, adapter, rest
    return None


def _refuse_other(saved: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    different = [key for key in sorted(saved.keys() | wanted.keys()) if saved.get(key) != wanted.get(key)]
    if different:
        lines = [
            f"  {key.removeprefix('settings.')}: {saved.get(key, 'default')} there, {wanted.get(key, 'default')} here"
            for key in different
        ]
        raise CheckpointError(
            "\n".join(
                [
                    f"{folder} was made by another configuration or data set:",
                    *lines,
                    "Remove it to start anew.",
                ]
            )
        )
