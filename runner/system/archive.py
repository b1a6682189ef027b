"""Unpacks a folder from a `.tar.gz`; nothing in it may lead out of the folder that it is unpacked into.

Takes an archive and the folder to create. Does not know what the files contain.
"""

from __future__ import annotations

import gzip
import logging
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from runner.errors import SettingsError
from runner.paths import atomic_folder
from runner.system.exclusive import alone

log = logging.getLogger(__name__)

SUFFIX = ".tar.gz"
CHUNK_BYTES = 1 << 22
FIX = "pack it again: tar -czf model.tar.gz -C FOLDER ."


class BadArchive(SettingsError):
    """An archive is damaged, or contains something that is not unpacked."""


def is_archive(path: str) -> bool:
    """Whether a path or address names an archive."""
    return path.lower().endswith(SUFFIX)


def lay_out(archive: Path, folder: Path) -> Path:
    """Unpack an archive into a folder, which appears whole; if the folder exists, the archive is not opened.

    Names that begin with a dot are skipped.

    Args:
        archive: a `.tar.gz`.
        folder: the folder to create; it holds nothing but this archive's content.

    Returns:
        The folder, or the one inside it that holds everything.

    Raises:
        BadArchive: it is damaged, or contains links, devices or names outside of it; or the disk is full.
    """
    with alone(folder.parent / f"{folder.name}.lock", doing=f"unpacking {archive.name}"):
        if not folder.is_dir():
            # Left by a process that was killed; no other process is here now.
            for left in folder.parent.glob(f".{folder.name}.*"):
                shutil.rmtree(left)
            log.info("unpacking %s, %.1f GB", archive, archive.stat().st_size / 1e9)
            try:
                with atomic_folder(folder) as temporary:
                    _extract(archive, temporary)
            except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise BadArchive(f"{archive.name} is damaged, or not a {SUFFIX} ({error}); {FIX}") from error
            except OSError as error:
                raise BadArchive(f"{archive.name} cannot be unpacked into {folder.parent} ({error})") from error
    return inner(folder)


def inner(folder: Path) -> Path:
    """The folder that holds everything: the folder itself, or its only entry if that is a folder."""
    entries = list(folder.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder


def _extract(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise BadArchive(f"{archive.name} holds {member.name!r}, which lies outside of it; {FIX}")
            if any(part.startswith(".") for part in name.parts):
                continue
            if not (member.isfile() or member.isdir()):
                kind = "a link" if member.issym() or member.islnk() else "no file"
                raise BadArchive(f"{archive.name} holds {member.name!r}, which is {kind}; {FIX}, with -h for links")
            target = folder / name
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None, member.name
            with target.open("wb") as written:
                shutil.copyfileobj(content, written, CHUNK_BYTES)
