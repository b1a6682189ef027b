"""What a dry run shows: cost, requests, and what an account would have to have. Sends nothing that changes anything."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from runner.launchers.lots import Lot
from runner.launchers.sagemaker.account import Account, NoAccess
from runner.launchers.sagemaker.channels import planned_channels
from runner.launchers.sagemaker.divide import divided
from runner.launchers.sagemaker.estimate import estimate
from runner.launchers.sagemaker.image import image_of
from runner.launchers.sagemaker.inputs import PASSED_SECRETS, environment
from runner.launchers.sagemaker.names import Places, training_job_name
from runner.launchers.sagemaker.preflight import NEEDED, preflight
from runner.launchers.sagemaker.prices import Prices
from runner.launchers.sagemaker.record import CLUSTER
from runner.launchers.sagemaker.request import training_request
from runner.plan import Plan
from runner.schema import SageMakerLauncher
from runner.work import WORKER_NAME

UNKNOWN_ACCOUNT = "<account>"


def preview_lines(plan: Plan, settings: SageMakerLauncher) -> list[str]:
    """What it would cost, the requests that would be sent, and what would be looked at before."""

    account = Account(settings)
    known = account.session.get_credentials() is not None
    price = Prices(account if known and account.session.region_name else None).per_hour(settings.instance)
    lines = []
    if price is None:
        lines.append(f"cost: unknown, for nobody says what an hour of {settings.instance} costs")
    elif found := estimate(plan, settings, price):
        lines.append(found.line(settings))
    lines += [json.dumps(request, indent=2) for request in _requests(plan, settings, account, known=known)]
    if not known:
        return [*lines, f"no AWS credentials here: a run would need them, and check before it starts: {NEEDED}"]

    faults = preflight(settings, account, image_of(settings))
    return [
        *lines,
        *(["a run would be refused:", *(f"  {fault}" for fault in faults)] if faults else ["preflight: good"]),
    ]


def _requests(plan: Plan, settings: SageMakerLauncher, account: Account, *, known: bool) -> list[dict[str, Any]]:
    """What would be sent; what only the account knows is marked."""

    variables = {key: "***" if key in PASSED_SECRETS else value for key, value in environment(settings).items()}
    region = account.session.region_name or "<region>"
    account_id = UNKNOWN_ACCOUNT
    if known:
        with suppress(NoAccess):
            account_id = account.account_id
    role = settings.role or "<launcher.role>"
    places = Places(settings.bucket or f"sagemaker-{region}-{account_id}", settings.prefix)
    requests = []
    for pack in divided(plan, settings).packs:
        lot = Lot(pack, CLUSTER)
        order = lot.order(settings.device)
        name = training_job_name(order.title, order.key, 1)
        place = places.training_job(order.title, name)
        requests.append(
            training_request(
                settings,
                name=name,
                experiment=order.title,
                role_arn=role if role.startswith(("arn:", "<")) else f"arn:aws:iam::{account_id}:role/{role}",
                image=image_of(settings) or "<launcher.image>",
                place=place,
                channels=planned_channels(pack.jobs, places, place),
                environment={WORKER_NAME: name} | variables,
            )
        )
    return requests
