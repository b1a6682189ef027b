"""Folders, archives and objects in the stand-in's S3, and who read or wrote them."""

from __future__ import annotations

import tarfile
from pathlib import Path

from runner.schema import ModelSettings
from tests.sagemaker.stand_in import StandIn


def put(aws: StandIn, folder: Path, prefix: str) -> str:
    """Copy a folder to S3, as people do; returns its address."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            aws.s3.put_object(
                Bucket=aws.bucket, Key=prefix + file.relative_to(folder).as_posix(), Body=file.read_bytes()
            )
    return f"s3://{aws.bucket}/{prefix}"


def packed(folder: Path, archive: Path, top: str = "") -> Path:
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(folder, arcname=top or ".")
    return archive


def fetched(aws: StandIn, caller: str = "") -> list[str]:
    """Keys read by the person who submits, or by a role."""
    return [
        call.parameters["Key"]
        for call in aws.requests
        if call.service == "s3" and call.operation == "GetObject" and call.caller == caller
    ]


def sent(aws: StandIn) -> list[str]:
    """Keys written by the person who submits."""
    operations = ("PutObject", "CopyObject", "CreateMultipartUpload")
    return [
        call.parameters["Key"]
        for call in aws.requests
        if call.service == "s3" and call.operation in operations and not call.caller
    ]


def write(aws: StandIn, key: str, text: str) -> None:
    aws.s3.put_object(Bucket=aws.bucket, Key=key, Body=text.encode())


def settings_of(path: Path | str, **more: str) -> ModelSettings:
    return ModelSettings(path=str(path), **more)
