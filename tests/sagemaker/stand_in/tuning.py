"""Hyperparameter tuning jobs: training jobs with sampled values, a few at a time, and the best of them."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from .account import Account
from .calls import Call
from .jobs import TrainingJob
from .protocol import ServiceError, page_of
from .training import TrainingJobs

POLL_S = 0.05
OF_TUNING = ("DefinitionName", "TuningObjective", "HyperParameterRanges", "StaticHyperParameters")
"""Parts of a definition that are not part of a training job's request."""
COUNTED = {"Completed": "Completed", "Failed": "NonRetryableError", "Stopped": "Stopped"}


class TuningJob:
    """One tuning job, which creates training jobs until it has enough."""

    def __init__(self, account: Account, training: TrainingJobs, request: dict[str, Any]) -> None:
        self.request, self.name = request, str(request["HyperParameterTuningJobName"])
        self.thread = threading.Thread(target=self._run, daemon=True, name=f"tuning {self.name}")
        self.account, self.training = account, training
        self.arn = account.arn("hyper-parameter-tuning-job", self.name)
        self.config, self.definition = request["HyperParameterTuningJobConfig"], request["TrainingJobDefinition"]
        self.objective: dict[str, str] = self.config["HyperParameterTuningJobObjective"]
        self.status = "InProgress"
        self.failure_reason: str | None = None
        self.created = self.modified = datetime.now(UTC)
        self.ended: datetime | None = None
        self.stop = threading.Event()
        self.tried: list[tuple[TrainingJob, dict[str, str]]] = []
        """The training jobs so far, and the values given to each."""

    def _run(self) -> None:
        """Run until all training jobs have ended."""
        try:
            self._try_all()
            while any(not job.has_ended for job, _ in self.tried):
                time.sleep(POLL_S)
            if self.stop.is_set():
                self._end("Stopped")
            elif all(job.status == "Failed" for job, _ in self.tried):
                self._end("Failed", "All training jobs failed.")
            else:
                self._end("Completed")
        except ServiceError as error:
            self._end("Failed", str(error))
        except Exception:  # noqa: BLE001
            self.account.faults.append(traceback.format_exc())
            self._end("Failed", "InternalServerError")

    def order_stop(self) -> None:
        """Stop for the user: no more training jobs, and running ones are stopped."""
        self.status = "Stopping"
        self.stop.set()
        for job, _ in list(self.tried):
            job.order_stop()

    def _try_all(self) -> None:
        limits = self.config["ResourceLimits"]
        samples = _samples(self.config)
        for number, values in enumerate(itertools.islice(samples, limits["MaxNumberOfTrainingJobs"]), 1):
            while not self._leave() and self._running() >= limits["MaxParallelTrainingJobs"]:
                time.sleep(POLL_S)
            request = self._training_request(number, values)
            while not self._leave() and not self._create(request, values):
                time.sleep(POLL_S)
            if self._leave():
                return

    def _leave(self) -> bool:
        return self.stop.is_set() or self.account.platform.closing.is_set()

    def _running(self) -> int:
        return sum(not job.has_ended for job, _ in self.tried)

    def _create(self, request: dict[str, Any], values: dict[str, str]) -> bool:
        """Create one more, if there is room; returns whether there was. A tuning job waits for its quota."""
        try:
            job = self.training.create(request, self.arn)
        except ServiceError as error:
            if error.code != "ResourceLimitExceeded":
                raise
            return False
        self.tried.append((job, values))
        if self.stop.is_set():
            job.order_stop()
        return True

    def _training_request(self, number: int, values: dict[str, str]) -> dict[str, Any]:
        definition = {name: value for name, value in self.definition.items() if name not in OF_TUNING}
        given = {**self.definition.get("StaticHyperParameters", {}), **values}
        name = f"{self.name}-{number:03d}-{uuid.uuid4().hex[:8]}"
        if "CheckpointConfig" in definition and self.account.platform.settings.tuning_checkpoints == "apart":
            kept = definition["CheckpointConfig"]
            definition["CheckpointConfig"] = {**kept, "S3Uri": f"{kept['S3Uri'].rstrip('/')}/{name}"}
        return {
            **definition,
            "TrainingJobName": name,
            "HyperParameters": {**given, "_tuning_objective_metric": self.objective["MetricName"]},
        }

    def _end(self, status: str, reason: str | None = None) -> None:
        self.failure_reason = reason
        self.ended = self.modified = datetime.now(UTC)
        self.status = status

    # As the API tells it

    def value(self, job: TrainingJob) -> float | None:
        """The objective that a training job has reached."""
        return job.metrics.value(self.objective["MetricName"])

    def summary(self) -> dict[str, Any]:
        """The tuning job in List's answer."""
        jobs = [job for job, _ in list(self.tried)]
        states = Counter(COUNTED.get(job.status, "InProgress") for job in jobs)
        objectives = Counter(self._objective_status(job) for job in jobs)
        states_told = ("Completed", "InProgress", "RetryableError", "NonRetryableError", "Stopped")
        return {
            "HyperParameterTuningJobName": self.name,
            "HyperParameterTuningJobArn": self.arn,
            "HyperParameterTuningJobStatus": self.status,
            "CreationTime": self.created,
            "HyperParameterTuningEndTime": self.ended,
            "LastModifiedTime": self.modified,
            "TrainingJobStatusCounters": {name: states[name] for name in states_told},
            "ObjectiveStatusCounters": {name: objectives[name] for name in ("Succeeded", "Pending", "Failed")},
        }

    def describe(self) -> dict[str, Any]:
        """The tuning job in Describe's answer."""
        asked = ("HyperParameterTuningJobConfig", "TrainingJobDefinition")
        told = {**{name: self.request[name] for name in asked}, **self.summary(), "FailureReason": self.failure_reason}
        worth = {"Maximize": 1, "Minimize": -1}[self.objective["Type"]]
        judged = [(value * worth, one) for one in list(self.tried) if (value := self.value(one[0])) is not None]
        if judged:
            told["BestTrainingJob"] = self.training_summary(*max(judged, key=lambda one: one[0])[1])
        return told

    def training_summary(self, job: TrainingJob, values: dict[str, str]) -> dict[str, Any]:
        """One of its training jobs, in the answers."""
        value = self.value(job)
        reached = {"Type": self.objective["Type"], "MetricName": self.objective["MetricName"], "Value": value}
        return {
            "TrainingJobName": job.name,
            "TrainingJobArn": job.arn,
            "CreationTime": job.created,
            "TrainingStartTime": job.started,
            "TrainingEndTime": job.ended,
            "TrainingJobStatus": job.status,
            "TunedHyperParameters": values,
            "FailureReason": job.failure_reason,
            "ObjectiveStatus": self._objective_status(job),
            "FinalHyperParameterTuningJobObjectiveMetric": reached if value is not None else None,
        }

    def _objective_status(self, job: TrainingJob) -> str:
        if not job.has_ended:
            return "Pending"
        return "Failed" if self.value(job) is None else "Succeeded"


