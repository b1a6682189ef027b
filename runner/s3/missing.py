"""Error messages for places in S3 that do not exist, with suggestions of what may be meant."""

from __future__ import annotations

import difflib
from typing import Any

from runner.errors import SettingsError
from runner.s3.access import s3_client
from runner.s3.location import Location

LISTED = 6
"""How many names are listed if none is close."""


class NotThere(SettingsError):
    """S3 has no such bucket, or nothing usable in that place."""


def no_such_bucket(bucket: str) -> NotThere:
    """Suggests the account's bucket with the closest name, if buckets may be listed."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        names = [each["Name"] for each in s3_client().list_buckets()["Buckets"]]
    except (BotoCoreError, ClientError):
        names = []  # permission to read a bucket does not include listing all of them
    near = difflib.get_close_matches(bucket, names, n=1)
    hint = (
        f", did you mean s3://{near[0]}/?" if near else "; correct its name, or log in to the account that may read it"
    )
    return NotThere(f"there is no bucket {bucket!r}{hint}")


def nothing_there(client: Any, source: Location) -> NotThere:
    """Suggests what is in the nearest folder above that is not empty."""
    if not source.key:
        return NotThere(f"the bucket {source.bucket!r} is empty; copy the files there: aws s3 sync FOLDER {source.uri}")
    missing = source
    names = _names(client, missing.parent)
    while not names and missing.parent.key:
        missing = missing.parent
        names = _names(client, missing.parent)
    said = f"S3 has nothing in {missing.uri}"
    if missing.name in names:
        return NotThere(
            f"{missing.uri.rstrip('/')} is a single object; give the folder that holds it, {missing.parent.uri}"
        )
    near = difflib.get_close_matches(missing.name, [name.rstrip("/") for name in names], n=1)
    if near:
        slash = "/" if f"{near[0]}/" in names else ""
        return NotThere(f"{said}, did you mean {missing.parent.uri}{near[0]}{slash}?")
    if names:
        return NotThere(f"{said}; {missing.parent.uri} has {', '.join(sorted(names)[:LISTED])}; give one of these")
    return NotThere(f"{said}; copy the files there: aws s3 sync FOLDER {source.uri}")


def _names(client: Any, folder: Location) -> list[str]:
    """Names in a folder, as far as one response of S3 lists them; folders end with a slash."""
    answer = client.list_objects_v2(Bucket=folder.bucket, Prefix=folder.key, Delimiter="/")
    found = [each["Prefix"] for each in answer.get("CommonPrefixes", [])]
    found += [each["Key"] for each in answer.get("Contents", [])]
    return [name[len(folder.key) :] for name in found if name != folder.key]
