"""The request for a tuning job: a plain dict, built from a training job's request and the space."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from runner.aws.names import training_job_name
from runner.schema import ObjectiveSettings, TuningSettings
from runner.search.tuning.ranges import Range

NAME_LENGTH = 32
"""Longest name of a tuning job."""
NUMBER = r"[-+]?[0-9.]+(?:e[-+]?[0-9]+)?"
OF_THE_TUNING_JOB = ("TrainingJobName", "Tags")
"""Fields of a training job's request that the definition of a tuning job's training jobs does not contain."""


def search_key(
    ranges: Sequence[Range], identity: Mapping[str, Any], settings: TuningSettings, objective: ObjectiveSettings
) -> str:
    """A hash of a search: the same for the same space, settings, data and count.

    Args:
        identity: the identity of any of its jobs.
    """
    chosen = [f"settings.{each.name}" for each in ranges]
    fixed = {
        key: value
        for key, value in identity.items()
        if not any(key == name or key.startswith(f"{name}.") for name in chosen)
    }
    content = {
        "ranges": sorted((dataclasses.asdict(each) for each in ranges), key=lambda each: str(each["name"])),
        "fixed": fixed,
        # Changing how many run at once does not make it another search.
        "settings": settings.model_dump(mode="json", exclude={"parallel"}),
        "objective": objective.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:10]


def tuning_job_name(experiment: str, key: str, attempt: int) -> str:
    """The name of a tuning job, with as much of the experiment's name as fits; see `training_job_name`."""
    return training_job_name(experiment, key, attempt, length=NAME_LENGTH)


def tuning_request(
    settings: TuningSettings,
    training: Mapping[str, Any],
    *,
    name: str,
    trials: int,
    ranges: Sequence[Range],
    objective: ObjectiveSettings,
    parents: Sequence[str] = (),
) -> dict[str, Any]:
    """The arguments of `create_hyper_parameter_tuning_job`.

    Args:
        training: the request for a training job with the settings shared by all trials.
        parents: earlier tuning jobs to learn from.
    """
    definition = {key: value for key, value in training.items() if key not in OF_THE_TUNING_JOB}
    metric = {"Name": objective.name, "Regex": f"^{re.escape(objective.name)}=({NUMBER})$"}
    definition["AlgorithmSpecification"] = {**definition["AlgorithmSpecification"], "MetricDefinitions": [metric]}
    config: dict[str, Any] = {
        "Strategy": settings.strategy,
        "HyperParameterTuningJobObjective": {"Type": objective.direction.capitalize(), "MetricName": objective.name},
        "ResourceLimits": {
            "MaxNumberOfTrainingJobs": trials,
            "MaxParallelTrainingJobs": min(settings.parallel, trials),
        },
        "ParameterRanges": {
            f"{kind}ParameterRanges": [each.data() for each in ranges if each.kind == kind]
            for kind in ("Integer", "Continuous", "Categorical")
        },
        "TrainingJobEarlyStoppingType": settings.early_stopping,
    }
    resource = {"MinResource": settings.min_resource, "MaxResource": settings.max_resource}
    if chosen := {key: value for key, value in resource.items() if value is not None}:
        config["StrategyConfig"] = {"HyperbandStrategyConfig": chosen}
    if settings.seed is not None:
        config["RandomSeed"] = settings.seed
    request: dict[str, Any] = {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": config,
        "TrainingJobDefinition": definition,
        "Tags": list(training["Tags"]),
    }
    if parents:
        request["WarmStartConfig"] = {
            "ParentHyperParameterTuningJobs": [{"HyperParameterTuningJobName": parent} for parent in parents],
            "WarmStartType": settings.warm_start_type,
        }
    return request
