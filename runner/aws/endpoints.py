"""Real-time endpoints: the model, the configuration and the endpoint are created and removed together.

Every model and configuration is named after its endpoint, plus a hash; so all of them can be found again, and nothing
is created twice. All have our tag, and nothing without it is changed or removed.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from runner.aws.account import Account, code_of
from runner.errors import AwsError, Interrupted
from runner.s3 import Location
from runner.schema.aws import OWN_TAG
from runner.schema.tasks.deploy import EndpointSettings

log = logging.getLogger(__name__)

VARIANT = "main"
BASE_CHANNEL = "base"
BASE_PATH = f"/opt/ml/additional-model-data-sources/{BASE_CHANNEL}"
"""Where a container finds a base model that is sent along with the adapters."""
DIMENSION = "sagemaker:variant:DesiredInstanceCount"
METRIC = "SageMakerVariantInvocationsPerInstance"
POLICY = "requests"
DOWNLOAD_TIMEOUT_S = 3600
STOP_S = 0.5
"""How long a stop may have to wait."""
MISSING = ("ValidationException", "ResourceNotFound", "ObjectNotFoundException")
"""Error codes for what does not exist: SageMaker reports it as a ValidationException."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """An endpoint as it should be."""

    name: str
    key: str
    """Hash of everything that matters, in the names of models and configurations."""
    image: str
    role_arn: str
    adapters: Location
    """Folder with the container's settings and the adapters."""
    base: Location | None
    """Folder with the base model, if the container does not fetch it itself."""
    environment: Mapping[str, str]

    @property
    def full_name(self) -> str:
        """The name of its model and its configuration."""
        return f"{self.name}-{self.key}"


def model_request(wanted: Wanted, settings: EndpointSettings, *, experiment: str) -> dict[str, Any]:
    """The arguments for `create_model`."""
    container: dict[str, Any] = {
        "Image": wanted.image,
        "ModelDataSource": {"S3DataSource": _source(wanted.adapters)},
        "Environment": dict(wanted.environment),
    }
    if wanted.base is not None:
        container["AdditionalModelDataSources"] = [{"ChannelName": BASE_CHANNEL, "S3DataSource": _source(wanted.base)}]
    request = {
        "ModelName": wanted.full_name,
        "ExecutionRoleArn": wanted.role_arn,
        "PrimaryContainer": container,
        "Tags": settings.all_tags(experiment),
    }
    return request | settings.network()


def _source(place: Location) -> dict[str, str]:
    return {"S3Uri": place.uri, "S3DataType": "S3Prefix", "CompressionType": "None"}


def config_request(wanted: Wanted, settings: EndpointSettings, *, experiment: str) -> dict[str, Any]:
    """The arguments for `create_endpoint_config`."""
    variant = {
        "VariantName": VARIANT,
        "ModelName": wanted.full_name,
        "InitialInstanceCount": settings.instances,
        "InstanceType": settings.instance,
        "InitialVariantWeight": 1.0,
        "ModelDataDownloadTimeoutInSeconds": DOWNLOAD_TIMEOUT_S,
        "ContainerStartupHealthCheckTimeoutInSeconds": settings.startup_timeout_s,
    }
    request: dict[str, Any] = {
        "EndpointConfigName": wanted.full_name,
        "ProductionVariants": [variant],
        "Tags": settings.all_tags(experiment),
    }
    return request | ({"KmsKeyId": settings.kms_key} if settings.kms_key else {})


def log_group(name: str) -> str:
    """The CloudWatch log group with the output of an endpoint's containers."""
    return f"/aws/sagemaker/Endpoints/{name}"


def _config_to_be(known: Mapping[str, Any]) -> str:
    """The configuration that a described endpoint has, or is being updated to: until then it names the old one."""
    pending: Mapping[str, Any] = known.get("PendingDeploymentSummary") or {}
    return str(pending.get("EndpointConfigName") or known["EndpointConfigName"])


