"""The stand-in's tuning jobs."""

from __future__ import annotations

import time
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.sagemaker.stand_in import StandIn

TYPE = "ml.g5.xlarge"
NAME = {"HyperParameterTuningJobName": "search"}
# Prints the value it was given as its loss.
LOSS = 'cat ${SM_ML_ROOT:-/opt/ml}/input/config/hyperparameters.json | sed \'s/.*"rate": "\\([^"]*\\)".*/loss=\\1/\''


def search(aws: StandIn, script: str = LOSS, jobs: int = 4, parallel: int = 2, **config: Any) -> None:
    """Create a tuning job whose image is a script."""
    rate = {"Name": "rate", "MinValue": "1e-5", "MaxValue": "1e-2", "ScalingType": "Logarithmic"}
    definition = {
        "RoleArn": aws.role,
        "AlgorithmSpecification": {
            "TrainingImage": aws.add_image("search:1", ["sh", "-c", script]),
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": "loss", "Regex": r"^loss=(\S+)$"}],
        },
        "OutputDataConfig": {"S3OutputPath": f"s3://{aws.bucket}/out"},
        "ResourceConfig": {"InstanceType": TYPE, "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        "StaticHyperParameters": {"rank": "4"},
    }
    asked = {
        "Strategy": "Bayesian",
        "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "loss"},
        "ResourceLimits": {"MaxNumberOfTrainingJobs": jobs, "MaxParallelTrainingJobs": parallel},
        "ParameterRanges": {"ContinuousParameterRanges": [rate]},
        **config,
    }
    aws.client("sagemaker").create_hyper_parameter_tuning_job(
        **NAME, HyperParameterTuningJobConfig=asked, TrainingJobDefinition=definition
    )


def wait(aws: StandIn, within_s: float = 30.0) -> dict[str, Any]:
    client, deadline_s = aws.client("sagemaker"), time.monotonic() + within_s
    while True:
        told: dict[str, Any] = client.describe_hyper_parameter_tuning_job(**NAME)
        if told["HyperParameterTuningJobStatus"] not in ("InProgress", "Stopping"):
            return told
        assert time.monotonic() < deadline_s, told
        time.sleep(0.05)


def test_the_best_of_several_jobs_is_found(aws: StandIn) -> None:
    aws.quotas.set(TYPE, training=1)
    search(aws)
    told = wait(aws)

    assert told["HyperParameterTuningJobStatus"] == "Completed"
    assert told["TrainingJobStatusCounters"]["Completed"] == told["ObjectiveStatusCounters"]["Succeeded"] == 4
    tried = aws.client("sagemaker").list_training_jobs_for_hyper_parameter_tuning_job(
        **NAME, SortBy="FinalObjectiveMetricValue", SortOrder="Ascending"
    )["TrainingJobSummaries"]
    rates = [float(one["TunedHyperParameters"]["rate"]) for one in tried]
    assert rates == sorted(rates) and all(1e-5 <= rate <= 1e-2 for rate in rates)
    assert told["BestTrainingJob"]["TrainingJobName"] == tried[0]["TrainingJobName"]
    given = aws.jobs[tried[0]["TrainingJobName"]].request["HyperParameters"]
    assert given == {"rank": "4", "_tuning_objective_metric": "loss", **tried[0]["TunedHyperParameters"]}


def test_a_search_that_is_stopped_stops_its_jobs(aws: StandIn) -> None:
    search(aws, "echo loss=1; sleep 60")
    while len(aws.jobs) < 2:
        time.sleep(0.02)
    client = aws.client("sagemaker")
    for name in aws.jobs:
        aws.wait(name, "Training")
        while aws.jobs[name].metrics.value("loss") is None:
            time.sleep(0.02)
    client.stop_hyper_parameter_tuning_job(**NAME)
    aws.platform.settings.grace_s = 0.2  # the script, as PID 1, ignores SIGTERM

    assert wait(aws)["HyperParameterTuningJobStatus"] == "Stopped"
    assert [job.status for job in aws.jobs.values()] == ["Stopped", "Stopped"]
    (listed,) = client.list_hyper_parameter_tuning_jobs()["HyperParameterTuningJobSummaries"]
    assert listed["ObjectiveStatusCounters"] == {"Succeeded": 2, "Pending": 0, "Failed": 0}


def test_a_search_in_which_nothing_succeeds_fails(aws: StandIn) -> None:
    search(aws, "exit 1", jobs=2)
    told = wait(aws)

    assert (told["HyperParameterTuningJobStatus"], told["FailureReason"]) == ("Failed", "All training jobs failed.")
    assert told["TrainingJobStatusCounters"]["NonRetryableError"] == 2


def test_an_objective_that_nothing_defines_is_refused(aws: StandIn) -> None:
    with pytest.raises(ClientError, match="The objective metric score is not among"):
        search(aws, HyperParameterTuningJobObjective={"Type": "Maximize", "MetricName": "score"})
