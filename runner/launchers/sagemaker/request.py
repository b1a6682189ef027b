"""The request for a training job: a plain dict, built from settings and places alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from runner.s3 import Location
from runner.schema import SageMakerLauncher
from runner.schema.instances import INSTANCES

CHECKPOINTS = "checkpoints/"
"""The folder in a training job's place that SageMaker keeps in sync with /opt/ml/checkpoints."""


@dataclasses.dataclass(frozen=True)
class Channel:
    """An input: S3 objects that the container sees as files."""

    name: str
    uri: str
    mode: Literal["File", "FastFile"] = "File"
    kind: Literal["S3Prefix", "ManifestFile"] = "S3Prefix"

    def data(self) -> dict[str, Any]:
        """The channel in the request's form."""
        source = {"S3DataType": self.kind, "S3Uri": self.uri, "S3DataDistributionType": "FullyReplicated"}
        return {"ChannelName": self.name, "InputMode": self.mode, "DataSource": {"S3DataSource": source}}


def training_request(
    settings: SageMakerLauncher,
    *,
    name: str,
    experiment: str,
    role_arn: str,
    image: str,
    place: Location,
    channels: Sequence[Channel],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """The arguments of `create_training_job`.

    Args:
        experiment: the value of the tag under which its cost is found.
        image: URI of the container image.
        place: where its checkpoints and results go.
        environment: variables of the container; whoever may describe the job can read them.
    """
    resources: dict[str, Any] = {
        "InstanceType": settings.instance,
        "InstanceCount": settings.instances,
        "VolumeSizeInGB": settings.volume_gb,
    }
    output: dict[str, Any] = {"S3OutputPath": (place / "output/").uri}
    stopping: dict[str, Any] = {"MaxRuntimeInSeconds": settings.max_runtime_s}
    if settings.keep_alive_s:
        resources["KeepAlivePeriodInSeconds"] = settings.keep_alive_s
    if settings.kms_key:
        output["KmsKeyId"] = settings.kms_key
        # SageMaker rejects a key for disks that the instance itself encrypts.
        if not INSTANCES[settings.instance].has_disks:
            resources["VolumeKmsKeyId"] = settings.kms_key
    if settings.spot:
        stopping["MaxWaitTimeInSeconds"] = settings.max_wait_s
    request: dict[str, Any] = {
        "TrainingJobName": name,
        "RoleArn": role_arn,
        "AlgorithmSpecification": {"TrainingImage": image, "TrainingInputMode": "File"},
        "InputDataConfig": [channel.data() for channel in channels],
        "OutputDataConfig": output,
        "CheckpointConfig": {"S3Uri": (place / CHECKPOINTS).uri, "LocalPath": "/opt/ml/checkpoints"},
        "ResourceConfig": resources,
        "StoppingCondition": stopping,
        "EnableManagedSpotTraining": settings.spot,
        "Tags": settings.all_tags(experiment),
    }
    if environment:
        request["Environment"] = dict(environment)
    return request | settings.network()
