"""How many instances of a type the account may use at once, by purpose; Service Quotas reports the limits."""

from __future__ import annotations

import hashlib
from typing import Any

from .calls import Call
from .protocol import ServiceError, page_of

USAGES = {
    "training": "training job usage",
    "spot": "spot training job usage",
    "warm_pool": "training warm pool usage",
    "endpoint": "endpoint usage",
}
DEFAULTS = {"training": 20, "spot": 20, "warm_pool": 0, "endpoint": 20}
RESOURCES = {"training": "training-job", "spot": "training-job", "warm_pool": "warm-pool", "endpoint": "endpoint"}


class Quotas:
    """Limits of the account, and how much of them others in it use."""

    def __init__(self, instance_types: dict[str, Any]) -> None:
        self.instance_types = instance_types
        self._limits: dict[tuple[str, str], int] = {}
        self._used: dict[tuple[str, str], int] = {}

    def set(self, instance_type: str, used: int = 0, **limits: int) -> None:
        """Set the limits of a type, such as `training=2, spot=4`; others use `used` of each."""
        for usage, limit in limits.items():
            assert usage in USAGES, usage
            self._limits[instance_type, usage] = limit
            self._used[instance_type, usage] = used

    def limit(self, instance_type: str, usage: str) -> int:
        """How many instances may be used at once."""
        return self._limits.get((instance_type, usage), DEFAULTS[usage])

    def take(self, instance_type: str, usage: str, count: int, running: int) -> None:
        """Refuse `count` more instances if they do not fit beside the running ones.

        Raises:
            ServiceError: ResourceLimitExceeded, with AWS's sentence.
        """
        limit = self.limit(instance_type, usage)
        used = running + self._used.get((instance_type, usage), 0)
        if used + count > limit:
            name = f"{instance_type} for {USAGES[usage]}"
            message = (
                f"The account-level service limit '{name}' is {limit} Instances, with current utilization of {used} "
                f"Instances and a request delta of {count} Instances. Please use AWS Service Quotas to request an "
                "increase for this quota. If AWS Service Quotas is not available, contact AWS support to request an "
                "increase for this quota."
            )
            raise ServiceError("ResourceLimitExceeded", message)

    @property
    def operations(self) -> dict[str, Any]:
        """The operations of Service Quotas."""
        return {
            "GetServiceQuota": lambda parameters, call: self._get(parameters, call, self.limit),
            "GetAWSDefaultServiceQuota": lambda parameters, call: self._get(parameters, call, _default),
            "ListServiceQuotas": lambda parameters, call: self._list(parameters, call, self.limit),
            "ListAWSDefaultServiceQuotas": lambda parameters, call: self._list(parameters, call, _default),
        }

    def _get(self, parameters: dict[str, Any], call: Call, limit: Any) -> dict[str, Any]:
        for quota in self._all(parameters, call, limit):
            if quota["QuotaCode"] == parameters["QuotaCode"]:
                return {"Quota": quota}
        raise ServiceError(
            "NoSuchResourceException", "The request failed because the specified service does not exist."
        )

    def _list(self, parameters: dict[str, Any], call: Call, limit: Any) -> dict[str, Any]:
        quotas, token = page_of(self._all(parameters, call, limit), parameters, default=100)
        return {"Quotas": quotas, "NextToken": token}

    def _all(self, parameters: dict[str, Any], call: Call, limit: Any) -> list[dict[str, Any]]:
        if parameters["ServiceCode"] != "sagemaker":
            message = "The request failed because the specified service does not exist."
            raise ServiceError("NoSuchResourceException", message)
        return [
            _quota(instance_type, usage, limit(instance_type, usage), call.region)
            for instance_type in sorted({*self.instance_types, *(name for name, _ in self._limits)})
            for usage in USAGES
        ]


def _default(instance_type: str, usage: str) -> int:
    return DEFAULTS[usage]


def quota_code(instance_type: str, usage: str) -> str:
    """A code in the format of AWS's codes, but not one of theirs."""
    return f"L-{hashlib.sha256(f'{instance_type} {usage}'.encode()).hexdigest()[:8].upper()}"


def _quota(instance_type: str, usage: str, limit: int, region: str) -> dict[str, Any]:
    code = quota_code(instance_type, usage)
    resource = f"{RESOURCES[usage]}/{instance_type}"
    dimensions = {"Class": "None", "Resource": resource, "Service": "SageMaker", "Type": "Resource"}
    return {
        "ServiceCode": "sagemaker",
        "ServiceName": "Amazon SageMaker",
        "QuotaArn": f"arn:aws:servicequotas:{region}:123456789012:sagemaker/{code}",
        "QuotaCode": code,
        "QuotaName": f"{instance_type} for {USAGES[usage]}",
        "Value": float(limit),
        "Unit": "None",
        "Adjustable": True,
        "GlobalQuota": False,
        "UsageMetric": {
            "MetricNamespace": "AWS/Usage",
            "MetricName": "ResourceCount",
            "MetricDimensions": dimensions,
            "MetricStatisticRecommendation": "Maximum",
        },
    }