class Endpoints:
    """The endpoints of an account."""

    def __init__(self, account: Account) -> None:
        self.account, self.client = account, account.sagemaker

    # --- making ---

    def make(self, wanted: Wanted, settings: EndpointSettings, *, experiment: str) -> None:
        """Create the endpoint, or update an existing one of that name; parts that are already right are left alone.

        Raises:
            AwsError: the endpoint of that name is not ours, or is being changed to something else.
        """
        client = self.client
        self._refuse_foreign(wanted.name)
        if self._described("model", wanted.full_name) is None:
            client.create_model(**model_request(wanted, settings, experiment=experiment))
        if self._described("endpoint_config", wanted.full_name) is None:
            client.create_endpoint_config(**config_request(wanted, settings, experiment=experiment))
        known = self._described("endpoint", wanted.name)
        if known is not None and known["EndpointStatus"] == "Failed":
            log.info("endpoint %s had failed: removing it and creating it again", wanted.name)
            self._delete_endpoint(wanted.name, poll_s=settings.poll_s)
            known = None
        if known is None:
            tags = settings.all_tags(experiment)
            client.create_endpoint(EndpointName=wanted.name, EndpointConfigName=wanted.full_name, Tags=tags)
        elif (config := _config_to_be(known)) != wanted.full_name:
            if (status := known["EndpointStatus"]) != "InService":
                raise AwsError(
                    f"endpoint {wanted.name} is {status} at this moment, with {config}; the same command tries again "
                    "when that is over"
                )
            log.info("endpoint %s already exists: updating it to the new configuration without downtime", wanted.name)
            if self._instance_of(config) != settings.instance:
                # SageMaker refuses another instance type while autoscaling is on; `scale` sets the limits again.
                self._unscale(wanted.name)
            client.update_endpoint(EndpointName=wanted.name, EndpointConfigName=wanted.full_name)

    def wait(self, wanted: Wanted, *, poll_s: float, stop: Callable[[], bool]) -> None:
        """Wait until the endpoint is in service as wanted.

        Raises:
            AwsError: it failed, or SageMaker rolled it back; with SageMaker's reason.
            Interrupted: a signal asked to stop; the endpoint continues to start.
        """
        name, said = wanted.name, ""
        while True:
            known = self._described("endpoint", name)
            status = "missing" if known is None else known["EndpointStatus"]
            if status != said:
                log.info("endpoint %s: %s", name, status)
            said = status
            if known is not None and status == "InService":
                if (config := known["EndpointConfigName"]) == wanted.full_name:
                    return
                reason = known.get("FailureReason") or "somebody else has changed it"
                raise AwsError(
                    f"endpoint {name} is in service with {config} and not with {wanted.full_name}: {reason}; the same "
                    "command tries it again"
                )
            if known is None or status in ("Failed", "OutOfService", "Deleting", "UpdateRollbackFailed"):
                reason = "it is gone" if known is None else known.get("FailureReason") or status
                group = log_group(name)
                raise AwsError(f"endpoint {name} is not in service: {reason}; its logs are in {group} (CloudWatch)")
            next_look_s = time.monotonic() + poll_s
            while (left_s := next_look_s - time.monotonic()) > 0:
                if stop():
                    raise Interrupted(f"endpoint {name} goes on starting; the same command waits for it again")
                time.sleep(min(left_s, STOP_S))

    def scale(self, name: str, settings: EndpointSettings) -> None:
        """Set or remove the limits of autoscaling."""
        client, resource = self._scaling, _resource(name)
        if settings.max_instances is None:
            self._unscale(name)
            return
        client.register_scalable_target(
            ServiceNamespace="sagemaker",
            ResourceId=resource,
            ScalableDimension=DIMENSION,
            MinCapacity=settings.instances,
            MaxCapacity=settings.max_instances,
        )
        client.put_scaling_policy(
            PolicyName=POLICY,
            ServiceNamespace="sagemaker",
            ResourceId=resource,
            ScalableDimension=DIMENSION,
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration={
                "TargetValue": settings.requests_per_instance,
                "PredefinedMetricSpecification": {"PredefinedMetricType": METRIC},
            },
        )

    # --- removing ---

    def remove(self, name: str, *, poll_s: float) -> list[str]:
        """Remove the endpoint with all its configurations and models that are ours; returns what was removed, in words.

        Raises:
            AwsError: the endpoint of that name is not ours; nothing is removed.
        """
        self._refuse_foreign(name)
        removed = [f"autoscaling of {name}"] if self._unscale(name) else []
        known = self._described("endpoint", name)
        configs = {known["EndpointConfigName"]} if known is not None else set()
        configs |= self._named("endpoint_configs", "EndpointConfigs", "EndpointConfigName", name)
        models = self._named("models", "Models", "ModelName", name)
        if known is not None:
            self._delete_endpoint(name, poll_s=poll_s)
            removed.append(f"endpoint {name}")
        for config in sorted(configs):
            about = self._described("endpoint_config", config)
            if about is not None and self._is_ours(about["EndpointConfigArn"]):
                models |= {variant["ModelName"] for variant in about["ProductionVariants"]}
                self.client.delete_endpoint_config(EndpointConfigName=config)
                removed.append(f"configuration {config}")
        for model in sorted(models):
            known_model = self._described("model", model)
            if known_model is not None and self._is_ours(known_model["ModelArn"]):
                self.client.delete_model(ModelName=model)
                removed.append(f"model {model}")
        return removed

    def foreign_fault(self, name: str) -> str | None:
        """Why an endpoint of that name is left alone; None if it is ours, or if there is none."""
        known = self._described("endpoint", name)
        if known is None or self._is_ours(known["EndpointArn"]):
            return None
        return (
            f"endpoint.name = {name!r}: an endpoint of that name is in {self.account.region} and was not made by "
            f"task=deploy (it has no tag {OWN_TAG}), so it is left as it is; give another name"
        )

    def _delete_endpoint(self, name: str, *, poll_s: float) -> None:
        self.client.delete_endpoint(EndpointName=name)
        while self._described("endpoint", name) is not None:
            time.sleep(min(poll_s, 5.0))

    def _unscale(self, name: str) -> bool:
        from botocore.exceptions import ClientError

        target = {"ServiceNamespace": "sagemaker", "ResourceId": _resource(name), "ScalableDimension": DIMENSION}
        try:
            self._scaling.deregister_scalable_target(**target)
        except ClientError as error:
            if code_of(error) in MISSING:
                return False
            raise
        return True

    def _described(self, kind: str, name: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        key = "".join(word.title() for word in kind.split("_")) + "Name"
        try:
            return dict(getattr(self.client, f"describe_{kind}")(**{key: name}))
        except ClientError as error:
            # The code also covers every other fault of a request, but this request has none.
            if code_of(error) in MISSING:
                return None
            raise

    def _instance_of(self, config: str) -> str | None:
        """The instance type of a configuration; None if somebody has removed it."""
        about = self._described("endpoint_config", config)
        return None if about is None else str(about["ProductionVariants"][0].get("InstanceType"))

    def _refuse_foreign(self, name: str) -> None:
        if fault := self.foreign_fault(name):
            raise AwsError(fault)

    def _is_ours(self, arn: str) -> bool:
        return any(tag["Key"] == OWN_TAG for tag in self.client.list_tags(ResourceArn=arn)["Tags"])

    def _named(self, listing: str, field: str, key: str, name: str) -> set[str]:
        """Models or configurations that an endpoint of this name may have had: its name, a dash and a hash."""
        pages = self.client.get_paginator(f"list_{listing}").paginate(NameContains=name)
        names = [str(each[key]) for page in pages for each in page[field]]
        return {each for each in names if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{8}}", each)}

    @property
    def _scaling(self) -> Any:
        return self.account.client("application-autoscaling")


def _resource(name: str) -> str:
    return f"endpoint/{name}/variant/{VARIANT}"
