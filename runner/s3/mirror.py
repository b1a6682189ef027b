"""Keeps a copy on this machine of a folder or object in S3, in sync by names, sizes and ETags.

The copies are in `RUNNER_CACHE/s3/<bucket>/<key>`, laid out as in S3; names that begin with a dot are skipped. A record
beside them holds what S3 had at the last look, and which of it is here, so that plans need no requests.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from runner.paths import cache_dir, write_text
from runner.s3.access import NoAccess, code_of, message_of, require_boto3, s3_client, understood
from runner.s3.location import Location, is_file_name
from runner.s3.missing import NotThere, no_such_bucket, nothing_there
from runner.s3.objects import Stored, download, listing
from runner.system.exclusive import alone

log = logging.getLogger(__name__)

NOT_THERE = ("NoSuchBucket", "NoSuchKey", "404")
FORGOTTEN_S = 24 * 3600
"""Temporary files older than this were left by killed processes."""


class Held(NamedTuple):
    """A file that is here: what it is a copy of, and its modification time, which reveals changes to the copy."""

    etag: str
    size: int
    mtime_ns: int


class Mirror:
    """One copy, shared by all processes on a machine; only one at a time updates it."""

    def __init__(self, source: Location) -> None:
        self.source = source
        root = cache_dir() / "s3"
        self.path = root / source.bucket / source.key
        """The copy: a folder, or a file."""
        self._folder = self.path if source.is_folder else self.path.parent
        name = hashlib.sha256(source.uri.encode()).hexdigest()[:20]
        self._record, self._turn = root / ".records" / f"{name}.json", root / ".records" / f"{name}.lock"

    def listed(self) -> dict[str, Stored] | None:
        """What S3 had when any process here last looked, by path; None before the first look."""
        return None if (record := self._read()) is None else record[0]

    @property
    def is_complete(self) -> bool:
        """Whether everything seen at the last look is here and unchanged."""
        record = self._read()
        return record is not None and all(self._has(name, each, record[1]) for name, each in record[0].items())

    def bring(self, wanted: Callable[[Mapping[str, Stored]], Collection[str]] | None = None) -> Path:
        """List what S3 has, fetch what has changed, and remove what is no longer there.

        Args:
            wanted: picks the paths that are needed now from all that exist; None for everything.

        Returns:
            The copy's path.

        Raises:
            NoAccess: S3 cannot be accessed, or the copy cannot be written to disk.
            NotThere: the bucket does not exist, or has nothing in that place.
        """
        require_boto3()
        with alone(self._turn, doing=f"copying {self.source.uri}"), self._explained():
            client = s3_client()
            objects = self._look(client)
            record = self._read()
            held = {} if record is None else {name: each for name, each in record[1].items() if name in objects}
            held = {name: each for name, each in held.items() if self._has(name, objects[name], held)}
            missing = [name for name in (objects if wanted is None else wanted(objects)) if name not in held]
            if self.source.is_folder:
                self._remove_others(objects)
            try:
                self._fetch(client, objects, missing, held)
            finally:
                # Even if it was interrupted: files that have arrived are not fetched again.
                self._write(objects, held)
        return self.path

    def forget(self) -> None:
        """Remove the copy and its record; the next process that needs it copies it again.

        Raises:
            OSError: it cannot be removed.
        """
        with alone(self._turn, doing=f"removing the copy of {self.source.uri}"):
            # The record, which says that the copy is complete, is removed first.
            self._record.unlink(missing_ok=True)
            if self.path.is_dir():
                shutil.rmtree(self.path)
            else:
                self.path.unlink(missing_ok=True)

    def _look(self, client: Any) -> dict[str, Stored]:
        if self.source.is_folder:
            found = {name: each for name, each in listing(client, self.source).items() if _is_shown(name)}
        else:
            found = self._single(client)
        if not found:
            raise nothing_there(client, self.source)
        for name in found:
            taken = next((str(above) for above in Path(name).parents if str(above) in found), None)
            if not is_file_name(name) or taken is not None:
                why = f"{taken!r} is an object too" if taken else "no file can have that name"
                raise NotThere(f"it holds an object named {name!r}, and {why}; rename it, or give another folder")
        return found

    def _single(self, client: Any) -> dict[str, Stored]:
        from botocore.exceptions import ClientError

        try:
            answer = client.head_object(Bucket=self.source.bucket, Key=self.source.key)
        except ClientError as error:
            if code_of(error) in NOT_THERE:
                return {}
            raise
        return {self.source.name: Stored(answer["ContentLength"], answer["ETag"].strip('"'))}

    def _fetch(self, client: Any, objects: Mapping[str, Stored], missing: list[str], held: dict[str, Held]) -> None:
        if not missing:
            return
        size_gb = sum(objects[name].size for name in missing) / 1e9
        log.info("from S3: %d of %d files of %s, %.3g GB", len(missing), len(objects), self.source.uri, size_gb)

        def arrived(name: str) -> None:
            status = (self._folder / name).stat()
            held[name] = Held(objects[name].etag, status.st_size, status.st_mtime_ns)

        source = self.source if self.source.is_folder else self.source.parent
        download(client, source, missing, self._folder, arrived)
        # Look again: gigabytes take minutes, and a model of the same shape has files of the same sizes.
        now = self._look(client)
        for name in missing:
            if now.get(name) != objects[name]:
                del held[name]
                raise NoAccess(f"{name} was changed in S3 while it was copied; run the command again")

    def _remove_others(self, objects: Mapping[str, Stored]) -> None:
        """Remove files that S3 does not have, whoever left them, and folders that become empty."""
        for folder, _, names in os.walk(self._folder, topdown=False):
            for name in names:
                file = Path(folder, name)
                relative = file.relative_to(self._folder).as_posix()
                if relative not in objects and (_is_shown(relative) or _is_forgotten(file)):
                    file.unlink(missing_ok=True)
            if folder != str(self._folder):
                with suppress(OSError):  # it is not empty
                    os.rmdir(folder)

    # --- the record ---

    def _has(self, name: str, stored: Stored, held: Mapping[str, Held]) -> bool:
        known = held.get(name)
        if known is None or (known.etag, known.size) != (stored.etag, stored.size):
            return False
        try:
            status = (self._folder / name).stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (known.size, known.mtime_ns)

    def _read(self) -> tuple[dict[str, Stored], dict[str, Held]] | None:
        try:
            found = json.loads(self._record.read_text(encoding="utf-8"))
            objects = {str(name): Stored(int(size), str(etag)) for name, (size, etag) in found["objects"].items()}
            held = {
                str(name): Held(str(etag), int(size), int(mtime)) for name, (etag, size, mtime) in found["held"].items()
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None  # it is recreated at the next look
        return objects, held

    def _write(self, objects: Mapping[str, Stored], held: Mapping[str, Held]) -> None:
        shown = {name: [each.size, each.etag] for name, each in sorted(objects.items())}
        about = {"uri": self.source.uri, "objects": shown, "held": dict(sorted(held.items()))}
        write_text(self._record, json.dumps(about, indent=0))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from botocore.exceptions import ClientError

        what = f"s3:ListBucket on {self.source.bucket} and s3:GetObject on {self.source.uri}"
        try:
            with understood(what):
                yield
        except ClientError as error:
            if code_of(error) == "NoSuchBucket":
                raise no_such_bucket(self.source.bucket) from None
            raise NoAccess(f"S3 refuses: {message_of(error)} ({code_of(error)}); correct the address") from None
        except OSError as error:
            raise NoAccess(f"cannot be copied to {self._folder}: {error}; make room, or set RUNNER_CACHE") from error


def _is_shown(name: str) -> bool:
    """Whether an object is a visible file; a name that ends with a slash stands for a folder."""
    return not name.endswith("/") and not any(
        part.startswith(".") and part not in (".", "..") for part in name.split("/")
    )


def _is_forgotten(file: Path) -> bool:
    try:
        return file.stat().st_mtime < time.time() - FORGOTTEN_S
    except OSError:
        return False