class TuningJobs:
    """All tuning jobs of the account."""

    def __init__(self, account: Account, training: TrainingJobs) -> None:
        self._account, self._training = account, training
        self.jobs: dict[str, TuningJob] = {}

    @property
    def operations(self) -> dict[str, Any]:
        """The operations that are answered."""
        return {
            "CreateHyperParameterTuningJob": self._create,
            "DescribeHyperParameterTuningJob": lambda parameters, call: self._find(parameters).describe(),
            "ListHyperParameterTuningJobs": self._list,
            "StopHyperParameterTuningJob": self._stop,
            "ListTrainingJobsForHyperParameterTuningJob": self._list_training,
        }

    def _create(self, request: dict[str, Any], call: Call) -> dict[str, Any]:
        for problem in _problems(request):
            raise ServiceError("ValidationException", problem)
        definition = request["TrainingJobDefinition"]
        self._account.require_role(definition["RoleArn"])
        self._account.require_image(definition["AlgorithmSpecification"]["TrainingImage"], definition["RoleArn"])
        job = TuningJob(self._account, self._training, request)
        with self._account.lock:
            if job.name in self.jobs:
                message = f"Hyperparameter tuning job names must be unique, and {job.arn} already exists."
                raise ServiceError("ResourceInUse", message)
            self.jobs[job.name] = job
            self._account.tags[job.arn] = list(request.get("Tags", []))
        job.thread.start()
        return {"HyperParameterTuningJobArn": job.arn}

    def _find(self, parameters: dict[str, Any]) -> TuningJob:
        name = parameters["HyperParameterTuningJobName"]
        if name not in self.jobs:
            raise ServiceError("ResourceNotFound", f"Amazon SageMaker can't find a tuning job named {name}.")
        return self.jobs[name]

    def _stop(self, parameters: dict[str, Any], call: Call) -> dict[str, Any]:
        job = self._find(parameters)
        if job.ended is None:
            job.order_stop()
        return {}

    def _list(self, parameters: dict[str, Any], call: Call) -> dict[str, Any]:
        jobs = [
            {**job.summary(), "Strategy": job.config["Strategy"], "ResourceLimits": job.config["ResourceLimits"]}
            for job in list(self.jobs.values())
            if parameters.get("NameContains", "") in job.name
            and parameters.get("StatusEquals", job.status) == job.status
        ]
        if parameters.get("SortOrder", "Descending") == "Descending":
            jobs.reverse()
        chosen, token = page_of(jobs, parameters)
        return {"HyperParameterTuningJobSummaries": chosen, "NextToken": token}

    def _list_training(self, parameters: dict[str, Any], call: Call) -> dict[str, Any]:
        tuning = self._find(parameters)
        wanted = parameters.get("StatusEquals")
        tried = [one for one in list(tuning.tried) if wanted in (None, one[0].status)]
        if parameters.get("SortBy") == "FinalObjectiveMetricValue":
            tried = [one for one in tried if tuning.value(one[0]) is not None]
            tried.sort(key=lambda one: tuning.value(one[0]) or 0.0)
        if parameters.get("SortOrder") == "Descending":
            tried.reverse()
        chosen, token = page_of(tried, parameters)
        return {"TrainingJobSummaries": [tuning.training_summary(*one) for one in chosen], "NextToken": token}


