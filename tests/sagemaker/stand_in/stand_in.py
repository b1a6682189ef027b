"""The stand-in as tests use it: all parts wired to one address, a prepared account, methods for what tests do."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from moto.moto_api._internal.models import moto_api_backend

from .account import Account
from .calls import Call
from .capacity import Capacity
from .endpoints import Endpoints
from .images import Image, Images
from .instances import instance_types
from .jobs import TrainingJob
from .log_streams import TRAINING_GROUP, create_group
from .permissions import Permissions
from .platform import ACCOUNT, PLATFORM_KEY, Platform, Settings
from .pricing import PriceList
from .quotas import Quotas
from .server import FrontDoor
from .training import TrainingJobs
from .tuning import TuningJobs

KEY, SECRET = "AKIATESTTESTTESTTEST", "the secret of the person who submits"
USER_ARN = f"arn:aws:iam::{ACCOUNT}:user/submitter"
TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}
POLL_S = 0.02


class StandIn:
    """AWS, from its creation until the `with` block ends; one at a time per process, because moto is a single one."""

    bucket = "stand-in"
    """A bucket that exists."""

    def __init__(
        self,
        root: Path,
        *,
        images: Mapping[str, Sequence[str] | Image] | None = None,
        quotas: Mapping[str, int] | None = None,
        throttle_every: Mapping[str, int] | None = None,
        **settings: Any,
    ) -> None:
        """Start answering.

        Args:
            root: the folder for the trees of hosts.
            images: the command that each image stands for, by `name:tag` in the account's registry or by full URI.
            quotas: instances of a type at once, for training and, counted separately, for managed spot training.
            throttle_every: n for each operation (`CreateTrainingJob`): every n-th call is refused.
            settings: fields of `Settings`.
        """
        moto_api_backend.reset()
        types = instance_types()
        self.permissions, self.requests = Permissions(USER_ARN, ACCOUNT), list[Call]()
        self._door = FrontDoor(
            self._gate,
            {
                "iam:SimulatePrincipalPolicy": self.permissions.simulate,
                # The runtime's only operation, whose requests do not name it.
                "sagemaker:POST": lambda call, environ: self.endpoints.invoke(call, environ),
            },
        )
        self.faults = self._door.faults
        self.platform = Platform(Settings(root, **settings), self._door.listen(), self._door.listen)
        self.quotas, self.prices, self.capacity = Quotas(types), PriceList(types), Capacity()
        self.images = Images(self.platform)
        self.account = Account(
            self.platform, self.permissions, types, self.quotas, self.prices, self.capacity, self.images, self.faults
        )
        self.training = TrainingJobs(self.account)
        self.tuning = TuningJobs(self.account, self.training)
        self.endpoints = Endpoints(self.account)
        for service, operations in (
            ("sagemaker", self.training.operations),
            ("sagemaker", self.tuning.operations),
            ("sagemaker", self.endpoints.operations),
            ("sagemaker", self.account.tag_operations),
            ("servicequotas", self.quotas.operations),
            ("pricing", self.prices.operations),
        ):
            self._door.operations |= {(service, name): operation for name, operation in operations.items()}
        self.role = self._make_role()
        self.s3.create_bucket(Bucket=self.bucket)
        for name, image in (images or {}).items():
            self.add_image(name, image)
        for instance_type, limit in (quotas or {}).items():
            self.quotas.set(instance_type, training=limit, spot=limit)
        for operation, every in (throttle_every or {}).items():
            self.permissions.throttle(operation, every)

    def __enter__(self) -> StandIn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what still runs, and stop answering."""
        self.platform.closing.set()
        for tuning in self.tuning.jobs.values():
            tuning.thread.join()
        for execution in self.training.executions:
            execution.join()
        self.endpoints.close()
        self._door.close()

    # What a test hands to the program under test

    @property
    def url(self) -> str:
        """Where all services answer."""
        return self.platform.url

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which AWS clients in another process find the stand-in, and nothing else."""
        region = self.platform.settings.region
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def client(self, service: str) -> Any:
        """A boto3 client for a test that plays the person who submits."""
        return self.platform.client(service, KEY, SECRET)

    # What a test looks at

    @property
    def s3(self) -> Any:
        """A client of the object store; its calls are not recorded."""
        return self.platform.s3

    @property
    def jobs(self) -> dict[str, TrainingJob]:
        """All training jobs, by name."""
        return self.training.jobs

    def asked(self, operation: str) -> list[dict[str, Any]]:
        """The parameters of each call of an operation so far, including refused ones."""
        return [call.parameters for call in self.requests if call.operation == operation]

    def keys(self, prefix: str = "") -> list[str]:
        """The keys of the objects in the bucket."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def printed(self, name: str) -> list[str]:
        """The lines printed by the hosts of a job, host by host."""
        logs, lines = self.platform.logs, list[str]()
        create_group(logs, TRAINING_GROUP)
        pages = logs.get_paginator("describe_log_streams").paginate(
            logGroupName=TRAINING_GROUP, logStreamNamePrefix=f"{name}/"
        )
        for stream in (one["logStreamName"] for page in pages for one in page["logStreams"]):
            asked: dict[str, Any] = {"logGroupName": TRAINING_GROUP, "logStreamName": stream, "startFromHead": True}
            while events := (answer := logs.get_log_events(**asked))["events"]:
                lines += [event["message"] for event in events]
                asked["nextToken"] = answer["nextForwardToken"]
        return lines

    def wait(self, name: str, *statuses: str, within_s: float = 60.0) -> TrainingJob:
        """Wait until the job exists and has one of these statuses or secondary statuses, or has ended otherwise."""
        deadline_s = time.monotonic() + within_s
        while True:
            job = self.jobs.get(name)
            if job and (job.has_ended or {job.status, job.secondary} & set(statuses)):
                return job
            state = (job.status, job.secondary) if job else "not created"
            assert time.monotonic() < deadline_s, f"{name}: {state}"
            time.sleep(POLL_S)

    # What a test does to it

    def add_image(self, name: str, image: Sequence[str] | Image) -> str:
        """Push an image, `lora:1` or a full URI, that stands for a command; returns the URI."""
        return self.images.add(name, image if isinstance(image, Image) else Image(tuple(image)))

    def interrupt(self, name: str) -> None:
        """Take the instances of a managed spot job away; it starts again when there is capacity."""
        job = self.jobs[name]
        assert job.spot, f"{name} is no managed spot training"
        job.interrupt.set()

    def _gate(self, call: Call) -> None:
        if call.access_key != PLATFORM_KEY:
            self.requests.append(call)
            self.permissions.check(call)

    def _make_role(self) -> str:
        made = self.platform.iam.create_role(
            RoleName="execution", Path="/service-role/", AssumeRolePolicyDocument=json.dumps(TRUST)
        )
        return str(made["Role"]["Arn"])
