"""Asks training jobs and tuning jobs to save and end, each by the call for its kind; all of them, even if one fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runner.aws.account import Account, aws_errors, code_of, message_of
from runner.launchers.cluster import NotStopped
from runner.launchers.sagemaker.record import CLUSTER

OVER = ("ValidationException", "ResourceNotFound")
"""SageMaker's error codes for stopping what has already ended."""


def stop_training_jobs(account: Account, names: Sequence[str]) -> None:
    """Stop training jobs; SageMaker gives them two minutes.

    Raises:
        NotStopped: some of them may still run.
    """
    client = account.sagemaker
    _stop(names, lambda name: client.stop_training_job(TrainingJobName=name), account, "training-job")


def stop_searches(account: Account, names: Sequence[str]) -> None:
    """Stop tuning jobs with all their training jobs.

    Raises:
        NotStopped: some of them may still run.
    """
    client = account.sagemaker
    _stop(
        names,
        lambda name: client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name),
        account,
        "hyper-parameter-tuning-job",
    )


def _stop(names: Sequence[str], ask: Callable[[str], object], account: Account, kind: str) -> None:
    faults: dict[str, str] = {}
    for name in names:
        try:
            ask(name)
        except aws_errors() as error:
            if code_of(error) not in OVER:
                faults[name] = (
                    f"{CLUSTER} {name} was not stopped: {message_of(error)}; stop it in SageMaker's console, or with: "
                    + _command(kind, name, account.region)
                )
    if faults:
        raise NotStopped("\n".join(faults.values()), list(faults))


def _command(kind: str, name: str, region: str) -> str:
    return f"aws sagemaker stop-{kind} --{kind}-name {name} --region {region}"
