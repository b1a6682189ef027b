"""What would keep training jobs from running, found before a cent is spent: all of it, each with its fix.

What may not be asked is passed over: whoever may start training jobs need not be allowed to look at roles and quotas.
"""

from __future__ import annotations

from collections.abc import Iterable

from runner.aws.account import Account, code_of
from runner.aws.checks import Check, bucket_faults, caller_faults, faults_of, image_faults, quota_faults, role_faults
from runner.schema import SageMakerLauncher

SUBMITTER = (
    "sagemaker:CreateTrainingJob", "sagemaker:DescribeTrainingJob", "sagemaker:ListTrainingJobs",
    "sagemaker:StopTrainingJob", "sagemaker:AddTags", "iam:PassRole", "s3:GetObject", "s3:PutObject", "s3:ListBucket",
    "logs:DescribeLogStreams", "logs:GetLogEvents",
)  # fmt: skip
"""What whoever submits must be allowed."""
EXECUTION = (
    "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket", "ecr:GetAuthorizationToken",
    "ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage", "logs:CreateLogGroup",
    "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams",
)  # fmt: skip
"""What the execution role must be allowed."""
NEEDED = "credentials, execution role, both policies, bucket, image, quota of the instance type, secrets"


def preflight(settings: SageMakerLauncher, account: Account, image: str | None) -> list[str]:
    """Everything that is wrong, a line each.

    Args:
        image: URI of the image that jobs would run in, if one is known.
    """
    secret = ["secretsmanager:GetSecretValue"] if settings.wandb_secret or settings.hub_secret else []
    usage = "spot training job usage" if settings.spot else "training job usage"
    instance = f"launcher.instance = {settings.instance!r}"
    checks: list[Check] = [
        lambda: role_faults(account, [*EXECUTION, *secret]),
        lambda: bucket_faults(account),
        lambda: image_faults(account, image),
        lambda: quota_faults(account, f"{settings.instance} for {usage}", settings.instances, instance),
        lambda: _secrets(settings, account),
        lambda: caller_faults(account, SUBMITTER),
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
