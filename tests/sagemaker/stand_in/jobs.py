"""A training job as seen by Describe and List: statuses with times, reasons, seconds, metrics."""

from __future__ import annotations

import math
import threading
import time
from datetime import UTC, datetime
from typing import Any

from .log_streams import Metrics

ENDED = frozenset({"Completed", "Failed", "Stopped"})
MESSAGES = {
    "Starting": "Starting the training job",
    "Pending": "Waiting for compute capacity",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Interrupted": "Training job interrupted",
    "Uploading": "Uploading generated training model",
    "Stopping": "Stopping the training job",
    "Completed": "Training job completed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds",
    "MaxWaitTimeExceeded": "Training job wait time exceeded MaxWaitTimeInSeconds",
}
NOT_DESCRIBED = ("Tags", "SessionChainingConfig")
"""Parts of a request that Describe does not return."""


class TrainingJob:
    """One job: its request, what happened, and what a test or a user orders."""

    def __init__(self, request: dict[str, Any], arn: str, spot_saving: float, tuning_arn: str | None = None) -> None:
        self.request, self.arn, self.spot_saving, self.tuning_arn = request, arn, spot_saving, tuning_arn
        self.name: str = request["TrainingJobName"]
        self.created = self.modified = datetime.now(UTC)
        self.created_s = time.monotonic()
        self.status, self.secondary = "InProgress", "Starting"
        self.transitions: list[dict[str, Any]] = []
        self.failure_reason: str | None = None
        self.started: datetime | None = None
        self.ended: datetime | None = None
        self.training_s = 0.0
        """Seconds with running containers, of all attempts."""
        self.attempts = 0
        self.warm_pool: dict[str, Any] | None = None
        self.metrics = Metrics(request["AlgorithmSpecification"].get("MetricDefinitions") or [])
        self.stop, self.interrupt, self.finished = threading.Event(), threading.Event(), threading.Event()
        self.lock = threading.RLock()
        self.to("InProgress", "Starting")

    @property
    def hosts(self) -> list[str]:
        """The names of its hosts."""
        return [f"algo-{number}" for number in range(1, self.instance_count + 1)]

    @property
    def instance_type(self) -> str:
        """The instance type it runs on."""
        return str(self.request["ResourceConfig"]["InstanceType"])

    @property
    def instance_count(self) -> int:
        """The number of its hosts."""
        return int(self.request["ResourceConfig"].get("InstanceCount", 1))

    @property
    def spot(self) -> bool:
        """Whether it uses managed spot training."""
        return bool(self.request.get("EnableManagedSpotTraining"))

    @property
    def role(self) -> str:
        """The name of its role."""
        return str(self.request["RoleArn"]).rpartition("/")[2]

    @property
    def has_ended(self) -> bool:
        """Whether it is in a final state."""
        return self.status in ENDED

    @property
    def output_uri(self) -> str:
        """Where its results go."""
        return f"{self.request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self.name}/output"

    def to(self, status: str, secondary: str, message: str = "") -> None:
        """Enter a state."""
        with self.lock:
            now = datetime.now(UTC)
            if self.transitions:
                self.transitions[-1].setdefault("EndTime", now)
            self.status, self.secondary, self.modified = status, secondary, now
            said = message or MESSAGES.get(secondary, secondary)
            self.transitions.append({"Status": secondary, "StartTime": now, "StatusMessage": said})
            if secondary == "Training":
                self.started = self.started or now
            if status in ENDED:
                self.transitions[-1]["EndTime"] = self.ended = now

    def fail(self, reason: str) -> None:
        """End the job as failed."""
        self.failure_reason = reason
        self.to("Failed", "Failed", "Training job failed")

    def order_stop(self) -> None:
        """Stop the job for the user: its containers are told, and it will end as stopped."""
        with self.lock:
            if not self.stop.is_set() and not self.has_ended:
                self.to("Stopping", "Stopping")
                self.stop.set()

    def summary(self) -> dict[str, Any]:
        """The job in List's answer."""
        with self.lock:
            return {
                "TrainingJobName": self.name,
                "TrainingJobArn": self.arn,
                "CreationTime": self.created,
                "LastModifiedTime": self.modified,
                "TrainingEndTime": self.ended,
                "TrainingJobStatus": self.status,
                "SecondaryStatus": self.secondary,
                "WarmPoolStatus": self.warm_pool,
            }

    def describe(self) -> dict[str, Any]:
        """The job in Describe's answer."""
        with self.lock:
            told = {name: value for name, value in self.request.items() if name not in NOT_DESCRIBED}
            told |= self.summary()
            told |= {
                "TuningJobArn": self.tuning_arn,
                "FailureReason": self.failure_reason,
                "TrainingStartTime": self.started,
                "SecondaryStatusTransitions": [dict(one) for one in self.transitions],
                "FinalMetricDataList": self.metrics.described(),
            }
            if self.has_ended and self.started:
                told["TrainingTimeInSeconds"], told["BillableTimeInSeconds"] = self._seconds()
            if self.status in ("Completed", "Stopped"):
                plain = self.request["OutputDataConfig"].get("CompressionType") == "NONE"
                name = "model/" if plain else "model.tar.gz"
                told["ModelArtifacts"] = {"S3ModelArtifacts": f"{self.output_uri}/{name}"}
            return told

    def _seconds(self) -> tuple[int, int]:
        """Training seconds and billable seconds: whole numbers, and for spot always fewer billed."""
        training = max(math.ceil(self.training_s), 2)
        return training, max(int(training * (1 - self.spot_saving)), 1) if self.spot else training
