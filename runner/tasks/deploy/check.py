"""Finds what would keep the endpoint from coming up, before anything is uploaded or costs money."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from runner.aws.account import Account
from runner.aws.checks import (
    bucket_faults,
    caller_faults,
    faults_of,
    image_faults,
    key_faults,
    quota_faults,
    role_faults,
)
from runner.aws.endpoints import Endpoints, log_group
from runner.aws.image import image_of
from runner.aws.permissions import Actions, Things
from runner.errors import SettingsError
from runner.families.files import local_folder
from runner.families.prediction import sampler_faults
from runner.families.single_file import is_single_file, single_file_faults
from runner.s3 import is_s3
from runner.schema import ModelSettings
from runner.schema.reading import IsRight, all_right
from runner.schema.tasks.deploy import Deploy
from runner.tasks.adapters import contents_of, find_adapters
from runner.tasks.deploy.contents import served_names

SECTION = "endpoint"
OF_EACH = ("sagemaker:AddTags", "sagemaker:ListTags")
CALLER: Actions = {
    "model": ("sagemaker:CreateModel", "sagemaker:DescribeModel", *OF_EACH),
    "endpoint-config": (
        "sagemaker:CreateEndpointConfig", "sagemaker:DescribeEndpointConfig", "sagemaker:CreateEndpoint",
        "sagemaker:UpdateEndpoint", *OF_EACH,
    ),
    "endpoint": (
        "sagemaker:CreateEndpoint", "sagemaker:UpdateEndpoint", "sagemaker:DescribeEndpoint",
        "sagemaker:InvokeEndpoint", "sagemaker:DeleteEndpoint", *OF_EACH,
    ),
    "role": ("iam:PassRole",),
    "objects": ("s3:GetObject", "s3:PutObject"),
    "bucket": ("s3:ListBucket",),
    "key": ("kms:Decrypt", "kms:GenerateDataKey"),
    "volume-key": ("kms:CreateGrant",),
}  # fmt: skip
"""What the caller must be allowed to do, including to end what costs money."""
EXECUTION: Actions = {
    "objects": ("s3:GetObject",),
    "bucket": ("s3:ListBucket",),
    "any": ("ecr:GetAuthorizationToken",),
    "repository": ("ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"),
    "logs": ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"),
    "secrets": ("secretsmanager:GetSecretValue",),
    "key": ("kms:Decrypt",),
}
"""What the execution role must be allowed to do."""


def check(settings: Deploy) -> dict[str, Any]:
    """See `runner.tasks`."""
    if found := faults(settings, all_right):  # before any request over the network
        raise SettingsError("\n".join(found))
    wanted = settings.endpoint
    account, image = Account(wanted, section=SECTION), image_of(wanted)
    most = wanted.max_instances or wanted.instances
    instance = f"{SECTION}.instance = {wanted.instance!r}"
    name = wanted.name or settings.name
    secrets = [wanted.hub_secret] if wanted.hub_secret else []
    things = Things(log_group(name), image, secrets, name, key=wanted.kms_key, key_for_volumes=True)
    wrong = faults_of(
        account,
        image,
        [
            lambda: role_faults(account, EXECUTION, things),
            lambda: bucket_faults(account),
            lambda: image_faults(account, image, served=True),
            lambda: filter(None, [Endpoints(account).foreign_fault(name)]),
            lambda: quota_faults(account, f"{wanted.instance} for endpoint usage", most, instance),
            lambda: key_faults(account),
            lambda: caller_faults(account, CALLER, things),
        ],
    )
    if wrong:
        raise SettingsError("\n".join(wrong))
    return {**contents_of(settings), "image": image}


def faults(settings: Deploy, is_right: IsRight) -> list[str]:
    """See `runner.tasks`; asks nothing over the network."""
    wrong = here_faults(settings.launcher.name, settings.task.name) if is_right("launcher") else []
    if is_right("adapter", "model"):
        wrong += _adapter_faults(settings)
    wrong += _model_faults(settings.model) if is_right("model") else []
    return wrong + (sampler_faults(settings.model, settings.scheduler.name) if is_right("model", "scheduler") else [])


def _adapter_faults(settings: Deploy) -> list[str]:
    try:
        names = served_names(settings, find_adapters(settings))
    except SettingsError as error:
        return str(error).splitlines()
    repeated = sorted({name for name in names if names.count(name) > 1})
    said = f"adapter: {', '.join(repeated)} would name several adapters of the endpoint; rename their files"
    return [said] if repeated else []


def _model_faults(model: ModelSettings) -> list[str]:
    """Why containers could not load the base model although this machine can: they are sent only one folder."""
    faults = single_file_faults(model, used_here=False) if is_single_file(model.path) else []
    if model.vae is not None and not is_s3(model.vae) and local_folder(model.vae) is not None:
        faults.append(
            f"model.vae = {model.vae!r}: is on this machine, and of local files an endpoint is sent only "
            "model.path; give a Hub id or s3://..., or a model that has it (task=merge output=folder)"
        )
    return faults


def here_faults(launcher: str, task: str) -> list[str]:
    """Why AWS cannot be used from here, one reason per line."""
    if launcher != "local":
        said = f"has no effect with task={task}, which asks SageMaker from this machine; remove it"
        return [f"launcher = {launcher!r}: {said}, and say region, role and image in `{SECTION}`"]
    if find_spec("boto3") is None:
        return [f"task = {task!r}: needs the package boto3; pip install 'lora-runner[sagemaker]'"]
    return []
