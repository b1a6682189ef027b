"""Lists, fetches and removes objects in S3. Takes a client, places and paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import AwsError
from runner.paths import atomic_file
from runner.s3.location import Location

AT_ONCE = 8
"""Files that are transferred at the same time."""
REMOVED_AT_ONCE = 1000
"""S3 accepts no more in one request."""


@dataclass(frozen=True)
class Stored:
    """An object as listed by S3."""

    size: int
    etag: str
    """The MD5 of its content, unless it was sent in parts: then it contains a dash."""


def listing(client: Any, folder: Location) -> dict[str, Stored]:
    """Everything in a folder, by relative path."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=folder.bucket, Prefix=folder.key)
    found = {}
    for page in pages:
        for each in page.get("Contents", []):
            if name := each["Key"][len(folder.key) :]:
                found[name] = Stored(each["Size"], each["ETag"].strip('"'))
    return found


def download(
    client: Any, folder: Location, names: Iterable[str], target: Path, arrived: Callable[[str], None] | None = None
) -> None:
    """Fetch objects of a folder; each file appears atomically.

    Args:
        arrived: called with the name of each file once it is there, from several threads.
    """

    def fetch(name: str) -> None:
        place = folder / name
        with atomic_file(target / name) as temporary:
            client.download_file(place.bucket, place.key, str(temporary))
        if arrived is not None:
            arrived(name)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            list(pool.map(fetch, names))
        except BaseException:
            # What failed for one file would fail for thousands of others.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def remove(client: Any, folder: Location) -> int:
    """Remove everything in a folder; returns how many objects there were, 0 if the bucket does not exist.

    Raises:
        AwsError: some could not be removed, which S3 reports for each in an otherwise successful response.
    """
    try:
        keys = [{"Key": folder.key + name} for name in listing(client, folder)]
    except client.exceptions.NoSuchBucket:
        return 0
    for start in range(0, len(keys), REMOVED_AT_ONCE):
        some = {"Objects": keys[start : start + REMOVED_AT_ONCE], "Quiet": True}
        if kept := client.delete_objects(Bucket=folder.bucket, Delete=some).get("Errors"):
            first = kept[0]
            raise AwsError(
                f"{len(kept)} objects in {folder.uri} could not be removed, such as {first.get('Key')}: "
                f"{first.get('Message') or first.get('Code')} (s3:DeleteObject)"
            )
    return len(keys)
