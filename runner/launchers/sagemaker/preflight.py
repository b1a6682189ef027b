"""Everything that would keep training jobs from running, found before a cent is spent, each with its fix.

What may not be queried is skipped: a user who may start training jobs need not be allowed to read roles and quotas.
"""

from __future__ import annotations

from collections.abc import Iterable

from runner.aws.account import Account, code_of
from runner.aws.checks import (
    Check,
    bucket_faults,
    caller_faults,
    faults_of,
    image_faults,
    key_faults,
    quota_faults,
    role_faults,
)
from runner.aws.permissions import Actions, Things
from runner.launchers.sagemaker.logs import GROUP
from runner.schema import SageMakerLauncher
from runner.schema.instances import INSTANCES

SUBMITTER: Actions = {
    "training-job": (
        "sagemaker:CreateTrainingJob", "sagemaker:DescribeTrainingJob", "sagemaker:StopTrainingJob",
        "sagemaker:AddTags",
    ),
    "any": ("sagemaker:ListTrainingJobs",),
    "role": ("iam:PassRole",),
    "objects": ("s3:GetObject", "s3:PutObject"),
    "bucket": ("s3:ListBucket",),
    "logs": ("logs:DescribeLogStreams", "logs:GetLogEvents"),
    "key": ("kms:Decrypt", "kms:GenerateDataKey"),
    "volume-key": ("kms:CreateGrant",),
}  # fmt: skip
"""The permissions that the submitting user needs."""
EXECUTION: Actions = {
    "objects": ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"),
    "bucket": ("s3:ListBucket",),
    "any": ("ecr:GetAuthorizationToken",),
    "repository": ("ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"),
    "logs": ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"),
    "secrets": ("secretsmanager:GetSecretValue",),
    "key": ("kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"),
}
"""The permissions that the execution role needs."""
NEEDED = "credentials, execution role, both policies, bucket, image, quota of the instance type, key, secrets"


def preflight(settings: SageMakerLauncher, account: Account, image: str | None) -> list[str]:
    """Everything that is wrong, one fault per line.

    Args:
        image: URI of the image that jobs would run in, if known.
    """
    secrets = [secret for secret in (settings.wandb_secret, settings.hub_secret) if secret]
    volumes = not INSTANCES[settings.instance].has_disks
    things = Things(GROUP, image, secrets, key=settings.kms_key, key_for_volumes=volumes)
    usage = "spot training job usage" if settings.spot else "training job usage"
    instance = f"launcher.instance = {settings.instance!r}"
    checks: list[Check] = [
        lambda: role_faults(account, EXECUTION, things),
        lambda: bucket_faults(account),
        lambda: image_faults(account, image),
        lambda: quota_faults(account, f"{settings.instance} for {usage}", settings.instances, instance),
        lambda: key_faults(account, named_exactly=volumes),
        lambda: _secrets(settings, account),
        lambda: caller_faults(account, SUBMITTER, things),
    ]
    return faults_of(account, image, checks)


def _secrets(settings: SageMakerLauncher, account: Account) -> Iterable[str]:
    from botocore.exceptions import ClientError

    for key in ("wandb_secret", "hub_secret"):
        secret = getattr(settings, key)
        if secret is None:
            continue
        try:
            account.client("secretsmanager", attempts=3).describe_secret(SecretId=secret)
        except ClientError as error:
            if code_of(error) == "ResourceNotFoundException":
                yield f"launcher.{key} = {secret!r}: Secrets Manager has no such secret in {account.region}; create it"
            elif "AccessDenied" not in code_of(error):
                raise
