"""Turns what Hydra composed into the settings of a task: only keys that the task knows, and none without effect.

Hydra composes all groups whatever the task is. A task after training knows only a few of them, and takes the base model
from the adapter's own training unless the user chooses another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from runner.jobs.adapter_file import job_folder
from runner.paths import JobPaths, path_of
from runner.schema.experiment import Experiment
from runner.schema.job import JobSettings
from runner.schema.messages import unknown_key
from runner.system.values import as_typed

OF_THE_BASE = ("model", "precision", "resolution")
"""The settings of an adapter's own training that describe its base model."""


def task_faults(raw: Mapping[str, Any], overrides: Sequence[str], kind: type[JobSettings]) -> list[str]:
    """Faults for command-line overrides that have no effect with this task, and for keys that no task knows."""
    task = raw["task"]["name"]
    faults = []
    for text in overrides:
        key, _, value = text.lstrip("+~").partition("=")
        top = key.partition(".")[0].partition("@")[0]
        if top in Experiment.model_fields and top not in kind.model_fields:
            faults.append(f"{key} = {value}: has no effect with task={task}; remove it")
    for key in raw:
        if key not in kind.model_fields and key not in Experiment.model_fields:
            faults.append(f"{key} = {as_typed(raw[key])}: {unknown_key(key, task)}")
    launcher = raw.get("launcher")
    for key in ("processes", "instances", "nodes", "gpus_per_node"):
        if isinstance(launcher, Mapping) and isinstance(count := launcher.get(key), int) and count > 1:
            faults.append(
                f"launcher.{key} = {count}: has no effect with task={task}, which takes one process; remove it"
            )
    return faults


def settings_of(raw: Mapping[str, Any], overrides: Sequence[str], kind: type[JobSettings]) -> dict[str, Any]:
    """The task's settings, before validation."""
    said = {text.lstrip("+~").partition("=")[0].partition(".")[0] for text in overrides}
    known = {key: value for key, value in raw.items() if key in kind.model_fields}
    if not said & {"model", "recipe"}:
        trained = _training_of(raw.get("adapter"))
        known |= {key: trained[key] for key in OF_THE_BASE if key in trained and key in known and key not in said}
    return known


def _training_of(adapter: object) -> Mapping[str, Any]:
    """The configuration that the first adapter was trained with, if its job's folder is on this machine."""
    first = adapter[0] if isinstance(adapter, (list, tuple)) and adapter else adapter
    if not isinstance(first, str):
        return {}
    folder = job_folder(path_of(first).absolute())
    try:
        found = None if folder is None else yaml.safe_load(JobPaths(folder).config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, Mapping) else {}
