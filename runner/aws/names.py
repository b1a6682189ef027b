"""Names of training jobs and places in S3: derived from their content, so that nothing is sent twice."""

from __future__ import annotations

from runner.s3 import Location
from runner.schema.knob import dashed

__all__ = ["Location", "Places", "training_job_name"]

NAME_LENGTH = 63
"""Longest name of a training job: `[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}`."""


def training_job_name(experiment: str, key: str, attempt: int, *, length: int = NAME_LENGTH) -> str:
    """The name of a training job, or of anything else whose name may have up to `length` characters.

    Args:
        experiment: the experiment's name, cut off where there is no room for it.
        key: a hash of the jobs in it.
        attempt: from 1; the name of the first attempt omits it.
    """
    end = f"-{key}" + (f"-{attempt}" if attempt > 1 else "")
    return (dashed(experiment, length - len(end)) or "job") + end


class Places:
    """Where an experiment's files are in S3."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.root = Location(bucket, f"{prefix.strip('/')}/")

    def training_job(self, experiment: str, name: str) -> Location:
        """Everything that belongs to one training job."""
        return self.root / f"experiments/{experiment}/{name}/"

    def dataset(self, fingerprint: str) -> Location:
        """The images and captions of a data set, whatever its source."""
        return self.root / f"datasets/{fingerprint[:32]}/"

    def model(self, fingerprint: str) -> Location:
        """The files of a base model from a local folder."""
        return self.root / f"models/{fingerprint[:32]}/"

    def endpoint(self, name: str) -> Location:
        """What was uploaded for an endpoint."""
        return self.root / f"endpoints/{name}/"

    def code(self, digest: str) -> Location:
        """The project's package."""
        return self.root / f"code/{digest[:16]}/"

    @property
    def cache(self) -> Location:
        """Encodings made by training jobs, shared with all later ones."""
        return self.root / "cache/"
