"""Training jobs as an API: create, describe, list, stop, delete; and what AWS refuses beyond its model's limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .account import Account
from .calls import Call
from .execution import Execution
from .jobs import TrainingJob
from .protocol import ServiceError, page_of
from .warm_pools import WarmPools

SORTED_BY: dict[str, Callable[[TrainingJob], Any]] = {
    "Name": lambda job: job.name,
    "CreationTime": lambda job: job.created,
    "Status": lambda job: job.status,
}


class TrainingJobs:
    """All training jobs of the account."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.jobs: dict[str, TrainingJob] = {}
        self.executions: list[Execution] = []
        self.warm_pools = WarmPools(account.quotas)

    @property
    def operations(self) -> dict[str, Any]:
        """The operations that are answered."""
        return {
            "CreateTrainingJob": lambda parameters, call: {"TrainingJobArn": self.create(parameters).arn},
            "DescribeTrainingJob": self._describe,
            "ListTrainingJobs": self._list,
            "StopTrainingJob": self._stop,
            "DeleteTrainingJob": self._delete,
        }

    def create(self, request: dict[str, Any], tuning_arn: str | None = None) -> TrainingJob:
        """Accept a job and start it.

        Raises:
            ServiceError: what AWS refuses.
        """
        account = self.account
        check_training(request)
        account.require_role(request["RoleArn"])
        uri = request["AlgorithmSpecification"]["TrainingImage"]
        account.require_image(uri, request["RoleArn"])
        name, resources = request["TrainingJobName"], request["ResourceConfig"]
        instance = account.instance(resources["InstanceType"])
        arn = account.arn("training-job", name)
        with account.lock:
            if name in self.jobs:
                message = (
                    "Job name must be unique within an AWS account and region, and a job with this name already "
                    f"exists ({arn})"
                )
                raise ServiceError("ResourceInUse", message)
            self._take_quota(request)
            job = TrainingJob(request, arn, account.platform.settings.spot_saving, tuning_arn)
            self.warm_pools.claim(job)
            self.jobs[name] = job
            account.tags[arn] = list(request.get("Tags", []))
        execution = Execution(account, job, account.images.find(uri), instance, self.warm_pools.keep)
        self.executions.append(execution)
        execution.start()
        return job

    def _take_quota(self, request: dict[str, Any]) -> None:
        resources, spot = request["ResourceConfig"], bool(request.get("EnableManagedSpotTraining"))
        running = sum(
            job.instance_count
            for job in self.jobs.values()
            if not job.has_ended and job.instance_type == resources["InstanceType"] and job.spot == spot
        )
        usage = "spot" if spot else "training"
        self.account.quotas.take(resources["InstanceType"], usage, resources["InstanceCount"], running)

    def find(self, name: str, call: Call | None = None) -> TrainingJob:
        """A job by its name. Each region has jobs of its own, and here all are in one region."""
        if name not in self.jobs or not self._is_here(call):
            raise ServiceError("ValidationException", "Requested resource not found.")
        return self.jobs[name]

    def _is_here(self, call: Call | None) -> bool:
        return call is None or call.region == self.account.platform.settings.region

    def _describe(self, parameters: dict[str, Any], call: Call) -> dict[str, Any]:
        self.warm_pools.expire()
        return self.find(parameters["TrainingJobName"], call).describe()

    def _stop(self, parameters: dict[str, Any], call: Call) -> dict[str, Any]:
        job = self.find(parameters["TrainingJobName"], call)
        with job.lock:
            if job.has_ended:
                message = f"The request was rejected because the training job is in status {job.status}."
                raise ServiceError("ValidationException", message)
            job.order_stop()
        return {}

    def _delete(self, parameters: dict[str, Any], call: Call) -> dict[str, Any]:
        job = self.find(parameters["TrainingJobName"])
        if not job.has_ended:
            raise ServiceError("ResourceInUse", f"The training job is in status {job.status}.")
        del self.jobs[job.name]
        return {}

    def _list(self, parameters: dict[str, Any], call: Call) -> dict[str, Any]:
        self.warm_pools.expire()
        jobs = [job for job in list(self.jobs.values()) if self._is_here(call) and _is_listed(job, parameters)]
        jobs.sort(key=SORTED_BY[parameters.get("SortBy", "CreationTime")])
        if parameters.get("SortOrder") == "Descending":
            jobs.reverse()
        chosen, token = page_of(jobs, parameters)
        return {"TrainingJobSummaries": [job.summary() for job in chosen], "NextToken": token}


def _is_listed(job: TrainingJob, parameters: dict[str, Any]) -> bool:
    pool = job.warm_pool["Status"] if job.warm_pool else None
    dates = ((job.created, "CreationTime"), (job.modified, "LastModifiedTime"))
    return (
        parameters.get("NameContains", "") in job.name
        and parameters.get("StatusEquals", job.status) == job.status
        and parameters.get("WarmPoolStatusEquals", pool) == pool
        and all(date.timestamp() > parameters.get(f"{name}After", 0) for date, name in dates)
        and all(date.timestamp() < parameters.get(f"{name}Before", float("inf")) for date, name in dates)
    )


def check_training(request: dict[str, Any]) -> None:
    """Refuse what no limit on a single value forbids.

    Raises:
        ServiceError: ValidationException.
    """
    for problem in _problems(request):
        raise ServiceError("ValidationException", problem)


def _problems(request: dict[str, Any]) -> list[str]:
    resources, stopping = request.get("ResourceConfig") or {}, request.get("StoppingCondition") or {}
    spot, names = request.get("EnableManagedSpotTraining"), [one["ChannelName"] for one in _channels(request)]
    runtime, wait = stopping.get("MaxRuntimeInSeconds", 86400), stopping.get("MaxWaitTimeInSeconds")
    checkpoints = request.get("CheckpointConfig") or {}
    metrics = [one["Name"] for one in request["AlgorithmSpecification"].get("MetricDefinitions", [])]
    modes = {one.get("InputMode", request["AlgorithmSpecification"]["TrainingInputMode"]) for one in _channels(request)}
    sources = [one["DataSource"].get("S3DataSource") or {} for one in _channels(request)]
    broken = {
        "AlgorithmSpecification needs a TrainingImage.": not request["AlgorithmSpecification"].get("TrainingImage"),
        "ResourceConfig needs InstanceType, InstanceCount and VolumeSizeInGB, each at least 1.": not all(
            resources.get(name) for name in ("InstanceType", "InstanceCount", "VolumeSizeInGB")
        ),
        "StoppingCondition must be present.": not stopping,
        "Channel names must be unique.": len(set(names)) < len(names),
        "Metric names must be unique.": len(set(metrics)) < len(metrics),
        "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds": bool(
            spot and (wait is None or wait < runtime)
        ),
        "MaxWaitTimeInSeconds above 0 is not supported for on-demand training.": not spot and wait is not None,
        "KeepAlivePeriodInSeconds is not supported for managed spot training.": bool(
            spot and resources.get("KeepAlivePeriodInSeconds")
        ),
        "The stand-in lays only files of S3 into channels: S3Prefix or ManifestFile, in File or FastFile mode.": (
            any(source.get("S3DataType") not in ("S3Prefix", "ManifestFile") for source in sources)
            or not modes <= {"File", "FastFile"}
        ),
        "The stand-in follows checkpoints only below /opt/ml.": not checkpoints.get("LocalPath", "/opt/ml/").startswith(
            "/opt/ml/"
        ),
    }
    return [problem for problem, is_so in broken.items() if is_so]


def _channels(request: dict[str, Any]) -> list[dict[str, Any]]:
    return request.get("InputDataConfig") or []
