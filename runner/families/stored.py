"""A base model, or a VAE, in S3 or in a `.tar.gz`: what is known of it before it is here, and its folder once it is.

What lies in S3 is known by its listing: names, sizes and ETags. No weights travel before a job needs them here.
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
"""Endings of the small files that a plan is made with."""


def source_of(uri: str) -> Location:
    """The folder or archive that a setting names.

    Raises:
        ValueError: it names none.
    """
    return Location.of_input(uri, files=(SUFFIX,))


def look(key: str, uri: str, *, one_of: Collection[str]) -> list[str]:
    """Ask S3 what is there, and fetch the small files of a folder; faults, one line each.

    Args:
        key: the setting.
        one_of: files by which the layout is known; an archive is not looked into.
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
    """Paths in a folder, as of the last look, that fit a pattern."""
    return fnmatch.filter(Mirror(source_of(uri)).listed() or {}, pattern)


def described(uri: str) -> Path | None:
    """The folder with at least a model's small files, after `look`; None for an archive that is not here."""
    return local_copy(uri) if is_archive(uri) else Mirror(source_of(uri)).path


def local_copy(uri: str) -> Path | None:
    """The folder with all files, if S3 had the same at the last look; None otherwise."""
    try:
        mirror = Mirror(source_of(uri))
    except ValueError:
        return None
    if not is_archive(uri):
        return mirror.path if mirror.is_complete else None
    folder = _laid_out_in(mirror)
    return inner(folder) if folder is not None and folder.is_dir() else None


def fetched(key: str, uri: str) -> Path:
    """The folder with all files, brought up to date if S3 can be asked.

    Raises:
        ModelError: it is not here, and cannot be fetched.
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
        archive.unlink(missing_ok=True)  # what was in it is twice as much again
        return found
    except NoAccess as error:
        if (copy := local_copy(uri)) is None:
            raise ModelError(f"{key} = {uri!r}: {error}") from error
        log.warning("%s = %r: %s; the copy on this machine is used", key, uri, error)
        return copy
    except (NotThere, BadArchive) as error:
        raise ModelError(f"{key} = {uri!r}: {error}") from error


def laid_out(archive: Path) -> Path:
    """The folder with the content of an archive on this machine, unpacked once.

    Raises:
        BadArchive: it is damaged, or holds what is not unpacked.
    """
    return lay_out(archive, place_of(archive))


def place_of(archive: Path) -> Path:
    """Where an archive on this machine is unpacked, or would be."""
    status = archive.stat()
    return _place(f"{archive.absolute()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}")


def listing_hash(uri: str, suffixes: Collection[str]) -> str:
    """SHA-256 over names, sizes and ETags, as of the last look: a changed object is another model.

    An ETag depends on how an object was sent: the same files, uploaded again in other parts, are another model too.

    Args:
        uri: a folder or archive that was looked at.
        suffixes: endings of the files that count in a folder.
    """
    objects = Mirror(source_of(uri)).listed() or {}
    digest = hashlib.sha256()
    for name, stored in sorted(objects.items()):
        if is_archive(uri) or name.endswith(tuple(suffixes)):
            # How an archive is called is not what is in it.
            shown = "" if is_archive(uri) else name
            digest.update(f"{shown}\0{stored.size}\0{stored.etag}\n".encode())
    return f"listing-{digest.hexdigest()}"


def _small(objects: Mapping[str, Stored]) -> list[str]:
    return [name for name in objects if name.endswith(PLANNED_WITH)]


def _laid_out_in(mirror: Mirror) -> Path | None:
    """Where the content of an archive in S3 is unpacked, which it is not yet; None before the first look."""
    objects = mirror.listed()
    if objects is None:
        return None
    stored = objects[mirror.source.name]
    return _place(f"{mirror.source.uri}|{stored.size}|{stored.etag}")


def _place(content: str) -> Path:
    return cache_dir() / "archives" / hashlib.sha256(content.encode()).hexdigest()[:20]
