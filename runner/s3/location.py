"""Addresses in S3; makes no requests."""

from __future__ import annotations

import dataclasses
import re

SCHEME = "s3://"


def is_s3(path: str) -> bool:
    """Whether a setting names a place in S3, valid or not."""
    return path.startswith(SCHEME)


@dataclasses.dataclass(frozen=True)
class Location:
    """A place in S3: a bucket, and a key that ends with a slash if it stands for a folder."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: str) -> Location:
        """Read `s3://bucket/key`.

        Raises:
            ValueError: it is not of that form.
        """
        found = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", uri)
        if found is None:
            raise ValueError(f"{uri!r} is not a place in S3; write s3://bucket/folder/")
        return cls(found[1], found[2] or "")

    @classmethod
    def of_input(cls, uri: str, *, files: tuple[str, ...]) -> Location:
        """A folder, given with or without the trailing slash, or a single object.

        A folder gets the slash, so that `data` does not also match `data2`.

        Args:
            files: file name endings that mark a single object.

        Raises:
            ValueError: it is not of that form, or its key cannot be a file path here.
        """
        found = cls.parse(uri)
        if found.key and not found.key.endswith("/") and not found.key.lower().endswith(files):
            found = cls(found.bucket, f"{found.key}/")
        if not is_file_name(found.key.rstrip("/") or "x"):
            raise ValueError(f"{uri!r} has an empty part, '.' or '..' in it; write s3://bucket/folder/")
        return found

    @property
    def uri(self) -> str:
        """`s3://bucket/key`."""
        return f"{SCHEME}{self.bucket}/{self.key}"

    @property
    def is_folder(self) -> bool:
        """Whether it stands for all objects below it rather than for one object."""
        return not self.key or self.key.endswith("/")

    @property
    def name(self) -> str:
        """The last part of the key, without the slash."""
        return self.key.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> Location:
        """The folder that contains it; the parent of the bucket is the bucket."""
        above, slash, _ = self.key.rstrip("/").rpartition("/")
        return Location(self.bucket, f"{above}{slash}")

    def __truediv__(self, name: str) -> Location:
        """The place of that name in this folder."""
        return Location(self.bucket, f"{self.key}{name}")


def is_file_name(name: str) -> bool:
    """Whether a key's text can be the path of a file below a folder."""
    return not any(part in ("", ".", "..") for part in name.split("/")) and "\0" not in name
