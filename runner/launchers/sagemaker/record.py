"""What is known about each ended training job: a small file beside the results, and a share in each manifest."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.aws.names import training_job_name
from runner.jobs.job import Job, now, read_manifest, update_manifest
from runner.launchers.cluster import Gone, Order
from runner.paths import ExperimentPaths, write_text

CLUSTER = "sagemaker"


def record_file(experiment_folder: Path, name: str) -> Path:
    """The path of a training job's record."""
    return ExperimentPaths(experiment_folder).cluster(CLUSTER) / f"{name}.json"


def log_file(experiment_folder: Path, name: str) -> Path:
    """The path of its output."""
    return record_file(experiment_folder, name).with_suffix(".log")


def recorded(experiment_folder: Path, name: str) -> Gone | None:
    """How a training job ended, if its results are here; None if they are not."""
    try:
        known = json.loads(record_file(experiment_folder, name).read_text(encoding="utf-8"))
        return Gone(**known["gone"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note_arn(experiment_folder: Path, name: str, arn: str) -> None:
    """Record where a starting training job is: a command in another shell may use another region or account."""
    write_text(record_file(experiment_folder, name), json.dumps({"name": name, "arn": arn}) + "\n")


def arn_of(experiment_folder: Path, name: str) -> str | None:
    """The ARN of a training job; None if it was not recorded."""
    try:
        return str(json.loads(record_file(experiment_folder, name).read_text(encoding="utf-8"))["arn"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def unrecorded_names(order: Order, experiment_folder: Path) -> Iterator[str]:
    """The endless sequence of names for these jobs, except those of ended training jobs whose results are here."""
    names = (training_job_name(order.title, order.key, attempt) for attempt in itertools.count(1))
    return (name for name in names if recorded(experiment_folder, name) is None)


def record(jobs: Sequence[Job], described: Mapping[str, Any], gone: Gone, *, usd_per_hour: float | None) -> None:
    """Record what a training job was and what it cost.

    Billed seconds are those of one instance, spot savings included, as SageMaker counts them. The cost is divided among
    the jobs in proportion to the images that each has trained on.

    Args:
        described: SageMaker's description of it after its end.
        gone: what that means for its jobs.
        usd_per_hour: on-demand price of an instance; None if unknown.
    """
    resources = described["ResourceConfig"]
    billed_s, training_s = described.get("BillableTimeInSeconds", 0), described.get("TrainingTimeInSeconds", 0)
    instances = resources.get("InstanceCount", 1)
    usd = None if usd_per_hour is None else billed_s * instances * usd_per_hour / 3600
    content = {
        "name": described["TrainingJobName"],
        "arn": described["TrainingJobArn"],
        "status": described["TrainingJobStatus"],
        "secondary_status": described.get("SecondaryStatus"),
        "failure_reason": described.get("FailureReason"),
        "image": described["AlgorithmSpecification"].get("TrainingImage"),
        "instance": resources["InstanceType"],
        "instances": instances,
        "spot": bool(described.get("EnableManagedSpotTraining")),
        "training_s": training_s,
        "billed_s": billed_s,
        "usd_per_hour": usd_per_hour,
        "usd": usd,
        "jobs": [job.id for job in jobs],
        "gone": dataclasses.asdict(gone),
        "recorded": now(),
    }
    work = {job.id: _images(job) for job in jobs}
    whole = sum(work.values())
    for job in jobs:
        share = work[job.id] / whole if whole else 1 / len(jobs)
        manifest = read_manifest(job.folder)
        share_of = {"billed_s": billed_s * instances * share, "usd": None if usd is None else usd * share}
        costs = (manifest.get("costs") or {}) | {content["name"]: share_of}
        prices = [each["usd"] for each in costs.values() if each["usd"] is not None]
        cost = (manifest.get("cost") or {}) | ({"price_usd": sum(prices)} if prices else {})
        update_manifest(job.folder, costs=costs, cost=cost)
    write_text(record_file(jobs[0].folder.parent, str(content["name"])), json.dumps(content, indent=2) + "\n")


def _images(job: Job) -> int:
    if not job.trains:
        return 1
    done = read_manifest(job.folder).get("steps_done") or 0
    return int(done) * job.experiment.batch_size
