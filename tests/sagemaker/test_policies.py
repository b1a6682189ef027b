"""The documented policies allow every action that is checked before something starts, on the checked resources."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.aws.account import Account
from runner.errors import SettingsError
from runner.launchers.sagemaker.preflight import preflight
from runner.schema import SageMakerLauncher
from runner.schema.tasks.deploy import Deploy
from runner.search.tuning.checks import faults_of_permissions
from runner.tasks.deploy import check
from tests.command_line import ROOT
from tests.sagemaker.stand_in import Image, StandIn
from tests.sagemaker.stand_in.platform import ACCOUNT
from tests.sagemaker.stand_in.policies import allows
from tests.sagemaker.stand_in.stand_in import TRUST

ROLE = "lora-runner-execution"


def documented(aws: StandIn, name: str, bucket: str = StandIn.bucket, key: str = "KEY") -> dict[str, Any]:
    """A policy from the docs, with its placeholders filled in as described there."""
    text = (ROOT / "docs" / "policies" / f"sagemaker-{name}.json").read_text()
    filled = {"REGION": aws.platform.settings.region, "ACCOUNT": ACCOUNT, "BUCKET": bucket, "KEY": key}
    policy: dict[str, Any] = json.loads(re.sub("|".join(filled), lambda found: filled[found[0]], text))
    for statement in policy["Statement"]:
        actions = statement["Action"]
        assert not [each for each in ([actions] if isinstance(actions, str) else actions) if "*" in each], "least"
    return policy


@pytest.fixture
def settings(aws: StandIn) -> dict[str, Any]:
    """Settings for an account that was set up as in the docs."""
    aws.platform.iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps(TRUST))
    secrets = aws.platform.client("secretsmanager")
    secrets.create_secret(Name="lora-runner/hub", SecretString="x")
    aws.permissions.policies = {"": documented(aws, "submitter"), ROLE: documented(aws, "execution")}
    image = aws.add_image("lora-runner:1", Image((sys.executable, "-c", "pass")))
    return {"role": ROLE, "bucket": aws.bucket, "image": image, "hub_secret": "lora-runner/hub"}


def faults(settings: dict[str, Any]) -> list[str]:
    chosen = SageMakerLauncher.model_validate({"name": "sagemaker", **settings})
    return preflight(chosen, Account(chosen), chosen.image)


def questions(aws: StandIn) -> set[tuple[str, str]]:
    """The actions and resources that were checked."""
    return {
        (action, form["ResourceArns.member.1"])
        for form in aws.asked("SimulatePrincipalPolicy")
        for key, action in form.items()
        if key.startswith("ActionNames.")
    }


def test_an_account_as_the_docs_set_it_up_may_train(aws: StandIn, settings: dict[str, Any]) -> None:
    assert faults(settings) == []

    asked = questions(aws)
    assert {action for action, resource in asked if resource == "*"} == {
        "sagemaker:ListTrainingJobs",
        "ecr:GetAuthorizationToken",
    }
    assert ("ecr:BatchGetImage", f"arn:aws:ecr:us-east-1:{ACCOUNT}:repository/lora-runner") in asked
    (secret,) = (resource for action, resource in asked if action == "secretsmanager:GetSecretValue")
    assert re.fullmatch(rf"arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret:lora-runner/hub-\w{{6}}", secret)


def test_an_account_as_the_docs_set_it_up_may_deploy(aws: StandIn, settings: dict[str, Any], tmp_path: Path) -> None:
    aws.permissions.policies[""] = documented(aws, "deployer")
    endpoint = {"instance": "ml.m5.xlarge", **settings}
    raw = {"name": "shop", "task": {"name": "deploy"}, "inference_steps": 2, "endpoint": endpoint}

    check.check(Deploy.model_validate(raw))

    endpoints = f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:endpoint"
    assert {resource for action, resource in questions(aws) if action == "sagemaker:CreateEndpoint"} == {
        f"{endpoints}/shop",
        f"{endpoints}-config/shop-x",
    }
    aws.permissions.policies[""] = documented(aws, "submitter")
    with pytest.raises(SettingsError, match=r"may not sagemaker:CreateModel, .* on arn:.*:model/shop-x"):
        check.check(Deploy.model_validate(raw))


def test_an_account_as_the_docs_set_it_up_may_search(aws: StandIn, settings: dict[str, Any]) -> None:
    launcher = SageMakerLauncher.model_validate({"name": "sagemaker", **settings})
    assert faults_of_permissions(launcher) == []
    assert {resource for _, resource in questions(aws)} == {
        f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:hyper-parameter-tuning-job/x"
    }

    aws.permissions.deny("sagemaker:CreateHyperParameterTuningJob")
    (fault,) = faults_of_permissions(launcher)
    assert "may not sagemaker:CreateHyperParameterTuningJob on arn:" in fault


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prefix": "other"}, "s3:GetObject, s3:PutObject, s3:DeleteObject on arn:aws:s3:::stand-in/other/x"),
        ({"hub_secret": "mine"}, "secretsmanager:GetSecretValue on arn:aws:secretsmanager:us-east-1:.*:secret:mine-"),
        ({"image": "another:1"}, "ecr:GetDownloadUrlForLayer, .* on arn:aws:ecr:.*:repository/another; add them"),
    ],
)
def test_what_they_do_not_reach_is_said_with_its_name(
    aws: StandIn, settings: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    aws.platform.client("secretsmanager").create_secret(Name="mine", SecretString="x")
    other = aws.add_image("another:1", Image((sys.executable, "-c", "pass")))
    found = faults(settings | changes | ({"image": other} if "image" in changes else {}))

    assert re.search(f"launcher.role = '{ROLE}': its policy does not allow .*{said}", "\n".join(found))


def test_the_bucket_of_sagemaker_may_be_made_where_it_is_missing(aws: StandIn, settings: dict[str, Any]) -> None:
    bucket = f"sagemaker-us-east-1-{ACCOUNT}"
    aws.permissions.policies = {
        "": documented(aws, "submitter", bucket),
        ROLE: documented(aws, "execution", bucket),
    }
    assert faults(settings | {"bucket": None}) == []
    assert ("s3:CreateBucket", f"arn:aws:s3:::{bucket}") in questions(aws)
    assert allows(documented(aws, "deployer", bucket), "s3:CreateBucket", f"arn:aws:s3:::{bucket}", {})

    aws.permissions.deny("s3:CreateBucket")
    (fault,) = faults(settings | {"bucket": None})
    assert re.match(rf"launcher.bucket = null: there is no {bucket} yet, and arn:.* may not s3:CreateBucket on ", fault)

    aws.s3.create_bucket(Bucket=bucket)
    assert faults(settings | {"bucket": None}) == [], "nobody needs to make it"


def test_a_key_is_asked_about_where_one_is_named(aws: StandIn, settings: dict[str, Any], tmp_path: Path) -> None:
    kms = aws.platform.client("kms")
    made = kms.create_key()["KeyMetadata"]
    kms.create_alias(AliasName="alias/ours", TargetKeyId=made["KeyId"])
    assert faults(settings) == []
    assert not [action for action, _ in questions(aws) if action.startswith("kms:")]

    with_key = settings | {"kms_key": "alias/ours"}
    refused = faults(with_key)
    assert len(refused) == 2
    assert f"may not kms:Decrypt, kms:GenerateDataKey on {made['Arn']}; add" in refused[1]
    assert f"does not allow kms:Decrypt, kms:Encrypt, kms:GenerateDataKey on {made['Arn']}; add" in refused[0]

    for who, name in (("", "submitter"), (ROLE, "execution")):
        aws.permissions.policies[who] = documented(aws, name, key=made["KeyId"])
    assert faults(with_key) == []
    assert ("kms:CreateGrant", made["Arn"]) not in questions(aws), "a GPU instance has no volume that takes a key"
    with_volume = with_key | {"instance": "ml.m5.xlarge"}
    (fault,) = faults(with_volume)
    alias = "launcher.kms_key = 'alias/ours': volumes of launcher.instance do not accept a key's alias; name "
    assert fault == alias + made["KeyId"]
    assert faults(with_volume | {"kms_key": made["KeyId"]}) == []
    assert ("kms:CreateGrant", made["Arn"]) in questions(aws)

    aws.permissions.policies[""] = documented(aws, "deployer", key=made["KeyId"])
    endpoint = {"instance": "ml.m5.xlarge", **with_key}
    raw = {"name": "shop", "task": {"name": "deploy"}, "inference_steps": 2, "endpoint": endpoint}
    check.check(Deploy.model_validate(raw))


def test_a_key_that_is_not_there_or_not_enabled(aws: StandIn, settings: dict[str, Any]) -> None:
    (fault,) = faults(settings | {"kms_key": "alias/theirs"})
    assert fault.startswith("launcher.kms_key = 'alias/theirs': KMS has no such key in us-east-1; create it there")
    kms = aws.platform.client("kms")
    made = kms.create_key()["KeyMetadata"]
    kms.disable_key(KeyId=made["KeyId"])
    assert "the key cannot be used, its state is Disabled" in "\n".join(faults(settings | {"kms_key": made["Arn"]}))


def test_a_key_may_let_somebody_in_by_its_own_policy(aws: StandIn, settings: dict[str, Any]) -> None:
    role = f"arn:aws:iam::{ACCOUNT}:role/{ROLE}"
    statement = {"Effect": "Allow", "Principal": {"AWS": [role]}, "Action": "kms:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    made = aws.platform.client("kms").create_key(Policy=policy)["KeyMetadata"]

    (fault,) = faults(settings | {"kms_key": made["Arn"]})
    assert fault.startswith("AWS permissions: "), "the role is let in, the person who submits is not"

    aws.permissions.deny("kms:GetKeyPolicy")
    assert faults(settings | {"kms_key": made["Arn"]}) == [], "what may not be looked at is passed over"


def test_a_role_that_may_not_be_passed(aws: StandIn, settings: dict[str, Any]) -> None:
    aws.platform.iam.create_role(RoleName="other", AssumeRolePolicyDocument=json.dumps(TRUST))

    (fault,) = faults(settings | {"role": "other"})

    assert f"may not iam:PassRole on arn:aws:iam::{ACCOUNT}:role/other" in fault


def test_the_stand_in_takes_a_policy_at_its_word(aws: StandIn) -> None:
    policy, context = documented(aws, "submitter"), {"iam:PassedToService": "sagemaker.amazonaws.com"}
    role = f"arn:aws:iam::{ACCOUNT}:role/{ROLE}"

    assert not allows(policy, "sagemaker:CreateTrainingJob", "*", {})
    assert allows(policy, "iam:passrole", role, context)
    assert not allows(policy, "iam:PassRole", role, {})
    assert not allows(policy, "iam:PassRole", role, {"iam:PassedToService": "ec2.amazonaws.com"})
