"""Between S3 and folders: what a channel's URI stands for, downloads, uploads, archives."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def list_keys(s3: Any, bucket: str, prefix: str) -> Iterator[str]:
    """The keys of all objects under a prefix, in S3's order; none if the bucket does not exist."""
    try:
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            yield from (item["Key"] for item in page.get("Contents", []))
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchBucket":
            raise


def relative_name(key: str, prefix: str) -> str:
    """The place of an object under a prefix in the folder of its channel.

    A prefix is not a folder: `in/train` stands for `in/train/a` (-> `a`), but also for `in/train2/a` (-> `train2/a`).
    """
    if prefix.endswith("/") or not prefix:
        return key[len(prefix) :]
    last = prefix.rpartition("/")[2]
    rest = key[len(prefix) - len(last) :]
    return rest[len(last) + 1 :] if rest.startswith(f"{last}/") else rest


def channel_objects(s3: Any, source: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Bucket, key and relative name of each object that an S3DataSource stands for."""
    bucket, prefix = split_uri(source["S3Uri"])
    if source["S3DataType"] == "ManifestFile":
        first, *names = json.loads(s3.get_object(Bucket=bucket, Key=prefix)["Body"].read())
        bucket, prefix = split_uri(first["prefix"])
        return [(bucket, prefix + name, name) for name in names]
    keys = [key for key in list_keys(s3, bucket, prefix) if not key.endswith("/")]
    return [(bucket, key, relative_name(key, prefix)) for key in keys if relative_name(key, prefix)]


def download(s3: Any, objects: list[tuple[str, str, str]], folder: Path) -> None:
    """Write objects into a folder."""
    for bucket, key, name in objects:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(s3.get_object(Bucket=bucket, Key=key)["Body"].read())


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, in order; folders in it may vanish meanwhile, which `rglob` cannot handle."""
    return sorted(file for root, _, names in os.walk(folder) for name in names if (file := Path(root, name)).is_file())


def upload(s3: Any, file: Path, bucket: str, key: str) -> None:
    """Put a file into S3."""
    with file.open("rb") as stream:
        s3.upload_fileobj(stream, bucket, key)


def upload_results(s3: Any, folders: list[Path], uri: str, name: str, compressed: bool, scratch: Path) -> str:
    """Upload what several hosts left in one kind of folder, as one archive or file by file; returns where it is."""
    bucket, prefix = split_uri(uri)
    found = [(file, str(file.relative_to(folder))) for folder in folders for file in files_of(folder)]
    where = f"{uri}/{name}.tar.gz" if compressed else f"{uri}/{name}/"
    if not found:
        return where
    if not compressed:
        for file, relative in found:
            upload(s3, file, bucket, f"{prefix}/{name}/{relative}")
        return where
    archive = scratch / f"{name}.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for file, relative in found:
            tar.add(file, arcname=relative)
    upload(s3, archive, bucket, f"{prefix}/{name}.tar.gz")
    return where
