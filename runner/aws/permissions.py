"""Asks IAM's simulation what a role or user may do, and on what: resources of each kind in this account and region.

The simulation takes a resource literally, and "*" as all resources, for which a policy limited to the training jobs of
one region allows nothing. So each action is simulated on a resource of its own kind; "*" is for actions without kinds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from runner.aws.account import Account
from runner.aws.image import ECR_IMAGE

Kind = Literal[
    "any", "training-job", "hyper-parameter-tuning-job", "model", "endpoint-config", "endpoint", "role", "bucket",
    "objects", "repository", "logs", "secrets", "key", "volume-key",
]  # fmt: skip
Actions = Mapping[Kind, tuple[str, ...]]
"""Actions by the kind of resource that they apply to."""
NAMED = "x"
"""Placeholder for the name of something that does not exist yet."""


@dataclasses.dataclass(frozen=True)
class Things:
    """The resources that containers use, as far as they are known."""

    log_group: str = NAMED
    """The group that SageMaker writes to."""
    image: str | None = None
    """Its URI."""
    secrets: Sequence[str] = ()
    """Names or ARNs."""
    name: str = NAMED
    """The name of what is started in SageMaker."""
    key: str | None = None
    """The KMS key, by its id, ARN or alias."""
    key_for_volumes: bool = False
    """Whether the key also encrypts the volumes of instances."""


def denied(account: Account, who: str, actions: Actions, things: Things) -> list[str]:
    """Actions that a role or user is not allowed, and on what, as far as the caller may simulate it.

    Args:
        who: ARN of the role or user.
    """
    from botocore.exceptions import ClientError

    iam = account.client("iam", attempts=3)
    found = []
    for arn, asked in _by_arn(account, actions, things).items():
        # Roles are passed to one service, and good policies are limited to it.
        passed = {"ContextKeyName": "iam:PassedToService", "ContextKeyType": "string"}
        context = [passed | {"ContextKeyValues": ["sagemaker.amazonaws.com"]}] if "iam:PassRole" in asked else []
        try:
            # One resource at a time, so that each action has one answer.
            answer = iam.simulate_principal_policy(
                PolicySourceArn=who, ActionNames=asked, ResourceArns=[arn], ContextEntries=context
            )
        except ClientError:
            continue
        if arn.split(":")[2:3] == ["kms"] and _lets_in(account, arn, who):
            continue
        allowed = {each["EvalActionName"] for each in answer["EvaluationResults"] if each["EvalDecision"] == "allowed"}
        if refused := [action for action in asked if action not in allowed]:
            found.append(", ".join(refused) + ("" if arn == "*" else f" on {arn}"))
    return found


def _by_arn(account: Account, actions: Actions, things: Things) -> dict[str, list[str]]:
    asked: dict[str, list[str]] = {}
    for kind, of_kind in actions.items():
        for arn in _arns(account, kind, things):
            asked.setdefault(arn, []).extend(of_kind)
    return asked


def _arns(account: Account, kind: Kind, things: Things) -> Iterator[str]:
    """Resources of a kind, in the form used in docs/policies; none if not enough is known to name one."""
    partition, here = account.caller_arn.split(":")[1], f"{account.region}:{account.account_id}"
    match kind:
        case "any":
            yield "*"
        case "training-job" | "hyper-parameter-tuning-job" | "endpoint":
            yield f"arn:{partition}:sagemaker:{here}:{kind}/{things.name}"
        case "model" | "endpoint-config":
            yield f"arn:{partition}:sagemaker:{here}:{kind}/{things.name}-{NAMED}"
        case "bucket":
            yield f"arn:{partition}:s3:::{account.bucket}"
        case "objects":
            yield f"arn:{partition}:s3:::{account.bucket}/{account.settings.prefix}/{NAMED}"
        case "logs":
            # Asking about a stream covers actions on the whole group: policies have `:*` after the group.
            yield f"arn:{partition}:logs:{here}:log-group:{things.log_group}:log-stream:{NAMED}"
        case "repository":
            if things.image is not None and (image := ECR_IMAGE.fullmatch(things.image)):
                yield f"arn:{partition}:ecr:{image['region']}:{image['account']}:repository/{image['name']}"
        case "role":
            if account.settings.role is not None:
                yield account.role_arn
        case "secrets":
            for secret in things.secrets:
                yield _secret_arn(account, secret, f"arn:{partition}:secretsmanager:{here}")
        case "key" | "volume-key":
            if things.key and (kind == "key" or things.key_for_volumes) and (key := _key_arn(account, things.key)):
                yield key


def _key_arn(account: Account, key: str) -> str | None:
    """The ARN of a key, by which policies name it; None if the key cannot be looked up."""
    from botocore.exceptions import ClientError

    if ":key/" in key:
        return key
    try:
        return str(account.client("kms", attempts=3).describe_key(KeyId=key)["KeyMetadata"]["Arn"])
    except ClientError:
        return None


def _lets_in(account: Account, key: str, who: str) -> bool:
    """Whether a key's own policy names `who`, who then needs no policy for it; also true if it may not be read."""
    from botocore.exceptions import ClientError

    try:
        policy = account.client("kms", attempts=3).get_key_policy(KeyId=key, PolicyName="default")["Policy"]
    except ClientError:
        return True
    named = [each.get("Principal") for each in json.loads(policy)["Statement"] if each["Effect"] == "Allow"]
    return any(f'"{each}"' in json.dumps(named) for each in (who, "*"))


def _secret_arn(account: Account, secret: str, here: str) -> str:
    """A secret's ARN, which ends in letters chosen by AWS; one of that form if it may not be looked up."""
    from botocore.exceptions import ClientError

    if secret.startswith("arn:"):
        return secret
    try:
        return str(account.client("secretsmanager", attempts=3).describe_secret(SecretId=secret)["ARN"])
    except ClientError:
        return f"{here}:secret:{secret}-AbCdEf"
