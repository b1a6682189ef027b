"""Runs a task in this process, on settings given as a dictionary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from runner.families import find_family
from runner.jobs.job import Job, State, update_manifest
from runner.mix.write import write_diffusers
from runner.paths import JobPaths
from runner.schema.tasks import TASKS
from runner.tasks import check_task, work_of
from tests.mix.adapters import random_layers
from tests.train.bench import CPU, Bench, family_of, pipeline_of, write_images


def do(
    task: str, folder: Path, model: Path, /, *, stop: Callable[[], bool] = lambda: False, **given: Any
) -> dict[str, Any]:
    """Check the settings and do the work in a folder; returns what the manifest would say."""
    about = {"path": str(model), "family": family_of(model), **given.pop("model", {})}
    settings = TASKS[task].model_validate({"task": {"name": task}, "model": about, **given})
    folder.mkdir(parents=True, exist_ok=True)
    check_task(settings)
    return work_of(task)(settings, JobPaths(folder), CPU, stop=stop)


def with_words(bench: Bench, model: Path, layers: bool) -> Job:
    """A job like one that was taught a word, with or without layers; nothing is trained."""
    method = {"name": "pivotal" if layers else "textual_inversion", "tokens": ["<sks>"], "initial": ["circle"]}
    images = write_images(bench.root / f"images-of-{method['name']}")
    for caption in images.glob("*.txt"):
        caption.write_text("a <sks> on a table")
    job = bench.job(model, method=method, images=images, lora={"rank": 2 if layers else 8})
    parts = {"unet": pipeline_of(model).unet}
    job.paths.lora.mkdir(parents=True)
    if layers:
        write_diffusers(job.paths.lora, find_family(job.settings.model.family), random_layers(parts))
    word = {"clip_l": torch.ones(1, 16), "clip_g": torch.ones(1, 32)}
    save_file(word, job.paths.word("<sks>"), metadata={"token": "<sks>"})
    update_manifest(job.folder, state=State.COMPLETED)
    return job
