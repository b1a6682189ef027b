"""Finds what in an account would keep containers from running, each with its fix, before a cent is spent.

Checks that are not permitted are skipped: a user who may start something need not be allowed to view roles and quotas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

from runner.aws.account import NO_BUCKET, Account, NoAccess, code_of, message_of, no_role, understood
from runner.aws.image import ECR_IMAGE
from runner.aws.permissions import Actions, Things, denied
from runner.errors import AwsError
from runner.s3.access import bucket_region
from runner.system.values import as_typed

OCI = "application/vnd.oci."
"""Prefix of the Open Container Initiative's media types."""
QUOTAS = "https://console.aws.amazon.com/servicequotas/home/services/sagemaker/quotas"

Check = Callable[[], Iterable[str]]


def faults_of(account: Account, image: str | None, checks: Sequence[Check]) -> list[str]:
    """All faults that the checks find, one per line; the checks run concurrently.

    Args:
        image: URI of the image that containers would run, if known.
    """
    try:
        _ = account.region, account.account_id
    except NoAccess as error:
        unnamed = [no_role(account.section)] if account.settings.role is None else []
        return [str(error), *unnamed, *([no_image(account.section)] if image is None else [])]
    with ThreadPoolExecutor(len(checks)) as pool:
        return [fault for faults in pool.map(_asked, checks) for fault in faults]


def no_image(section: str) -> str:
    """The message if no image is known."""
    return (
        f"{section}.image = null: no image was pushed from here yet; python -m runner.image build, then push "
        f"(docs/sagemaker.md), or set {section}.image"
    )


def _asked(check: Check) -> list[str]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        with understood("what SageMaker needs (docs/sagemaker.md)"):
            return list(check())
    except NoAccess as error:
        return [] if str(error).startswith("AWS permissions") else [str(error)]
    except (BotoCoreError, ClientError) as error:
        return [f"AWS: {message_of(error)}"]


def caller_faults(account: Account, actions: Actions, things: Things) -> Iterable[str]:
    """Faults of the caller, who must be allowed these actions."""
    arn = _caller(account)
    if refused := denied(account, arn, actions, things):
        yield f"AWS permissions: {arn} may not {', nor '.join(refused)}; add them to its policy (docs/sagemaker.md)"


def _caller(account: Account) -> str:
    """The ARN that has the policies: for a session, that of its role."""
    arn = account.caller_arn
    if found := re.fullmatch(r"arn:([\w-]+):sts::(\d+):assumed-role/([^/]+)/.*", arn):
        return f"arn:{found[1]}:iam::{found[2]}:role/{found[3]}"
    return arn


def quota_faults(account: Account, wanted: str, needed: int, key: str) -> Iterable[str]:
    """Faults of the quota named `wanted`, which must be at least `needed`.

    Args:
        key: the setting that needs it, with its value.
    """
    pages = account.client("service-quotas", attempts=3).get_paginator("list_service_quotas")
    for page in pages.paginate(ServiceCode="sagemaker"):
        for quota in page["Quotas"]:
            if quota["QuotaName"] == wanted:
                if quota["Value"] < needed:
                    yield (
                        f"{key}: the account's quota '{wanted}' is {quota['Value']:.0f}, and {needed} needed; ask for "
                        f"more at {QUOTAS}, or choose another type"
                    )
                return


def role_faults(account: Account, actions: Actions, things: Things) -> Iterable[str]:
    """Faults of the execution role, which must be allowed these actions."""
    from botocore.exceptions import ClientError

    try:
        arn = account.role_arn
    except NoAccess as error:
        yield str(error)
        return
    key = f"{account.section}.role = {as_typed(account.settings.role)}"
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
                f"{key}: SageMaker may not assume this role; let its trust policy name the service "
                "sagemaker.amazonaws.com"
            )
    if refused := denied(account, arn, actions, things):
        yield f"{key}: its policy does not allow {', nor '.join(refused)}; add them (docs/sagemaker.md has the policy)"


def bucket_faults(account: Account) -> Iterable[str]:
    """Faults of the bucket."""
    from botocore.exceptions import ClientError

    key = f"{account.section}.bucket = {as_typed(account.settings.bucket)}"
    try:
        answer = account.look_at_bucket(account.client("s3", attempts=3))
    except AwsError as error:
        yield str(error)
        return
    except ClientError as error:
        code = code_of(error)
        if code in NO_BUCKET:
            if account.settings.bucket is None:
                yield from _making_faults(account)
            else:
                yield (
                    f"{key}: there is no such bucket; create it in {account.region}, or leave "
                    f"{account.section}.bucket out"
                )
        else:
            yield f"{key}: {account.bucket} may not be used ({message_of(error)}); choose another, or ask for access"
        return
    if (region := bucket_region(answer)) not in (None, account.region):
        yield (
            f"{key}: {account.bucket} is in {region}, and jobs run in {account.region}; choose a bucket that is there, "
            f"or set {account.section}.region={region}"
        )


def _making_faults(account: Account) -> Iterable[str]:
    """Faults of SageMaker's own bucket if it has to be created."""
    arn = _caller(account)
    if refused := denied(account, arn, {"bucket": ("s3:CreateBucket",)}, Things()):
        yield (
            f"{account.section}.bucket = null: there is no {account.bucket} yet, and {arn} may not {refused[0]}; add "
            f"that to its policy (docs/sagemaker.md), or set {account.section}.bucket to an existing one"
        )


def image_faults(account: Account, image: str | None, *, served: bool = False) -> Iterable[str]:
    """Faults of the image, which must be in ECR, in the same region.

    Args:
        served: it is for an endpoint, which accepts fewer image types than a training job.
    """
    from botocore.exceptions import ClientError

    if image is None:
        yield no_image(account.section)
        return
    key = f"{account.section}.image = {image!r}"
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
        answer = ecr.describe_images(registryId=parts["account"], repositoryName=parts["name"], imageIds=[wanted])
    except ClientError as error:
        if code_of(error) in ("ImageNotFoundException", "RepositoryNotFoundException"):
            yield f"{key}: there is no such image; python -m runner.image push, or correct it"
        elif "AccessDenied" not in code_of(error):
            raise
        return
    kind = answer["imageDetails"][0].get("imageManifestMediaType", "")
    if served and kind.startswith(OCI):
        yield (
            f"{key}: has the type {kind}, and endpoints accept Docker's only; build it anew with python -m "
            "runner.image build --tag NEW, then push --tag NEW (an existing tag is not moved)"
        )


def key_faults(account: Account, *, named_exactly: bool = False) -> Iterable[str]:
    """Faults of the KMS key, if the settings name one.

    Args:
        named_exactly: it is for something that accepts no alias.
    """
    from botocore.exceptions import ClientError

    wanted = account.settings.kms_key
    if wanted is None:
        return
    key = f"{account.section}.kms_key = {wanted!r}"
    alias = wanted.rpartition(":")[2].startswith("alias/")
    try:
        found = account.client("kms", attempts=3).describe_key(KeyId=wanted)["KeyMetadata"]
    except ClientError as error:
        if code_of(error) in ("NotFoundException", "InvalidArnException"):
            yield f"{key}: KMS has no such key in {account.region}; create it there, or correct it"
        elif "AccessDenied" not in code_of(error):
            raise
        found = {}
    if (state := found.get("KeyState", "Enabled")) != "Enabled":
        yield f"{key}: the key cannot be used, its state is {state}; enable it, or name another"
    if alias and named_exactly:
        its_id = found.get("KeyId", "its id (aws kms describe-key)")
        yield f"{key}: volumes of {account.section}.instance do not accept a key's alias; name {its_id}"
