"""Removes an endpoint, its configurations, models and uploads, and records this with the jobs that deployed it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from runner.aws.account import refusals_said
from runner.aws.endpoints import Endpoints
from runner.aws.names import Places
from runner.jobs.deployed import take_back
from runner.jobs.job import now
from runner.paths import JobPaths
from runner.s3.objects import remove
from runner.schema.tasks.deploy import Undeploy
from runner.tasks.undeploy.check import account_of

log = logging.getLogger(__name__)


def work(settings: Undeploy, paths: JobPaths, _place: object, *, stop: Callable[[], bool]) -> dict[str, Any]:
    """See `runner.tasks`; once begun, it is not stopped half-way.

    Raises:
        AwsError: AWS refuses something.
    """
    name = settings.endpoint.name or settings.name
    with refusals_said():
        account = account_of(settings)
        removed = Endpoints(account).remove(name, poll_s=settings.endpoint.poll_s)
        place = Places(account.bucket, settings.endpoint.prefix).endpoint(name)
        if count := remove(account.s3, place):
            removed.append(f"{count} objects in {place.uri}")
    for line in removed:
        log.info("removed: %s", line)
    if not removed:
        log.info("found nothing of an endpoint %s in %s", name, account.region)
    take_back(paths.folder.parent.parent, name, account.region, why=f"its endpoint was removed at {now()}")
    return {"removed": removed}
