"""The AWS account that the stand-in plays: what it may do, what it contains, what that costs."""

from __future__ import annotations

import dataclasses
import json
import threading
from typing import Any

from .capacity import Capacity
from .images import Images
from .instances import InstanceType
from .permissions import Permissions
from .platform import ACCOUNT, Platform
from .pricing import PriceList
from .protocol import ServiceError
from .quotas import Quotas


@dataclasses.dataclass
class Account:
    """Everything shared by training jobs, tuning jobs and endpoints."""

    platform: Platform
    permissions: Permissions
    instances: dict[str, InstanceType]
    quotas: Quotas
    prices: PriceList
    capacity: Capacity
    images: Images
    faults: list[str]
    """Tracebacks of the stand-in's own errors."""
    tags: dict[str, list[dict[str, str]]] = dataclasses.field(default_factory=dict)
    """Tags, by the ARN of what has them."""
    lock: Any = dataclasses.field(default_factory=threading.RLock)
    """Held while something is created, so that names and quotas are counted once."""

    def arn(self, kind: str, name: str) -> str:
        """The ARN of a SageMaker resource."""
        return f"arn:aws:sagemaker:{self.platform.settings.region}:{ACCOUNT}:{kind}/{name}"

    def require_role(self, role_arn: str) -> None:
        """Refuse a role that the caller may not pass, or that SageMaker may not assume.

        Raises:
            ServiceError: AccessDeniedException or ValidationException.
        """
        self.permissions.require("iam:PassRole", resource=role_arn)
        iam = self.platform.iam
        try:
            role = iam.get_role(RoleName=role_arn.rpartition("/")[2])["Role"]
        except iam.exceptions.NoSuchEntityException:
            role = None
        trusted = (
            role is not None
            and role["Arn"] == role_arn
            and "sagemaker.amazonaws.com" in json.dumps(role["AssumeRolePolicyDocument"])
        )
        if not trusted:
            message = (
                f"Could not assume role {role_arn}. Please ensure that the role exists and allows principal "
                "'sagemaker.amazonaws.com' to assume the role."
            )
            raise ServiceError("ValidationException", message)

    def require_image(self, uri: str, role_arn: str) -> None:
        """Refuse an image that does not exist, or that the role may not pull."""
        self.images.require(uri, role_arn, self.permissions.allows("ecr:BatchGetImage", role_arn.rpartition("/")[2]))

    def instance(self, instance_type: str) -> InstanceType:
        """The hardware of an instance type."""
        if instance_type not in self.instances:
            message = f"The stand-in knows no {instance_type}: `instances[...] = InstanceType(...)` adds one."
            raise ServiceError("ValidationException", message)
        return self.instances[instance_type]

    @property
    def tag_operations(self) -> dict[str, Any]:
        """Operations on the tags of anything with an ARN."""
        return {"AddTags": self._add_tags, "ListTags": self._list_tags, "DeleteTags": self._delete_tags}

    def _add_tags(self, parameters: dict[str, Any], call: Any) -> dict[str, Any]:
        tags = {tag["Key"]: tag for tag in [*self._tags(parameters), *parameters["Tags"]]}
        if len(tags) > 50:
            raise ServiceError("ResourceLimitExceeded", "The resource has more than 50 tags.")
        self.tags[parameters["ResourceArn"]] = list(tags.values())
        return {"Tags": list(tags.values())}

    def _list_tags(self, parameters: dict[str, Any], call: Any) -> dict[str, Any]:
        return {"Tags": self._tags(parameters)}

    def _delete_tags(self, parameters: dict[str, Any], call: Any) -> dict[str, Any]:
        kept = [tag for tag in self._tags(parameters) if tag["Key"] not in parameters["TagKeys"]]
        self.tags[parameters["ResourceArn"]] = kept
        return {}

    def _tags(self, parameters: dict[str, Any]) -> list[dict[str, str]]:
        if parameters["ResourceArn"] not in self.tags:
            raise ServiceError("ValidationException", "Requested resource not found.")
        return self.tags[parameters["ResourceArn"]]
