"""What is used of an AWS account, by training jobs and endpoints alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from runner.schema.instances import instance_fault
from runner.schema.knob import Settings, knob, spelt

OWN_TAG = "lora-runner:experiment"
"""Tag on everything that costs money, so that it can be found in the AWS bill."""


def _bucket_in(text: str) -> str:
    """The bucket that an address names, or else an example."""
    name = text.removeprefix("s3://").removeprefix("arn:aws:s3:::").partition("/")[0]
    return name if re.fullmatch(BUCKET_NAME, name) else "our-models"


BUCKET_NAME = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
BUCKET = spelt(BUCKET_NAME, "the name of a bucket alone", _bucket_in)


def _known_instance(name: str) -> str:
    if fault := instance_fault(name):
        raise ValueError(fault)
    return name


INSTANCE = AfterValidator(_known_instance)


class AwsSettings(Settings):
    """Region, role, image, storage and network of an account."""

    region: str | None = knob(None, min_length=1, doc="AWS region; null takes it from the environment or profile.")
    role: str | None = knob(
        None,
        min_length=1,
        doc="Execution role, which says what SageMaker's containers may do: its ARN or its name (with its path if you "
        "may not ask IAM for it).",
    )
    image: str | None = knob(
        None,
        min_length=1,
        doc="ECR image that containers run; null is the one that `runner.image push` pushed last.",
    )
    bucket: Annotated[str, BUCKET] | None = knob(
        None, doc="S3 bucket for data and results; null is SageMaker's default bucket for the account and region."
    )
    prefix: str = knob("lora-runner", min_length=1, doc="Everything in the bucket is stored under this prefix.")
    subnets: tuple[str, ...] = knob((), doc="Subnets of your VPC; without any, SageMaker's own network is used.")
    security_groups: tuple[str, ...] = knob((), doc="Security groups in that VPC.")
    kms_key: str | None = knob(
        None,
        min_length=1,
        doc="KMS key for volumes and for what is written to S3; an instance's own disks take none.",
    )
    tags: Annotated[dict[str, str], Field(max_length=40)] | None = knob(
        None, doc="Tags on everything that is started, such as `{team: vision}`."
    )

    @field_validator("prefix")
    @classmethod
    def _plain(cls, value: str) -> str:
        # To S3, dots are a name like any other, but a copy on disk would end up outside its folder.
        name = r"(?!\.\.?(/|$))[A-Za-z0-9_.-]+"
        if not re.fullmatch(f"{name}(/{name})*", value):
            raise ValueError("should be names with slashes between, such as team/lora")
        return value

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if bool(self.subnets) != bool(self.security_groups):
            key, other = ("subnets", "security_groups") if self.subnets else ("security_groups", "subnets")
            yield f"{key}: a VPC needs {other} too"
        if OWN_TAG in (self.tags or {}):
            yield f"tags: {OWN_TAG} is set by the runner itself; remove it"

    def network(self) -> dict[str, Any]:
        """The part of a request that describes the VPC, if there is one."""
        if not self.subnets:
            return {}
        return {"VpcConfig": {"Subnets": list(self.subnets), "SecurityGroupIds": list(self.security_groups)}}

    def all_tags(self, experiment: str) -> list[dict[str, str]]:
        """The tags in AWS's format, including our own."""
        return [{"Key": key, "Value": value} for key, value in {**(self.tags or {}), OWN_TAG: experiment}.items()]