def _problems(request: dict[str, Any]) -> list[str]:
    config, definition = request["HyperParameterTuningJobConfig"], request.get("TrainingJobDefinition") or {}
    algorithm = definition.get("AlgorithmSpecification") or {}
    metrics = [one["Name"] for one in algorithm.get("MetricDefinitions", [])]
    objective = (config.get("HyperParameterTuningJobObjective") or {}).get("MetricName")
    given = definition.get("StaticHyperParameters", {})
    ranges = [one["Name"] for kind in (config.get("ParameterRanges") or {}).values() for one in kind]
    limits = config["ResourceLimits"]
    broken = {
        "The stand-in tunes one TrainingJobDefinition, which has a TrainingImage.": "TrainingImage" not in algorithm,
        "The stand-in samples for the strategies Random and Bayesian.": config["Strategy"]
        not in ("Random", "Bayesian"),
        f"The objective metric {objective} is not among the metric definitions {metrics}.": objective not in metrics,
        "ParameterRanges must name at least one parameter, each once.": not ranges or len(set(ranges)) < len(ranges),
        f"A parameter is both static and tuned: {sorted(set(ranges) & set(given))}.": bool(set(ranges) & set(given)),
        "MaxNumberOfTrainingJobs must be present.": "MaxNumberOfTrainingJobs" not in limits,
    }
    return [problem for problem, is_so in broken.items() if is_so]


def _samples(config: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Random values for one training job after another; the same for the same seed."""
    chance, ranges = random.Random(config.get("RandomSeed", 0)), config["ParameterRanges"]
    while True:
        values = {one["Name"]: chance.choice(one["Values"]) for one in ranges.get("CategoricalParameterRanges", [])}
        for one in ranges.get("IntegerParameterRanges", []):
            values[one["Name"]] = str(round(_between(chance, one)))
        for one in ranges.get("ContinuousParameterRanges", []):
            values[one["Name"]] = repr(_between(chance, one))
        yield values


def _between(chance: random.Random, one: dict[str, str]) -> float:
    lowest, highest = float(one["MinValue"]), float(one["MaxValue"])
    if one.get("ScalingType") == "Logarithmic":
        return math.exp(chance.uniform(math.log(lowest), math.log(highest)))
    return chance.uniform(lowest, highest)
