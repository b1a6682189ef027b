"""Removes an endpoint, its configurations, its models and what was uploaded for it, and says so where it was made."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.aws.account import NoAccess, message_of
from runner.aws.endpoints import Endpoints
from runner.aws.names import Places
from runner.errors import AwsError, RunnerError
from runner.job import State, now, read_manifest, update_manifest
from runner.paths import JobPaths
from runner.s3.objects import remove
from runner.schema.tasks.deploy import Undeploy
from runner.tasks.undeploy.check import account_of

log = logging.getLogger(__name__)


def work(settings: Undeploy, paths: JobPaths, _place: object, *, stop: Callable[[], bool]) -> dict[str, Any]:
    """As `runner.tasks` says; once begun, it is not stopped half-way.

    Raises:
        AwsError: AWS refuses something.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    name = settings.endpoint.name or settings.name
    try:
        account = account_of(settings)
        removed = Endpoints(account).remove(name, poll_s=settings.endpoint.poll_s)
        place = Places(account.bucket, settings.endpoint.prefix).endpoint(name)
        if count := remove(account.s3, place):
            removed.append(f"{count} objects in {place.uri}")
    except (BotoCoreError, ClientError) as error:
        raise AwsError(f"AWS: {message_of(error)}") from error
    except NoAccess as error:
        raise AwsError(str(error)) from error
    for line in removed:
        log.info("removed: %s", line)
    if not removed:
        log.info("there is nothing of an endpoint %s in %s", name, account.region)
    _note(paths.folder.parent.parent, name, account.region)
    return {"removed": removed}


def _note(outputs: Path, name: str, region: str) -> None:
    """Take back what the jobs say that have made the endpoint: they can be run again."""
    for file in outputs.glob("*/*/manifest.json"):
        try:
            endpoint = read_manifest(file.parent).get("endpoint")
        except RunnerError as error:
            log.warning("%s", error)
            continue
        if isinstance(endpoint, dict) and (endpoint.get("name"), endpoint.get("region")) == (name, region):
            gone = f"its endpoint was removed at {now()}"
            update_manifest(file.parent, state=State.CANCELLED, endpoint=None, error=gone)
