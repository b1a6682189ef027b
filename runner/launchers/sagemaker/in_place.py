"""Data sets and base models that are already in S3: training jobs read them there, and nothing is sent."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from runner.data.sources.s3 import source_of as data_source
from runner.families.stored import source_of as model_source
from runner.jobs.job import Job
from runner.launchers.sagemaker.request import Channel
from runner.parcel import in_channel
from runner.s3 import Location, is_s3
from runner.s3.access import bucket_region
from runner.s3.mirror import Mirror
from runner.schema import SageMakerLauncher


@dataclasses.dataclass(frozen=True)
class InPlace:
    """An input in S3."""

    channel: Channel
    path: str
    """The path that configurations in the container use for it."""


def data_in_place(job: Job) -> InPlace | None:
    """The data set of a checked job, if it is in S3; a large one is streamed."""
    launcher = job.settings.launcher
    assert isinstance(launcher, SageMakerLauncher), job.id
    path = job.experiment.dataset.path
    # Several sources are sent as one data set.
    if path is None or not is_s3(path) or launcher.local:
        return None
    source = data_source(path)
    # The listing comes from the check: nothing is asked again.
    size_gb = sum(each.size for each in (Mirror(source).listed() or {}).values()) / 1e9
    return _in_place("dataset", source, streamed=size_gb > launcher.fast_file_over_gb)


def models_in_place(job: Job) -> Mapping[str, InPlace]:
    """The base model and VAE of a checked job that are in S3, by their keys in the group `model`."""
    named = {key: getattr(job.settings.model, key) for key in ("path", "vae")}
    return {key: _in_place("model", model_source(uri)) for key, uri in named.items() if uri and is_s3(uri)}


def in_other_regions(jobs: Sequence[Job], client: Any, region: str) -> list[str]:
    """Faults of inputs that training jobs cannot read because they are in another region."""
    from botocore.exceptions import ClientError

    uris = {
        f"{section}.{key} = {uri!r}": uri
        for job in jobs
        for section, key in (("dataset", "path"), ("model", "path"), ("model", "vae"))
        if (section == "model" or job.trains) and is_s3(uri := getattr(getattr(job.settings, section), key) or "")
    }
    regions: dict[str, str | None] = {}
    faults = []
    for setting, uri in uris.items():
        bucket = Location.parse(uri).bucket
        if bucket not in regions:
            try:
                regions[bucket] = bucket_region(client.head_bucket(Bucket=bucket))
            except ClientError:
                regions[bucket] = None  # permission to read it does not imply permission to ask
        if regions[bucket] not in (None, region):
            fix = f"copy it to a bucket there, or set launcher.region={regions[bucket]}"
            faults.append(f"{setting}: is in {regions[bucket]}, and training jobs run in {region}; {fix}")
    return faults


def _in_place(kind: str, source: Location, *, streamed: bool = False) -> InPlace:
    name = f"{kind}-{hashlib.sha256(source.uri.encode()).hexdigest()[:8]}"
    channel = Channel(name, source.uri, "FastFile" if streamed else "File")
    return InPlace(channel, in_channel(name, "" if source.is_folder else source.name))
