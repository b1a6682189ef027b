"""How a training job ended and what it cost, from SageMaker's description of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from runner.jobs.job import Job, make_job, read_manifest, register, update_manifest
from runner.launchers.cluster import Gone
from runner.launchers.sagemaker.record import record, record_file, recorded
from runner.launchers.sagemaker.training_jobs import gone_of
from runner.schema import Experiment

CAPACITY = "CapacityError: Unable to provision requested ML compute capacity."


@pytest.mark.parametrize(
    ("status", "secondary", "failure", "reason", "words"),
    [
        ("Completed", "Completed", "", "ended", "has ended"),
        ("Failed", "Failed", "AlgorithmError: no luck", "ended", "failed: AlgorithmError: no luck"),
        ("Failed", "Failed", "", "ended", "failed"),
        ("Failed", "Failed", CAPACITY, "taken", f"failed: {CAPACITY}"),
        ("Failed", "Failed", "InternalServerError: again", "taken", "failed: InternalServerError: again"),
        ("Failed", "Failed", "AlgorithmError: a CapacityError of ours", "ended",
         "failed: AlgorithmError: a CapacityError of ours"),
        ("Stopped", "MaxRuntimeExceeded", "", "taken", "was stopped: MaxRuntimeExceeded"),
        ("Stopped", "MaxWaitTimeExceeded", "", "taken", "was stopped: MaxWaitTimeExceeded"),
        ("Stopped", "Interrupted", "", "taken", "was stopped: Interrupted"),
        ("Stopped", "Stopped", "", "cancelled", "was stopped"),
    ],
)  # fmt: skip
def test_what_the_service_has_taken_away_is_told_from_what_has_failed_or_somebody_has_stopped(
    status: str, secondary: str, failure: str, reason: Literal["ended", "cancelled", "taken"], words: str
) -> None:
    described = {"TrainingJobStatus": status, "SecondaryStatus": secondary, "FailureReason": failure}
    assert gone_of(described, began=True) == Gone(words=words, reason=reason, began=True)


def jobs_with(tmp_path: Path, *steps_done: int) -> list[Job]:
    made = []
    for seed, steps in enumerate(steps_done):
        experiment = Experiment.model_validate({"seed": seed})
        made.append(make_job(experiment, model="m", dataset="d", outputs=tmp_path))
        register(made[-1])
        update_manifest(made[-1].folder, steps_done=steps)
    return made


def described(name: str, *, billed_s: int) -> dict[str, Any]:
    return {
        "TrainingJobName": name,
        "TrainingJobArn": f"arn:{name}",
        "TrainingJobStatus": "Completed",
        "AlgorithmSpecification": {"TrainingImage": "lora:1"},
        "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2},
        "BillableTimeInSeconds": billed_s,
    }


def test_jobs_share_what_all_instances_cost_and_add_up_what_each_training_job_did(tmp_path: Path) -> None:
    jobs, ended = jobs_with(tmp_path, 30, 10), Gone(words="has ended")
    record(jobs, described("one", billed_s=1800), ended, usd_per_hour=4.0)
    assert [read_manifest(job.folder)["cost"]["price_usd"] for job in jobs] == [3.0, 1.0]
    record(jobs[:1], described("two", billed_s=900), ended, usd_per_hour=4.0)
    record(jobs[1:], described("free", billed_s=900), ended, usd_per_hour=None)
    manifests = [read_manifest(job.folder) for job in jobs]
    assert [manifest["cost"]["price_usd"] for manifest in manifests] == [5.0, 1.0]
    assert manifests[1]["costs"] == {"one": {"billed_s": 900.0, "usd": 1.0}, "free": {"billed_s": 1800.0, "usd": None}}
    kept = json.loads(record_file(jobs[0].folder.parent, "one").read_text())
    assert (kept["usd"], kept["instances"], kept["jobs"]) == (4.0, 2, [job.id for job in jobs])
    assert recorded(jobs[0].folder.parent, "one") == ended


def test_jobs_that_have_trained_nothing_share_alike(tmp_path: Path) -> None:
    jobs = jobs_with(tmp_path, 0, 0)
    record(jobs, described("one", billed_s=1800), Gone(words="failed"), usd_per_hour=1.0)
    assert [read_manifest(job.folder)["cost"]["price_usd"] for job in jobs] == [0.5, 0.5]
