"""All settings, each defined once: frozen pydantic models that Hydra, the worker and the container all read."""

from __future__ import annotations

from runner.schema.comparing import ObjectiveSettings, PruningSettings, SearchSettings
from runner.schema.experiment import GROUPS, Experiment
from runner.schema.flow import FlowSettings
from runner.schema.inputs import DatasetSettings, ModelSettings, SourceSettings
from runner.schema.launchers import LauncherSettings
from runner.schema.launching import Launcher, LocalLauncher, QueuedLauncher
from runner.schema.loss import LossSettings
from runner.schema.running import LoggerSettings, ValidationSettings
from runner.schema.sagemaker import SageMakerLauncher
from runner.schema.slurm import SlurmLauncher
from runner.schema.training import LoraSettings, LrSchedulerSettings, OptimizerSettings
from runner.schema.tuning import TuningSettings

__all__ = [
    "GROUPS",
    "DatasetSettings",
    "Experiment",
    "FlowSettings",
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
    "SageMakerLauncher",
    "SearchSettings",
    "SlurmLauncher",
    "SourceSettings",
    "TuningSettings",
    "ValidationSettings",
]
