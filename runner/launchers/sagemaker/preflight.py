"""What would keep training jobs from running, found before a cent is spent: all of it, each with its fix.

What may not be asked is passed over: whoever may start training jobs need not be allowed to look at roles and quotas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

from runner.launchers.sagemaker.account import NO_ROLE, Account, NoAccess, code_of, message_of, understood
from runner.schema import SageMakerLauncher

ECR_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/(?P<name>[^:@]+)"
    r"(?::(?P<tag>[^@]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
QUOTAS = "https://console.aws.amazon.com/servicequotas/home/services/sagemaker/quotas"
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
NO_IMAGE = (
    "launcher.image = None: no image was pushed from here yet; python -m runner.image build, then push "
    "(docs/sagemaker.md), or set launcher.image"
)
NEEDED = "credentials, execution role, both policies, bucket, image, quota of the instance type, secrets"


def preflight(settings: SageMakerLauncher, account: Account, image: str | None) -> list[str]:
    """Everything that is wrong, a line each.

    Args:
        image: URI of the image that jobs would run in, if one is known.
    """
    try:
        _ = account.region, account.account_id
    except NoAccess as error:
        return [str(error), *_unnamed(settings, image)]
    checks: list[Callable[[], Iterable[str]]] = [
        lambda: _role(settings, account),
        lambda: _bucket(settings, account),
        lambda: _image(account, image),
        lambda: _quota(settings, account),
        lambda: _secrets(settings, account),
        lambda: _caller(account),
    ]
    with ThreadPoolExecutor(len(checks)) as pool:
        return [fault for faults in pool.map(_asked, checks) for fault in faults]


def _unnamed(settings: SageMakerLauncher, image: str | None) -> Iterable[str]:
    """What the settings leave out, which can be said without asking anybody."""
    if settings.role is None:
        yield NO_ROLE
    if image is None:
        yield NO_IMAGE


def _asked(check: Callable[[], Iterable[str]]) -> list[str]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        with understood("what launcher=sagemaker needs (docs/sagemaker.md)"):
            return list(check())
    except NoAccess as error:
        return [] if str(error).startswith("AWS permissions") else [str(error)]
    except (BotoCoreError, ClientError) as error:
        return [f"AWS: {message_of(error)}"]


def _role(settings: SageMakerLauncher, account: Account) -> Iterable[str]:
    from botocore.exceptions import ClientError

    try:
        arn = account.role_arn
    except NoAccess as error:
        yield str(error)
        return
    key = f"launcher.role = {settings.role!r}"
    name = arn.rpartition("/")[2]
    iam = account.client("iam", attempts=3)
    try:
        role = iam.get_role(RoleName=name)["Role"]
    except ClientError as error:
        if code_of(error) == "NoSuchEntity":
            yield f"{key}: account {account.account_id} has no such role; create it (docs/sagemaker.md), or correct it"
            return
        if "AccessDenied" not in code_of(error):
            raise
    else:
        trust = role["AssumeRolePolicyDocument"]
        text = unquote(trust) if isinstance(trust, str) else json.dumps(trust)
        if "sagemaker.amazonaws.com" not in text:
            yield (
                f"{key}: SageMaker may not take on this role; let its trust policy name the service "
                "sagemaker.amazonaws.com"
            )
    actions = (*EXECUTION, *(["secretsmanager:GetSecretValue"] if settings.wandb_secret or settings.hub_secret else []))
    if denied := _denied(account, arn, actions, settings):
        yield f"{key}: its policy does not allow {', '.join(denied)}; add them (docs/sagemaker.md has the policy)"


def _caller(account: Account) -> Iterable[str]:
    arn = account.caller_arn
    if found := re.fullmatch(r"arn:([\w-]+):sts::(\d+):assumed-role/([^/]+)/.*", arn):
        arn = f"arn:{found[1]}:iam::{found[2]}:role/{found[3]}"
    if denied := _denied(account, arn, SUBMITTER, account.settings):
        yield f"AWS permissions: {arn} may not {', '.join(denied)}; add them to its policy (docs/sagemaker.md)"


def _denied(account: Account, arn: str, actions: Iterable[str], settings: SageMakerLauncher) -> list[str]:
    """The actions that a role or user is not allowed, as far as that may be asked."""
    from botocore.exceptions import ClientError

    bucket = f"arn:{account.caller_arn.split(':')[1]}:s3:::{account.bucket}"
    in_bucket = [action for action in actions if action.startswith("s3:")]
    others = [action for action in actions if not action.startswith("s3:")]
    iam = account.client("iam", attempts=3)
    denied = []
    try:
        for group, resources in ((others, ["*"]), (in_bucket, [bucket, f"{bucket}/{settings.prefix}/x"])):
            answer = iam.simulate_principal_policy(PolicySourceArn=arn, ActionNames=group, ResourceArns=resources)
            allowed = {
                each["EvalActionName"] for each in answer["EvaluationResults"] if each["EvalDecision"] == "allowed"
            }
            denied += [action for action in group if action not in allowed]
    except ClientError:
        return []
    # A policy that allows passing only certain roles is a good one, and is not seen by asking for all.
    return [action for action in denied if action != "iam:PassRole" or len(denied) > 1]


def _bucket(settings: SageMakerLauncher, account: Account) -> Iterable[str]:
    from botocore.exceptions import ClientError

    key = f"launcher.bucket = {settings.bucket!r}"
    try:
        account.client("s3", attempts=3).head_bucket(Bucket=account.bucket)
    except ClientError as error:
        code = code_of(error)
        if code in ("404", "NoSuchBucket"):
            if settings.bucket is not None:
                yield f"{key}: there is no such bucket; create it in {account.region}, or leave launcher.bucket out"
        elif code in ("301", "PermanentRedirect"):
            yield f"{key}: the bucket is in another region than {account.region}; choose one that is there"
        else:
            yield f"{key}: {account.bucket} may not be used ({message_of(error)}); choose another, or ask for access"


def _image(account: Account, image: str | None) -> Iterable[str]:
    from botocore.exceptions import ClientError

    if image is None:
        yield NO_IMAGE
        return
    key = f"launcher.image = {image!r}"
    parts = ECR_IMAGE.fullmatch(image)
    if parts is None:
        registry = f"<account>.dkr.ecr.{account.region}.amazonaws.com"
        yield f"{key}: SageMaker takes images from ECR; write {registry}/<name>:<tag>"
        return
    if parts["region"] != account.region:
        yield f"{key}: is in {parts['region']}, and jobs run in {account.region}; push it there too"
        return
    wanted = {"imageDigest": parts["digest"]} if parts["digest"] else {"imageTag": parts["tag"] or "latest"}
    try:
        ecr = account.client("ecr", attempts=3)
        ecr.describe_images(registryId=parts["account"], repositoryName=parts["name"], imageIds=[wanted])
    except ClientError as error:
        if code_of(error) in ("ImageNotFoundException", "RepositoryNotFoundException"):
            yield f"{key}: there is no such image; python -m runner.image push, or correct it"
        elif "AccessDenied" not in code_of(error):
            raise


def _quota(settings: SageMakerLauncher, account: Account) -> Iterable[str]:
    usage = "spot training job usage" if settings.spot else "training job usage"
    wanted = f"{settings.instance} for {usage}"
    pages = account.client("service-quotas", attempts=3).get_paginator("list_service_quotas")
    for page in pages.paginate(ServiceCode="sagemaker"):
        for quota in page["Quotas"]:
            if quota["QuotaName"] == wanted:
                if quota["Value"] < settings.instances:
                    yield (
                        f"launcher.instance = {settings.instance!r}: the account's quota '{wanted}' is "
                        f"{quota['Value']:.0f}, and {settings.instances} needed; ask for more at {QUOTAS}, or choose "
                        "another type"
                    )
                return


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
