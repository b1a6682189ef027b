"""`launcher=sagemaker`: runs jobs in training jobs on Amazon SageMaker and brings what they write into job folders."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import groupby
from typing import TYPE_CHECKING

from runner.aws.image import image_of
from runner.errors import SettingsError
from runner.jobs.job import Job, read_manifest
from runner.jobs.submission import Submission
from runner.launchers import MoreJobs
from runner.launchers.cluster import gone_in_reach
from runner.launchers.lots import jobs_of_workers, recorded_lots
from runner.launchers.sagemaker.channels import too_many_channels
from runner.launchers.sagemaker.divide import divided
from runner.launchers.sagemaker.estimate import does_not_fit, estimate
from runner.launchers.sagemaker.in_place import in_other_regions
from runner.launchers.sagemaker.record import CLUSTER
from runner.launchers.settle import close
from runner.paths import ExperimentPaths
from runner.plan import Plan
from runner.s3 import is_s3
from runner.schema import SageMakerLauncher
from runner.schema.instances import INSTANCES
from runner.system.exclusive import alone_if_free
from runner.system.machine import Device, Machine, this_machine

if TYPE_CHECKING:
    from runner.launchers.cluster import Cluster, Gone
    from runner.launchers.sagemaker.local.containers import LocalContainers
    from runner.launchers.sagemaker.training_jobs import SageMakerCluster

__all__ = ["check", "cluster", "collect", "launch", "machine", "preview", "ready"]

log = logging.getLogger(__name__)


def check(settings: SageMakerLauncher) -> list[str]:
    """Everything that is wrong with the account and the settings; a dry run does not ask AWS."""
    if settings.local:
        from runner.launchers.sagemaker.local.containers import preflight as local_preflight

        return [] if settings.dry_run else local_preflight(settings, image_of(settings))
    if find_spec("boto3") is None:
        said = "launcher = 'sagemaker': needs the package boto3, which is not installed; "
        return [said + "pip install 'lora-runner[sagemaker]'"]
    if settings.dry_run:
        return []
    return list(_checked(settings.model_dump_json()))


@lru_cache
def _checked(settings: str) -> tuple[str, ...]:
    """The check, run once for all jobs of a command."""
    from runner.aws.account import Account
    from runner.launchers.sagemaker.preflight import preflight

    known = SageMakerLauncher.model_validate_json(settings)
    return tuple(preflight(known, Account(known), image_of(known)))


def machine(settings: SageMakerLauncher) -> Machine:
    """The instances of all simultaneous training jobs."""
    if settings.local:
        return this_machine(settings.device)
    instance, count = INSTANCES[settings.instance], (settings.concurrency or 1) * settings.instances
    if instance.gpus and settings.device != "cpu":
        gpu = Device("cuda", instance.gpu_name, instance.gpu_memory_gb)
        return Machine((gpu,) * (instance.gpus * count), instance.cores)
    return Machine((Device("cpu", f"{instance.name}, {instance.cores} cores", instance.memory_gb),), instance.cores)


def launch(plan: Plan, settings: SageMakerLauncher, more: MoreJobs | None = None) -> None:
    """Submit what is missing, and wait for it unless told not to; see `Dispatch.run`."""
    from runner.launchers.dispatch import Dispatch

    reached = ready_here(plan, settings) if settings.local else ready(plan, settings)
    Dispatch(divided(plan, settings), settings, reached, more).run()


def ready_here(plan: Plan, settings: SageMakerLauncher) -> Cluster:
    """Containers on this machine in place of training jobs.

    Raises:
        SettingsError: a base model is in S3, which they cannot reach.
    """
    for job in plan.todo:
        for key in ("path", "vae"):
            if is_s3(value := getattr(job.settings.model, key) or ""):
                raise SettingsError(
                    f"model.{key} = {value!r}: containers of this machine do not reach S3; name a folder, or leave "
                    "out launcher.local"
                )
    return cluster(settings)


def ready(plan: Plan, settings: SageMakerLauncher) -> SageMakerCluster:
    """The account's training jobs, with a bucket for what they need; logs what the plan will cost.

    Raises:
        SettingsError: a job of the plan is too large for the instances; a training job has too many inputs.
    """
    gpu_gb = INSTANCES[settings.instance].gpu_memory_gb
    if faults := [fault for pack in plan.packs if (fault := does_not_fit(pack, settings, gpu_gb))]:
        raise SettingsError("\n".join(faults))
    _warn_of_secrets(settings)
    reached = _cluster(settings)
    if fault := too_many_channels(divided(plan, settings).packs, reached.places):
        raise SettingsError(fault)
    jobs = [job for pack in plan.packs for job in pack.jobs]
    if faults := in_other_regions(jobs, reached.account.s3, reached.account.region):
        raise SettingsError("\n".join(faults))
    reached.account.make_bucket()
    price = reached.prices.per_hour(settings.instance)
    if price is not None and (found := estimate(plan, settings, price)):
        log.info("%s", found.line(settings))
    return reached


def collect(jobs: Sequence[Job], settings: SageMakerLauncher) -> None:
    """Bring what training jobs of earlier commands have written, and close those that have ended here.

    Raises:
        OutOfReach: some are in another region or account; all others were checked.
    """
    lots, apart = recorded_lots(jobs, CLUSTER), None
    if lots:
        ended, apart = gone_in_reach(cluster(settings), jobs_of_workers(lots))
        for name, gone in ended.items():
            left = [job for lot in lots for job in lot.jobs if name in lot.alive and name == lot.workers[-1]]
            _close_here(left, name, gone)
    if trials := [job for job in jobs if Submission.of(read_manifest(job.folder)).tuning]:
        from runner.launchers.sagemaker.trials import collect_trials

        collect_trials(trials, _cluster(settings))
    if apart is not None:
        raise apart


def _close_here(jobs: Sequence[Job], name: str, gone: Gone) -> None:
    """Close what a training job left, except jobs that another command has resubmitted or is resubmitting."""
    for experiment, group in groupby(jobs, key=lambda job: job.folder.parent):
        with alone_if_free(ExperimentPaths(experiment).turn(CLUSTER)) as is_free:
            if is_free:  # otherwise the next look does it
                # Bringing its results may have taken minutes.
                left = [job for job in group if not _is_sent_again(job, name)]
                close(left, gone, f"{CLUSTER} {name} {gone.words}")


def _is_sent_again(job: Job, name: str) -> bool:
    ids = Submission.of(read_manifest(job.folder)).ids
    return bool(ids) and ids[-1] != name


def cluster(settings: SageMakerLauncher) -> Cluster:
    """The account's training jobs, or containers on this machine in their place."""
    return _containers(settings.model_dump_json()) if settings.local else _cluster(settings)


