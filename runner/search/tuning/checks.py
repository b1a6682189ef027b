"""What SageMaker's tuning cannot search, found before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.aws.account import Account
from runner.aws.checks import caller_faults, faults_of
from runner.aws.image import image_of
from runner.aws.permissions import Actions, Things
from runner.errors import SettingsError, not_started
from runner.jobs.job import Job
from runner.schema import Experiment, SageMakerLauncher, TuningSettings
from runner.system.values import as_typed

TUNER: Actions = {
    "hyper-parameter-tuning-job": (
        "sagemaker:CreateHyperParameterTuningJob", "sagemaker:DescribeHyperParameterTuningJob",
        "sagemaker:StopHyperParameterTuningJob", "sagemaker:ListTrainingJobsForHyperParameterTuningJob",
        "sagemaker:AddTags",
    ),
}  # fmt: skip
"""The permissions that a search needs besides those of a training job."""
SWEEPER = "hydra/sweeper = sagemaker_tuning"
INPUTS = {"model": "the base model", "dataset": "the data set"}
"""Parts of a job's identity that are inputs of its training job."""


def require_sagemaker(config: Mapping[str, Any]) -> None:
    """Raises SettingsError if jobs would run somewhere else."""
    launcher = config.get("launcher")
    name = launcher.get("name") if isinstance(launcher, Mapping) else launcher
    if name != "sagemaker":
        raise SettingsError(
            f"{SWEEPER}: SageMaker runs the trials that it chooses, and launcher = {name!r}; set launcher=sagemaker, "
            "or search with hydra/sweeper=optuna"
        )


def refuse(faults: Sequence[str]) -> None:
    """Raises SettingsError with all faults, if there are any."""
    if faults:
        raise not_started("The search is invalid", faults)


def faults_of_settings(experiment: Experiment, launcher: SageMakerLauncher, settings: TuningSettings) -> list[str]:
    """Settings that have no effect in such a search, or keep it from working."""
    faults = []
    if launcher.local:
        faults.append(
            "launcher.local = true: SageMaker cannot tune containers on this machine; search with hydra/sweeper=optuna"
        )
    if launcher.concurrency is not None:
        said = "hydra.sweeper.parallel says how many trials run at the same time"
        faults.append(f"launcher.concurrency = {launcher.concurrency}: has no effect here; {said}")
    because = "here, where SageMaker starts the training jobs"
    faults += launcher.idle("resubmissions", because=because, where="launcher.")
    if launcher.keep_alive_s:
        said = "has no effect here, where SageMaker keeps instances for the next trial by itself; remove it"
        faults.append(f"launcher.keep_alive_s = {launcher.keep_alive_s}: {said}")
    if launcher.pack not in ("auto", 1):
        said = "has no effect here, where each trial is a training job of its own; remove it"
        faults.append(f"launcher.pack = {as_typed(launcher.pack)}: {said}")
    if experiment.pruning.name != "none":
        said = "trials cannot see each other there; remove it, or set hydra.sweeper.early_stopping=Auto"
        faults.append(f"pruning = {experiment.pruning.name!r}: {said}")
    every, name = experiment.validation.every, experiment.objective.name
    if settings.ends_early and name.startswith("validation/") and not 0 < every < experiment.steps:
        what = "strategy=Hyperband" if settings.strategy == "Hyperband" else "early_stopping=Auto"
        faults.append(
            f"validation.every = {every}: hydra.sweeper.{what} decides by what is measured during a training, and "
            f"{name} is measured only at its end; set it to fewer than the steps"
        )
    return faults


def faults_of_permissions(launcher: SageMakerLauncher) -> list[str]:
    """The missing permissions for tuning jobs, as far as they may be queried."""
    account = Account(launcher)
    return faults_of(account, image_of(launcher), [lambda: caller_faults(account, TUNER, Things())])


def faults_of_inputs(jobs: Sequence[Job], chosen: Sequence[str]) -> list[str]:
    """Choices that would need inputs other than the first job's, which all trials share.

    Args:
        jobs: the first job, and one for each other value that was tried.
        chosen: the override in which each of the others differs.
    """
    return [
        f"{text}: changes {INPUTS[part]}, which is sent once for all trials; run a search for each"
        for job, text in zip(jobs[1:], chosen, strict=True)
        for part in INPUTS
        if job.identity[part] != jobs[0].identity[part]
    ]
