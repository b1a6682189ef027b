"""What a dry run shows: cost, requests, and what the account would need. Sends nothing that changes anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from runner.aws.account import Account, NoAccess
from runner.aws.image import image_of
from runner.aws.names import Places, training_job_name
from runner.aws.prices import Prices
from runner.jobs.job import Job
from runner.launchers.lots import Lot
from runner.launchers.sagemaker.channels import planned_channels
from runner.launchers.sagemaker.divide import divided
from runner.launchers.sagemaker.estimate import Estimate, estimate
from runner.launchers.sagemaker.inputs import PASSED_SECRETS, environment
from runner.launchers.sagemaker.preflight import NEEDED, preflight
from runner.launchers.sagemaker.record import CLUSTER
from runner.launchers.sagemaker.request import training_request
from runner.plan import Plan
from runner.schema import SageMakerLauncher
from runner.work import WORKER_NAME

UNKNOWN_ACCOUNT = "<account>"


def preview_lines(plan: Plan, settings: SageMakerLauncher) -> list[str]:
    """What it would cost, the requests that would be sent, and the checks that would come first."""
    draft = Draft(settings)
    requests = []
    for pack in divided(plan, settings).packs:
        order = Lot(pack, CLUSTER).order(settings.device)
        name = training_job_name(order.title, order.key, 1)
        requests.append(draft.request(pack.jobs, name=name, variables={WORKER_NAME: name}))
    return [*draft.cost(plan), *(json.dumps(request, indent=2) for request in requests), *draft.preflight()]


class Draft:
    """What can be said before anything is sent; what only the account knows is marked if it cannot be asked."""

    def __init__(self, settings: SageMakerLauncher) -> None:
        self.settings, self.account = settings, Account(settings)
        self.known = self.account.session.get_credentials() is not None
        region = self.account.session.region_name or "<region>"
        account_id = UNKNOWN_ACCOUNT
        if self.known:
            with suppress(NoAccess):
                account_id = self.account.account_id
        self.places = Places(settings.bucket or f"sagemaker-{region}-{account_id}", settings.prefix)
        self.role_arn = settings.role or "<launcher.role>"
        if settings.role and not settings.role.startswith("arn:"):
            known = account_id != UNKNOWN_ACCOUNT
            self.role_arn = self.account.role_arn if known else f"arn:aws:iam::{account_id}:role/{settings.role}"

    def estimate(self, plan: Plan) -> Estimate | None:
        """What the plan will cost; None if a price or a time is unknown."""
        asked = self.account if self.known and self.account.session.region_name else None
        price = Prices(asked).per_hour(self.settings.instance)
        return None if price is None else estimate(plan, self.settings, price)

    def cost(self, plan: Plan) -> list[str]:
        """The same in words."""
        if found := self.estimate(plan):
            return [found.line(self.settings)]
        if not plan.packs:
            return []
        return [f"cost: unknown, because an hour of {self.settings.instance} has no known price, or jobs no known time"]

    def request(self, jobs: Sequence[Job], *, name: str, variables: dict[str, str]) -> dict[str, Any]:
        """The request for a training job of these jobs.

        Args:
            variables: the container's variables, besides those that every container gets.
        """
        experiment = jobs[0].settings.name
        place = self.places.training_job(experiment, name)
        passed = {key: "***" if key in PASSED_SECRETS else each for key, each in environment(self.settings).items()}
        return training_request(
            self.settings,
            name=name,
            experiment=experiment,
            role_arn=self.role_arn,
            image=image_of(self.settings) or "<launcher.image>",
            place=place,
            channels=planned_channels(jobs, self.places, place),
            environment=variables | passed,
        )

    def preflight(self) -> list[str]:
        """What would make a run fail its checks, or which checks it would make."""
        if not self.known:
            return [f"no AWS credentials here: a run would need them, and check before it starts: {NEEDED}"]
        faults = preflight(self.settings, self.account, image_of(self.settings))
        if faults:
            return ["a run would be refused:", *(f"  {fault}" for fault in faults)]
        return ["preflight: good"]
