"""Makes a new W&B run from a job's folder, for a job whose run was lost or never made.

Reads config.yaml, manifest.json, metrics.jsonl and samples/; changes none of them.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import yaml

from runner.paths import JobPaths
from runner.schema import LoggerSettings
from runner.track.agent import agent_run_id
from runner.track.metrics import MetricsFile
from runner.track.opening import open_mirror
from runner.track.samples import read_samples

log = logging.getLogger(__name__)


def rebuild(folder: Path, *, mode: str = "auto") -> str | None:
    """Log a whole job folder as a new run, named `<job id>-rebuilt-<time>` so that it adds to no other run.

    Returns:
        The page of the run, or None if it is offline.

    Raises:
        FileNotFoundError: if there is no config.yaml or no manifest.json.
        ValueError: if either cannot be read.
    """
    config, manifest = _read(folder)
    recorded = config.get("logger") or {}
    known = {key: recorded[key] for key in ("project", "entity", "timeout_s") if recorded.get(key)}
    tags = (*recorded.get("tags", ()), "rebuilt")
    settings = LoggerSettings.model_validate({"mode": mode, "tags": tags, **known})
    return _replay(settings, folder, config, manifest, job_id=f"{manifest['id']}-rebuilt-{int(time.time())}")


def mirror_folder(settings: LoggerSettings, folder: Path) -> str | None:
    """Log the folder of a finished job whose task does not log while it works.

    Returns:
        The page of the run; None if there is none.
    """
    try:
        config, manifest = _read(folder)
        return _replay(settings, folder, config, manifest, job_id=str(manifest["id"]))
    except (OSError, ValueError, KeyError) as error:
        log.warning("W&B: %s is not mirrored (%s)", folder, error)
        return None


def report_to_agent(settings: LoggerSettings, folder: Path) -> str | None:
    """Log the folder of an already finished job to the run of the W&B sweep agent that started this process.

    An agent may draw the same settings twice. They are not trained twice, but the agent's run needs a result.

    Returns:
        The page of the run; None if there is no agent, no server, or no readable record.
    """
    return None if agent_run_id() is None else mirror_folder(settings, folder)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    paths = JobPaths(folder)
    try:
        config = yaml.safe_load(paths.config.read_text(encoding="utf-8"))
        manifest = json.loads(paths.manifest.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{paths.config} is not YAML: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{paths.manifest} is not JSON: {error}") from error
    for file, content in ((paths.config, config), (paths.manifest, manifest)):
        if not isinstance(content, dict):
            raise ValueError(f"{file} is empty or damaged")
    if "id" not in manifest:
        raise ValueError(f"{paths.manifest} names no job")
    return config, manifest


def _replay(
    settings: LoggerSettings, folder: Path, config: dict[str, Any], manifest: dict[str, Any], *, job_id: str
) -> str | None:
    """Everything that a job logs while it trains, in the same order."""
    mirror = open_mirror(
        settings,
        job_id=job_id,
        experiment_name=str(config.get("name", folder.parent.name)),
        job_name=" ".join(manifest.get("overrides") or ()) or str(manifest.get("name", folder.name)),
        config=config,
        folder=folder,
    )
    paths = JobPaths(folder)
    images: dict[int, list[tuple[Path, str]]] = {}
    for sample in read_samples(folder):
        images.setdefault(sample.step, []).append((sample.path, sample.caption))
    for line in MetricsFile(paths.metrics).read():
        step = int(line["step"])
        values = {
            name: value
            for name, value in line.items()
            if isinstance(value, (int, float)) and name not in ("step", "time")
        }
        for earlier in [known for known in images if known < step]:
            mirror.images(earlier, images.pop(earlier))
        mirror.log(step, values)
    for step, row in images.items():
        mirror.images(step, row)
    if paths.lora.is_dir():
        mirror.adapter(paths.lora, {"rebuilt": True})
    told = ("objective", "objective_name", "steps_done", "error")
    mirror.finish(
        str(manifest.get("state", "failed")),
        {key: manifest[key] for key in told if manifest.get(key) is not None},
    )
    return mirror.url
