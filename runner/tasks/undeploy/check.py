"""Checks whether AWS can be used at all; a missing endpoint is no fault."""

from __future__ import annotations

from typing import Any

from runner.aws.account import Account, NoAccess
from runner.errors import SettingsError
from runner.schema.aws import AwsSettings
from runner.schema.reading import IsRight, all_right
from runner.schema.tasks.deploy import Undeploy
from runner.tasks.deploy.check import SECTION, here_faults


def check(settings: Undeploy) -> dict[str, Any]:
    """See `runner.tasks`."""
    if found := faults(settings, all_right):
        raise SettingsError("\n".join(found))
    try:
        account = account_of(settings)
        _ = account.region, account.account_id
    except NoAccess as error:
        raise SettingsError(str(error)) from error
    return {"endpoint": settings.endpoint.name or settings.name}


def faults(settings: Undeploy, is_right: IsRight) -> list[str]:
    """See `runner.tasks`."""
    return here_faults(settings.launcher.name, settings.task.name) if is_right("launcher") else []


def account_of(settings: Undeploy) -> Account:
    """The account that the endpoint is in."""
    chosen = settings.endpoint
    return Account(AwsSettings(region=chosen.region, bucket=chosen.bucket, prefix=chosen.prefix), section=SECTION)
