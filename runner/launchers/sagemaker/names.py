"""Names of training jobs and places in S3: made from what is in them, so that nothing is ever sent twice."""

from __future__ import annotations

import dataclasses
import re

NAME_LENGTH = 63
"""Longest name of a training job: `[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}`."""


def training_job_name(experiment: str, key: str, attempt: int, *, length: int = NAME_LENGTH) -> str:
    """The name of a training job, or of anything else that may have so many characters.

    Args:
        experiment: the experiment's name, of which as much is kept as has room.
        key: a hash of the jobs in it.
        attempt: from 1; the first one's name does not have it.
    """
    end = f"-{key}" + (f"-{attempt}" if attempt > 1 else "")
    slug = re.sub(r"[^A-Za-z0-9]+", "-", experiment).strip("-")
    return (slug[: length - len(end)].rstrip("-") or "job") + end


def first_name(name: str, key: str) -> str:
    """The name that a training job of the same jobs had at the first attempt."""
    return name[: name.rindex(key) + len(key)]


@dataclasses.dataclass(frozen=True)
class Location:
    """A place in S3: a bucket, and a key that ends with a slash where it stands for a folder."""

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
            raise ValueError(f"{uri!r} is no place in S3; write s3://bucket/folder/")
        return cls(found[1], found[2] or "")

    @property
    def uri(self) -> str:
        """`s3://bucket/key`."""
        return f"s3://{self.bucket}/{self.key}"

    def __truediv__(self, name: str) -> Location:
        """The place of that name in this folder."""
        return Location(self.bucket, f"{self.key}{name}")


class Places:
    """Where an experiment's things lie in S3."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.root = Location(bucket, f"{prefix.strip('/')}/")

    def training_job(self, experiment: str, name: str) -> Location:
        """All that belongs to one training job."""
        return self.root / f"experiments/{experiment}/{name}/"

    def dataset(self, fingerprint: str) -> Location:
        """The images and captions of a data set, whatever it was made of."""
        return self.root / f"datasets/{fingerprint[:32]}/"

    def model(self, fingerprint: str) -> Location:
        """The files of a base model from a local folder."""
        return self.root / f"models/{fingerprint[:32]}/"

    def code(self, digest: str) -> Location:
        """The project's package."""
        return self.root / f"code/{digest[:16]}/"

    @property
    def cache(self) -> Location:
        """What training jobs have encoded, shared by all that follow."""
        return self.root / "cache/"
