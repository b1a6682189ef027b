"""What jobs have left in an AWS account: what could be freed in S3, and endpoints and images with their commands.

AWS is asked only if jobs have run there. What cannot be queried is reported, and nothing is listed for it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.aws.account import Account, NoAccess, message_of
from runner.aws.image import ECR_IMAGE, last_pushed
from runner.aws.names import Places
from runner.aws.sent import forget
from runner.clean.jobs import is_completed
from runner.clean.thing import Thing
from runner.errors import RunnerError
from runner.jobs.deployed import deployments, endpoint_of, undeploy_command
from runner.jobs.job import Job, read_manifest
from runner.launchers.sagemaker.record import CLUSTER
from runner.paths import ExperimentPaths
from runner.s3 import Location
from runner.s3.access import require_boto3
from runner.s3.objects import listing, remove
from runner.schema.aws import AwsSettings

log = logging.getLogger(__name__)


def account_things(jobs: Sequence[Job]) -> Iterator[Thing]:
    """What jobs have left in AWS."""
    yield from endpoint_things(jobs)
    sent: dict[str, list[Job]] = {}
    for job in jobs:
        launcher = job.settings.launcher
        if launcher.name == CLUSTER and isinstance(launcher, AwsSettings):
            sent.setdefault(launcher.model_dump_json(include={"region", "bucket", "prefix"}), []).append(job)
    for same in sent.values():
        yield from _asked(lambda same=same: list(_in_account(same)))  # type: ignore[misc]


def endpoint_things(jobs: Sequence[Job]) -> Iterator[Thing]:
    """Endpoints according to manifests; AWS is not asked."""
    for job in jobs:
        if about := endpoint_of(read_manifest(job.folder)):
            instance = f"{about.get('instances', 1)} {about.get('instance', 'instance')}"
            yield Thing("endpoints", f"{about['name']}: {instance}", command=undeploy_command(about))


def _in_account(jobs: Sequence[Job]) -> Iterator[Thing]:
    launcher = jobs[0].settings.launcher
    assert isinstance(launcher, AwsSettings), launcher
    require_boto3()
    account = Account(launcher)
    places = Places(account.bucket, launcher.prefix)
    for place, what in _results(jobs, places):
        yield from _prefix(account.s3, "s3", what, place)
    if all(is_completed(job) for job in jobs):
        for fingerprint in sorted({str(job.identity["dataset"]) for job in jobs if job.trains}):
            what, place = f"data set {fingerprint[:8]}", places.dataset(fingerprint)
            yield from _prefix(account.s3, "s3-inputs", what, place, forget)
        served = _served(jobs, places)
        for fingerprint in sorted({str(job.identity["model"]) for job in jobs}):
            if (place := places.model(fingerprint)) not in served:
                yield from _prefix(account.s3, "s3-inputs", f"model {fingerprint[:8]}", place, forget)
    yield from _images(account, _repositories(jobs, account.region))


def _served(jobs: Sequence[Job], places: Places) -> set[Location]:
    """The base models in S3 that an endpoint of any experiment reads whenever it starts an instance."""
    known = [each for outputs in {job.folder.parent.parent for job in jobs} for each in deployments(outputs)]
    return {places.model(str(manifest.get("identity", {}).get("model"))) for _, manifest in known}


def _results(jobs: Sequence[Job], places: Places) -> Iterator[tuple[Location, str]]:
    """Where training jobs have written whose jobs are all completed here."""
    by_folder: dict[Path, dict[str, Job]] = {}
    for job in jobs:
        by_folder.setdefault(job.folder.parent, {})[job.id] = job
    for folder, known in sorted(by_folder.items()):
        for record in _records(folder):
            name, members = str(record.get("name")), [str(each) for each in record.get("jobs") or ()]
            if members and all(job_id in known and is_completed(known[job_id]) for job_id in members):
                experiment = known[members[0]].settings.name
                yield places.training_job(experiment, name), f"{experiment}: training job {name}"


def _records(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The records of an experiment's ended training jobs."""
    for file in sorted(ExperimentPaths(folder).cluster(CLUSTER).glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and content.get("name") and content.get("gone"):
            yield content


def _prefix(
    client: Any, kind: str, what: str, place: Location, by: Callable[[Any, Location], int] = remove
) -> Iterator[Thing]:
    found = listing(client, place)
    if found:
        size = sum(each.size for each in found.values())

        def free() -> None:
            for _ in _asked(lambda: [by(client, place)]):
                return
            raise RunnerError(f"{place.uri} could not be removed")

        yield Thing(kind, f"{what}: {len(found)} objects in {place.uri}", size, remove=free)


def _repositories(jobs: Sequence[Job], region: str) -> set[str]:
    """The ECR repositories that these jobs' images came from."""
    named = [
        str(record.get("image") or "") for folder in {job.folder.parent for job in jobs} for record in _records(folder)
    ]
    named.append(last_pushed(region) or "")
    return {found["name"] for image in named if (found := ECR_IMAGE.fullmatch(image))}


def _images(account: Account, repositories: set[str]) -> Iterator[Thing]:
    last = last_pushed(account.region) or ""
    for name in sorted(repositories):
        pages = account.client("ecr").get_paginator("describe_images").paginate(repositoryName=name)
        for image in (image for page in pages for image in page["imageDetails"]):
            digest, tags = str(image["imageDigest"]), image.get("imageTags") or []
            is_last = " (pushed last; launcher.image=null takes it)" if last.endswith(digest) else ""
            which = f"imageTag={tags[0]}" if tags else f"imageDigest={digest}"
            command = (
                f"aws ecr batch-delete-image --region {account.region} --repository-name {name} --image-ids {which}"
            )
            pushed = image.get("imagePushedAt")
            yield Thing(
                "images",
                f"{name}:{tags[0] if tags else digest[:19]}{is_last}",
                image.get("imageSizeInBytes"),
                pushed.timestamp() if pushed else None,
                command=command,
            )


def _asked(ask: Callable[[], list[Any]]) -> Iterator[Any]:
    """What AWS answers; if it cannot be asked, nothing, and a line in the log that says why."""
    try:
        require_boto3()
        from botocore.exceptions import BotoCoreError, ClientError
    except NoAccess as error:
        log.warning("AWS is not queried: %s", error)
        return
    try:
        yield from ask()
    except (NoAccess, BotoCoreError) as error:
        log.warning("AWS cannot be queried: %s", error)
    except ClientError as error:
        log.warning("AWS refused: %s", message_of(error))
