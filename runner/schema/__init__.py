"""Every setting there is, once: frozen pydantic models that Hydra, the worker and the container all read."""

from __future__ import annotations

from runner.schema.comparing import ObjectiveSettings, PruningSettings, SearchSettings
from runner.schema.experiment import GROUPS, Experiment
from runner.schema.inputs import DatasetSettings, ModelSettings
from runner.schema.launching import Launcher, LauncherSettings, LocalLauncher, QueuedLauncher, SlurmLauncher
from runner.schema.running import LoggerSettings, ValidationSettings
from runner.schema.training import LoraSettings, LossSettings, LrSchedulerSettings, OptimizerSettings

__all__ = [
    "GROUPS",
    "DatasetSettings",
    "Experiment",
    "Launcher",
    "LauncherSettings",
    "LocalLauncher",
    "LoggerSettings",
    "LoraSettings",
    "LossSettings",
    "LrSchedulerSettings",
    "ModelSettings",
    "ObjectiveSettings",
    "OptimizerSettings",
    "PruningSettings",
    "QueuedLauncher",
    "SearchSettings",
    "SlurmLauncher",
    "ValidationSettings",
]