def preview(plan: Plan, settings: SageMakerLauncher) -> list[str]:
    """What it would cost, the requests that would be sent, and the checks that would come first."""
    if settings.local:
        return []
    from runner.launchers.sagemaker.draft import preview_lines

    return preview_lines(plan, settings)


@lru_cache
def _containers(settings: str) -> LocalContainers:
    from runner.launchers.sagemaker.local.containers import LocalContainers, engine

    known = SageMakerLauncher.model_validate_json(settings)
    return LocalContainers(known, image=image_of(known) or "", program=engine() or "docker")


@lru_cache
def _cluster_of(settings: str) -> SageMakerCluster:
    # boto3 is imported only when AWS is called.
    from runner.aws.account import Account
    from runner.launchers.sagemaker.training_jobs import SageMakerCluster

    known = SageMakerLauncher.model_validate_json(settings)
    return SageMakerCluster(known, Account(known), image=image_of(known) or "")


def _cluster(settings: SageMakerLauncher) -> SageMakerCluster:
    """One for each set of settings: it remembers what it has seen and when it last asked."""
    return _cluster_of(settings.model_dump_json())


def _warn_of_secrets(settings: SageMakerLauncher) -> None:
    from runner.launchers.sagemaker.inputs import PASSED_SECRETS

    if settings.pass_secrets:
        passed = [name for name in PASSED_SECRETS if os.environ.get(name)]
        log.warning(
            "launcher.pass_secrets = true: %s can be read by everybody who may describe the training jobs; "
            "launcher.wandb_secret and launcher.hub_secret keep them in Secrets Manager",
            " and ".join(passed) or "what is set later",
        )
