"""What of an AWS account is used: the same for training jobs and for endpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from runner.schema.instances import instance_fault
from runner.schema.knob import Settings, knob, spelt

OWN_TAG = "lora-runner:experiment"
"""Tag of everything that costs money, by which it can be found in AWS's bill."""


def _bucket_in(text: str) -> str:
    """The part of an address that names a bucket, or else an example."""
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
    """Region, role, image and places of an account."""

    region: str | None = knob(None, min_length=1, doc="AWS region; null is that of the environment or profile.")
    role: str | None = knob(
        None,
        min_length=1,
        doc="Execution role, what SageMaker's containers may do: its ARN or its name, with its path where you may not "
        "ask IAM for it.",
    )
    image: str | None = knob(
        None,
        min_length=1,
        doc="Image in ECR that containers run; null is the last one that `runner.image push` has left.",
    )
    bucket: Annotated[str, BUCKET] | None = knob(
        None, doc="S3 bucket for data and results; null is SageMaker's own for the account and region."
    )
    prefix: str = knob("lora-runner", min_length=1, doc="Everything in the bucket lies below this.")
    subnets: tuple[str, ...] = knob((), doc="Subnets of your VPC; none is SageMaker's own network.")
    security_groups: tuple[str, ...] = knob((), doc="Security groups in that VPC.")
    kms_key: str | None = knob(
        None,
        min_length=1,
        doc="KMS key for what is written to S3 and for volumes; disks of an instance's own take none.",
    )
    tags: Annotated[dict[str, str], Field(max_length=40)] | None = knob(
        None, doc="Tags of everything that is started, such as `{team: vision}`."
    )

    @field_validator("prefix")
    @classmethod
    def _plain(cls, value: str) -> str:
        # To S3 dots are a name like any other, but a copy on a disk would leave its folder.
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
        """What a request says of the VPC, if there is one."""
        if not self.subnets:
            return {}
        return {"VpcConfig": {"Subnets": list(self.subnets), "SecurityGroupIds": list(self.security_groups)}}

    def all_tags(self, experiment: str) -> list[dict[str, str]]:
        """The tags as AWS takes them, with our own."""
        return [{"Key": key, "Value": value} for key, value in {**(self.tags or {}), OWN_TAG: experiment}.items()]
