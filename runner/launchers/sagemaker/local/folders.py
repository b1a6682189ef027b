"""Folders on this machine in place of S3: what `Storage` does, without an account."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from runner.aws.storage import Stored
from runner.paths import atomic_file
from runner.s3 import Location


class FolderStorage:
    """Objects as files.

    Args:
        root: the folder whose subfolders are the buckets.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, place: Location) -> Path:
        """The path of an object or folder."""
        return self.root / place.bucket / place.key

    def listing(self, folder: Location) -> dict[str, Stored]:
        """Everything in a folder, by its path there."""
        found, root = {}, self.path(folder)
        for file in sorted(root.rglob("*")):
            if file.is_file() and not file.name.startswith("."):
                try:
                    with file.open("rb") as stream:
                        etag = hashlib.file_digest(stream, "md5").hexdigest()
                    found[file.relative_to(root).as_posix()] = Stored(file.stat().st_size, etag)
                except FileNotFoundError:
                    continue  # replaced while we were looking
        return found

    def has(self, place: Location) -> bool:
        """Whether an object of that name exists."""
        return self.path(place).is_file()

    def read(self, place: Location) -> bytes:
        """The content of an object."""
        return self.path(place).read_bytes()

    def write(self, place: Location, content: bytes) -> None:
        """Store a small object."""
        with atomic_file(self.path(place)) as temporary:
            temporary.write_bytes(content)

    def upload(self, files: Mapping[str, Path], folder: Location) -> None:
        """Copy files into a folder, under the given names."""
        for name, file in files.items():
            with atomic_file(self.path(folder / name)) as temporary:
                shutil.copyfile(file, temporary)

    def download(self, folder: Location, names: Iterable[str], target: Path) -> None:
        """Copy objects from a folder; each file appears complete. What was removed since the listing is skipped."""
        for name in names:
            source = self.path(folder / name)
            with suppress(FileNotFoundError), atomic_file(target / name) as temporary:
                shutil.copyfile(source, temporary)

    def copy(self, source: Location, target: Location) -> None:
        """Copy an object."""
        self.upload({target.key: self.path(source)}, Location(target.bucket, ""))
