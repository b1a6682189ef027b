"""A base model or VAE in S3 or in a `.tar.gz`: what is known about it before it is here, and its folder afterwards.

What lies in S3 is identified by its listing: names, sizes and ETags. No weights are transferred until a job needs them.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from runner.errors import ModelError
from runner.paths import cache_dir
from runner.s3 import Location
from runner.s3.access import NoAccess
from runner.s3.mirror import Mirror
from runner.s3.missing import NotThere
from runner.s3.objects import Stored
from runner.system.archive import SUFFIX, BadArchive, inner, is_archive, lay_out

log = logging.getLogger(__name__)

PLANNED_WITH = (".json", ".txt")
"""Suffixes of the small files needed for planning."""


def source_of(uri: str) -> Location:
    """The folder or archive that a setting names.

    Raises:
        ValueError: it names neither.
    """
    return Location.of_input(uri, files=(SUFFIX,))


def look(key: str, uri: str, *, one_of: Collection[str]) -> list[str]:
    """List a location in S3, and fetch the small files of a folder; returns faults, one line each.

    Args:
        key: the setting.
        one_of: files that identify the layout; archives are not inspected.
    """
    try:
        mirror = Mirror(source_of(uri))
        mirror.bring(lambda objects: _small(objects) if any(name in objects for name in one_of) else [])
    except (ValueError, NoAccess, NotThere) as error:
        return [f"{key} = {uri!r}: {error}"]
    objects = mirror.listed() or {}
    if is_archive(uri) or any(name in objects for name in one_of):
        return []
    below = sorted({name.rpartition("/")[0] for name in objects if name.rpartition("/")[2] in one_of} - {""})
    hint = f", did you mean {(mirror.source / below[0]).uri}/?" if below else "; name what save_pretrained wrote"
    return [f"{key} = {uri!r}: holds no {' or '.join(one_of)}, so it is not in diffusers layout{hint}"]


def names_like(uri: str, pattern: str) -> list[str]:
    """Paths in a folder, as of the last listing, that match a pattern."""
    return fnmatch.filter(Mirror(source_of(uri)).listed() or {}, pattern)


def described(uri: str) -> Path | None:
    """The folder with at least a model's small files, after `look`; None for an archive that is not here."""
    return local_copy(uri) if is_archive(uri) else Mirror(source_of(uri)).path


def local_copy(uri: str) -> Path | None:
    """The folder with all files, if it matches the last listing of S3; None otherwise."""
    try:
        mirror = Mirror(source_of(uri))
    except ValueError:
        return None
    if not is_archive(uri):
        return mirror.path if mirror.is_complete else None
    folder = _laid_out_in(mirror)
    return inner(folder) if folder is not None and folder.is_dir() else None


def fetched(key: str, uri: str) -> Path:
    """The folder with all files, brought up to date if S3 is reachable.

    Raises:
        ModelError: it is not here and cannot be fetched.
    """
    mirror = Mirror(source_of(uri))
    try:
        if not is_archive(uri):
            return mirror.bring()
        mirror.bring(lambda _objects: ())
        if (copy := local_copy(uri)) is not None:
            return copy
        archive = mirror.bring()
        folder = _laid_out_in(mirror)
        assert folder is not None
        found = lay_out(archive, folder)
        archive.unlink(missing_ok=True)  # its content takes as much space again
        return found
    except NoAccess as error:
        if (copy := local_copy(uri)) is None:
            raise ModelError(f"{key} = {uri!r}: {error}") from error
        log.warning("%s = %r: %s; using the copy on this machine", key, uri, error)
        return copy
    except (NotThere, BadArchive) as error:
        raise ModelError(f"{key} = {uri!r}: {error}") from error


def laid_out(archive: Path) -> Path:
    """The folder with the content of a local archive, unpacked once.

    Raises:
        BadArchive: it is damaged, or contains something that is not unpacked.
    """
    return lay_out(archive, place_of(archive))


def place_of(archive: Path) -> Path:
    """Where a local archive is unpacked, or would be."""
    status = archive.stat()
    return _place(f"{archive.absolute()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}")


def listing_hash(uri: str, suffixes: Collection[str]) -> str:
    """SHA-256 over names, sizes and ETags, as of the last listing: a changed object is another model.

    An ETag depends on how an object was uploaded: the same files uploaded in other parts are another model too.

    Args:
        uri: a folder or archive that has been listed.
        suffixes: of the files that count in a folder.
    """
    objects = Mirror(source_of(uri)).listed() or {}
    digest = hashlib.sha256()
    for name, stored in sorted(objects.items()):
        if is_archive(uri) or name.endswith(tuple(suffixes)):
            # An archive's name says nothing about its content.
            shown = "" if is_archive(uri) else name
            digest.update(f"{shown}\0{stored.size}\0{stored.etag}\n".encode())
    return f"listing-{digest.hexdigest()}"


def _small(objects: Mapping[str, Stored]) -> list[str]:
    return [name for name in objects if name.endswith(PLANNED_WITH)]


def _laid_out_in(mirror: Mirror) -> Path | None:
    """Where the content of an archive in S3 will be unpacked; None before the first listing."""
    objects = mirror.listed()
    if objects is None:
        return None
    stored = objects[mirror.source.name]
    return _place(f"{mirror.source.uri}|{stored.size}|{stored.etag}")


def _place(content: str) -> Path:
    return cache_dir() / "archives" / hashlib.sha256(content.encode()).hexdigest()[:20]
