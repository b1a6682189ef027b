"""What a container finds in /opt/ml/input: the files of its configuration, and a folder for each channel."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from botocore.exceptions import ClientError

from .hosts import Host
from .jobs import TrainingJob
from .permissions import Permissions
from .s3_files import channel_objects, download

ML = PurePosixPath("/opt/ml")
GROUP = "homogeneousCluster"


class JobError(Exception):
    """Ends a job; the text is its FailureReason."""


def local_path(ml: Path, checkpoint_config: dict[str, str]) -> Path:
    """The place of a host's checkpoints in its tree."""
    return ml / PurePosixPath(checkpoint_config.get("LocalPath", "/opt/ml/checkpoints")).relative_to(ML)


def lay_out(s3: Any, permissions: Permissions, job: TrainingJob, host: Host) -> None:
    """Write the input of one host."""
    channels = job.request.get("InputDataConfig") or []
    for channel in channels:
        _download_channel(s3, permissions, job, host, channel)
    _write(host, "hyperparameters", job.request.get("HyperParameters", {}))
    _write(host, "resourceconfig", _resources(job, host))
    mode = job.request["AlgorithmSpecification"]["TrainingInputMode"]
    _write(host, "inputdataconfig", {one["ChannelName"]: _described(one, mode) for one in channels})


def _write(host: Host, name: str, content: dict[str, Any]) -> None:
    (host.ml / "input" / "config" / f"{name}.json").write_text(json.dumps(content))


def _resources(job: TrainingJob, host: Host) -> dict[str, Any]:
    group = {"instance_group_name": GROUP, "instance_type": job.instance_type, "hosts": job.hosts}
    return {
        "current_host": host.name,
        "current_instance_type": job.instance_type,
        "current_group_name": GROUP,
        "hosts": job.hosts,
        "instance_groups": [group],
        "network_interface_name": host.interface,
        "topology": None,
    }


def _described(channel: dict[str, Any], mode: str) -> dict[str, Any]:
    source = channel["DataSource"]["S3DataSource"]
    told = {
        "TrainingInputMode": channel.get("InputMode", mode),
        "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
        "RecordWrapperType": channel.get("RecordWrapperType", "None"),
    }
    return told | ({"ContentType": channel["ContentType"]} if "ContentType" in channel else {})


def _download_channel(s3: Any, permissions: Permissions, job: TrainingJob, host: Host, channel: dict[str, Any]) -> None:
    source = channel["DataSource"]["S3DataSource"]
    allowed = all(permissions.allows(f"s3:{action}", job.role) for action in ("ListBucket", "GetObject"))
    try:
        objects = channel_objects(s3, source) if allowed else []
    except ClientError as error:
        raise JobError(f"ClientError: Data download failed:{error}") from error
    if not objects:
        message = (
            f'ClientError: Data download failed:No S3 objects found under S3 URL "{source["S3Uri"]}" given in input '
            "data source. Please ensure that the bucket exists in the selected region (us-east-1), that objects exist "
            f'under that S3 prefix, and that the role "{job.request["RoleArn"]}" has "s3:ListBucket" permissions on '
            f'bucket "{source["S3Uri"].split("/")[2]}".'
        )
        raise JobError(message)
    if source.get("S3DataDistributionType") == "ShardedByS3Key":
        objects = objects[job.hosts.index(host.name) :: len(job.hosts)]
    folder = host.ml / "input" / "data" / channel["ChannelName"]
    folder.mkdir()
    download(s3, objects, folder)
