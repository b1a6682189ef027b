"""Copies files to S3 and back. Takes places and paths; knows nothing about jobs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from runner.s3 import Location
from runner.s3.access import code_of
from runner.s3.objects import AT_ONCE, Stored, download, listing

__all__ = ["ObjectStore", "Storage", "Stored", "differs"]


class ObjectStore(Protocol):
    """A store of named objects: S3, or folders in its place."""

    def listing(self, folder: Location) -> dict[str, Stored]:
        """Everything in a folder, by relative path."""

    def has(self, place: Location) -> bool:
        """Whether an object of that name exists."""

    def read(self, place: Location) -> bytes:
        """The content of an object."""

    def write(self, place: Location, content: bytes) -> None:
        """Store a small object."""

    def upload(self, files: Mapping[str, Path], folder: Location) -> None:
        """Store files, by their names in the folder."""

    def download(self, folder: Location, names: Iterable[str], target: Path) -> None:
        """Fetch objects of a folder; each file appears atomically."""

    def copy(self, source: Location, target: Location) -> None:
        """Copy an object."""


class Storage:
    """S3, through a boto3 client."""

    def __init__(self, client: Any, kms_key: str | None = None) -> None:
        self.client = client
        self._extra = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}

    def listing(self, folder: Location) -> dict[str, Stored]:
        """Everything in a folder, by relative path."""
        return listing(self.client, folder)

    def has(self, place: Location) -> bool:
        """Whether an object of that name exists."""
        from botocore.exceptions import ClientError

        try:
            self.client.head_object(Bucket=place.bucket, Key=place.key)
        except ClientError as error:
            if code_of(error) in ("404", "NoSuchKey", "NotFound"):
                return False
            if code_of(error) not in ("400", "403"):
                raise
            # The answer to HEAD has no message: GET says whether a login has expired or something is not allowed.
            self.client.get_object(Bucket=place.bucket, Key=place.key)["Body"].close()
        return True

    def read(self, place: Location) -> bytes:
        """The content of an object."""
        answer = self.client.get_object(Bucket=place.bucket, Key=place.key)
        return bytes(answer["Body"].read())

    def write(self, place: Location, content: bytes) -> None:
        """Store a small object."""
        self.client.put_object(Bucket=place.bucket, Key=place.key, Body=content, **self._extra)

    def upload(self, files: Mapping[str, Path], folder: Location) -> None:
        """Send files, by their names in the folder; large ones in parts."""

        def send(name: str) -> None:
            place = folder / name
            self.client.upload_file(str(files[name]), place.bucket, place.key, ExtraArgs=self._extra or None)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(send, files))

    def download(self, folder: Location, names: Iterable[str], target: Path) -> None:
        """Fetch objects of a folder; each file appears atomically."""
        download(self.client, folder, names, target)

    def copy(self, source: Location, target: Location) -> None:
        """Copy an object within S3, also from one bucket to another."""
        self.client.copy(
            {"Bucket": source.bucket, "Key": source.key}, target.bucket, target.key, ExtraArgs=self._extra or None
        )


def differs(file: Path, stored: Stored) -> bool:
    """Whether a file may differ from what is stored; a file that was sent in parts always counts as different."""
    try:
        if file.stat().st_size != stored.size or "-" in stored.etag:
            return True
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "md5").hexdigest() != stored.etag
    except OSError:
        return True
