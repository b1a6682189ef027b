"""Writes a new W&B run out of a job's folder, for a job whose run was lost or never made.

Takes config.yaml, manifest.json, metrics.jsonl and samples/; changes none of them.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runner.track.metrics import MetricsFile
from runner.track.mirror import open_mirror


@dataclass(frozen=True, kw_only=True)
class RecordedLogger:
    """The `logger` section as it stands in a config.yaml, with defaults for what is missing."""

    name: str = "wandb"
    mode: str = "auto"
    project: str | None = None
    entity: str | None = None
    tags: tuple[str, ...] = ()
    timeout_s: float = 120.0


def rebuild(folder: Path, *, mode: str = "auto") -> str | None:
    """Log a whole job folder as a new run, named `<job id>-rebuilt-<time>` so that it adds to no other run.

    Args:
        folder: a job's folder.
        mode: auto, online or offline.

    Returns:
        The page of the run, or None where it is offline.

    Raises:
        FileNotFoundError: if there is no config.yaml or no manifest.json.
        ValueError: if either cannot be read.
    """
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{folder / 'config.yaml'} is not YAML: {error}") from error
    recorded = config.get("logger") or {}
    known = {key: recorded[key] for key in ("project", "entity", "timeout_s") if recorded.get(key)}
    settings = RecordedLogger(mode=mode, tags=(*recorded.get("tags", ()), "rebuilt"), **known)
    mirror = open_mirror(
        settings,
        job_id=f"{manifest['id']}-rebuilt-{int(time.time())}",
        experiment_name=str(config.get("name", folder.parent.name)),
        job_name=str(manifest.get("name", folder.name)),
        config=config,
        folder=folder,
    )
    samples = _samples(folder)
    for line in MetricsFile(folder / "metrics.jsonl").read():
        values = {name: value for name, value in line.items() if isinstance(value, (int, float))}
        step = int(values.pop("step"))
        for earlier in [known_step for known_step in samples if known_step < step]:
            mirror.images(earlier, samples.pop(earlier))
        mirror.log(step, values)
    for step, images in samples.items():
        mirror.images(step, images)
    if (folder / "lora").is_dir():
        mirror.adapter(folder / "lora", {"rebuilt": True})
    summary = {key: manifest[key] for key in ("objective", "error") if manifest.get(key) is not None}
    mirror.finish(str(manifest.get("state", "failed")), summary)
    return mirror.url


def _samples(folder: Path) -> dict[int, list[tuple[Path, str]]]:
    """Sample images with their prompts by step, in order of step."""
    prompts: list[Any] = []
    described = folder / "samples" / "prompts.json"
    if described.exists():
        prompts = json.loads(described.read_text(encoding="utf-8")).get("prompts", [])
    found: dict[int, list[tuple[Path, str]]] = {}
    for path in sorted(folder.glob("samples/step-*/p*-s*.png")):
        step, place = re.fullmatch(r"step-(\d+)", path.parent.name), re.fullmatch(r"p(\d+)-s(\d+)", path.stem)
        if step and place:
            number = int(place[1])
            prompt = prompts[number] if number < len(prompts) else f"prompt {number}"
            found.setdefault(int(step[1]), []).append((path, f"{prompt} (seed {int(place[2])})"))
    return found
