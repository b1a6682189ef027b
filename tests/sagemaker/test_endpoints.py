"""Endpoints in an account: only ours are changed and removed, and the last deployment counts."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.aws.account import Account
from runner.aws.checks import image_faults
from runner.aws.endpoints import Endpoints, Wanted
from runner.check import Checker
from runner.errors import AwsError, Interrupted, SettingsError
from runner.jobs.deployed import undeploy_command
from runner.jobs.job import Job, State, make_task_job, read_manifest, register, state_of, update_manifest
from runner.launch.door import Config, check_all
from runner.s3 import Location
from runner.schema import SageMakerLauncher
from runner.schema.aws import OWN_TAG
from runner.schema.tasks.deploy import Deploy, EndpointSettings, Undeploy
from runner.status.experiment import Watch
from runner.status.table import costing
from runner.tasks.deploy import check, work
from runner.tasks.undeploy.work import work as undeploy
from tests.sagemaker.stand_in import StandIn

PING = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
class Ping(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
HTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Ping).serve_forever()
"""
"""A container that is healthy and does nothing else."""
OURS = [{"Key": OWN_TAG, "Value": "shop"}]


@pytest.fixture
def image(aws: StandIn) -> str:
    return aws.add_image("ping:1", [sys.executable, "-c", PING])


def deployment(aws: StandIn, image: str, outputs: Path, *, steps: int = 25, **endpoint: Any) -> Job:
    """A deployment of the base model alone, to an endpoint called shop."""
    account = {"image": image, "role": aws.role, "bucket": aws.bucket}
    chosen = {**account, "instance": "ml.m5.xlarge", "poll_s": 0.05, **endpoint}
    raw = {"name": "shop", "task": {"name": "deploy"}, "inference_steps": steps, "endpoint": chosen}
    return make_task_job(Deploy.model_validate(raw), {"model": "m" * 40}, outputs=outputs)


def deployed(job: Job) -> None:
    assert isinstance(job.settings, Deploy)
    register(job)
    update_manifest(job.folder, **work.work(job.settings, job.paths, None, stop=lambda: False), state=State.COMPLETED)


def config_of(aws: StandIn) -> str:
    return str(aws.client("sagemaker").describe_endpoint(EndpointName="shop")["EndpointConfigName"])


def make_model(aws: StandIn, image: str, name: str, tags: list[dict[str, str]]) -> None:
    """Make a model and its configuration, as somebody else might."""
    client = aws.client("sagemaker")
    client.create_model(ModelName=name, ExecutionRoleArn=aws.role, PrimaryContainer={"Image": image}, Tags=tags)
    variant = {"VariantName": "main", "ModelName": name, "InstanceType": "ml.m5.xlarge", "InitialInstanceCount": 1}
    client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], Tags=tags)


def test_only_what_carries_our_hash_and_our_tag_is_removed(aws: StandIn, image: str) -> None:
    for name, tags in (("shop-0a1b2c3d", OURS), ("shop-4e5f6a7b", []), ("shop-production", OURS), ("shop-v2", [])):
        make_model(aws, image, name, tags)

    removed = Endpoints(Account(EndpointSettings())).remove("shop", poll_s=0.05)

    assert removed == ["configuration shop-0a1b2c3d", "model shop-0a1b2c3d"]
    assert [*aws.endpoints.models] == [*aws.endpoints.configs] == ["shop-4e5f6a7b", "shop-production", "shop-v2"]


def test_an_endpoint_of_somebody_else_is_neither_changed_nor_removed(aws: StandIn, image: str, tmp_path: Path) -> None:
    job = deployment(aws, image, tmp_path)
    assert isinstance(job.settings, Deploy)
    deployed(job)
    arn = aws.client("sagemaker").describe_endpoint(EndpointName="shop")["EndpointArn"]
    aws.client("sagemaker").delete_tags(ResourceArn=arn, TagKeys=[OWN_TAG])
    said = "endpoint.name = 'shop': an endpoint of that name is in us-east-1 and was not made by task=deploy"

    with pytest.raises(SettingsError, match=said):
        check.check(job.settings)
    other = deployment(aws, image, tmp_path, steps=9)
    with pytest.raises(AwsError, match=said):
        deployed(other)
    with pytest.raises(AwsError, match=said):
        Endpoints(Account(EndpointSettings())).remove("shop", poll_s=0.05)
    assert config_of(aws) in aws.endpoints.configs and len(aws.endpoints.models) == 1


def test_who_may_not_end_an_endpoint_makes_none(aws: StandIn, image: str, tmp_path: Path) -> None:
    aws.permissions.deny("sagemaker:DeleteEndpoint")
    job = deployment(aws, image, tmp_path)
    assert isinstance(job.settings, Deploy)
    with pytest.raises(SettingsError, match=r"may not sagemaker:DeleteEndpoint on arn:.*:endpoint/shop; add"):
        check.check(job.settings)


@pytest.mark.parametrize("kind", ["index", "manifest"])
def test_an_image_of_a_type_that_endpoints_refuse(aws: StandIn, image: str, tmp_path: Path, kind: str) -> None:
    manifest = {"schemaVersion": 2, "mediaType": f"application/vnd.oci.image.{kind}.v1+json", "layers": []}
    aws.platform.ecr.put_image(repositoryName="ping", imageTag="oci", imageManifest=json.dumps(manifest))
    job = deployment(aws, image.replace(":1", ":oci"), tmp_path)
    assert isinstance(job.settings, Deploy)
    said = rf"endpoint.image = '.*/ping:oci': has the type application/vnd.oci.image.{kind}.v1\+json, .* build --tag"

    with pytest.raises(SettingsError, match=said):
        check.check(job.settings)
    training = SageMakerLauncher(image=job.settings.endpoint.image)
    assert [*image_faults(Account(training), training.image)] == [], "training jobs take it"


@pytest.mark.parametrize("prefix", ["lora-runner", "team/lora"])
def test_the_command_that_is_printed_removes_all_that_was_uploaded(
    aws: StandIn, image: str, tmp_path: Path, prefix: str
) -> None:
    job = deployment(aws, image, tmp_path, prefix=prefix)
    deployed(job)
    assert aws.keys(f"{prefix}/endpoints/shop/")
    command = undeploy_command(read_manifest(job.folder)["endpoint"])
    assert command in (job.folder / "request.txt").read_text()
    (shown,) = costing(Watch(lambda: [job.folder]).look()[0])
    assert shown.endswith(command)

    said = dict(word.removeprefix("endpoint.").split("=") for word in shlex.split(command) if "endpoint." in word)
    settings = Undeploy.model_validate({"task": {"name": "undeploy"}, "endpoint": {**said, "poll_s": 0.05}})
    gone = make_task_job(settings, {}, outputs=tmp_path)
    register(gone)
    undeploy(settings, gone.paths, None, stop=lambda: False)

    assert aws.keys(f"{prefix}/endpoints/") == []
    assert (aws.endpoints.endpoints, aws.endpoints.configs, aws.endpoints.models) == ({}, {}, {})
    assert (state_of(job.folder), read_manifest(job.folder)["endpoint"]) == (State.CANCELLED, None)


def test_an_endpoint_goes_back_to_an_earlier_deployment(aws: StandIn, image: str, tmp_path: Path) -> None:
    first, second = (deployment(aws, image, tmp_path, steps=steps) for steps in (5, 6))
    deployed(first)
    as_first = config_of(aws)

    deployed(second)

    assert config_of(aws) != as_first
    assert state_of(first.folder) is State.CANCELLED, "so that the same command brings it back"
    assert f"its endpoint was given to {second.id}" in read_manifest(first.folder)["error"]
    folders = [first.folder, second.folder]
    assert len(costing(Watch(lambda: folders).look()[0])) == 1, "one endpoint costs money once"

    deployed(first)

    assert config_of(aws) == as_first
    assert [state_of(folder) for folder in folders] == [State.COMPLETED, State.CANCELLED]
    assert len(costing(Watch(lambda: folders).look()[0])) == 1


def test_an_endpoint_that_grows_is_brought_to_another_instance(aws: StandIn, image: str, tmp_path: Path) -> None:
    deployed(deployment(aws, image, tmp_path, max_instances=2))
    deployed(deployment(aws, image, tmp_path, max_instances=3, instance="ml.g5.xlarge"))

    (variant,) = aws.endpoints.configs[config_of(aws)]["ProductionVariants"]
    scaling = aws.client("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")
    assert variant["InstanceType"] == "ml.g5.xlarge"
    assert [target["MaxCapacity"] for target in scaling["ScalableTargets"]] == [3]


def test_several_deployments_of_a_command_have_an_endpoint_each(aws: StandIn, image: str, tmp_path: Path) -> None:
    class Known(Checker):
        def job(self, raw: Any, overrides: tuple[str, ...] = ()) -> Job:
            return deployment(aws, image, tmp_path, **raw)

    same: list[Config] = [({"steps": 5}, ()), ({"steps": 6}, ())]
    with pytest.raises(SettingsError, match="2 jobs would deploy to the endpoint shop"):
        check_all(Known(tmp_path), same)
    assert len(check_all(Known(tmp_path), [*same[:1], ({"steps": 6, "name": "other"}, ())])) == 2


def test_an_update_that_was_taken_back_is_no_deployment(aws: StandIn, image: str, tmp_path: Path) -> None:
    deployed(deployment(aws, image, tmp_path))
    base = Location(aws.bucket, "x/")
    other = Wanted("shop", "0a1b2c3d", image, aws.role, base, None, {})

    with pytest.raises(AwsError, match=r"in service with shop-\w{8} and not with shop-0a1b2c3d"):
        Endpoints(Account(EndpointSettings())).wait(other, poll_s=0.05, stop=lambda: False)


def test_an_update_that_is_under_way_is_waited_for_and_not_begun_again(
    aws: StandIn, image: str, tmp_path: Path
) -> None:
    slow = aws.add_image("slow:1", [sys.executable, "-c", "import time\ntime.sleep(3)\n" + PING])
    first, third = (deployment(aws, image, tmp_path, steps=steps) for steps in (25, 26))
    second = deployment(aws, slow, tmp_path)
    deployed(first)
    assert isinstance(second.settings, Deploy)
    with pytest.raises(Interrupted):
        work.work(second.settings, second.paths, None, stop=lambda: True)
    with pytest.raises(AwsError, match=r"endpoint shop is Updating at this moment, with shop-.*tries again"):
        deployed(third)
    deployed(second)
    assert len(aws.asked("UpdateEndpoint")) == 1
    assert config_of(aws) == aws.asked("UpdateEndpoint")[0]["EndpointConfigName"]


def test_a_stop_does_not_wait_for_the_next_look(aws: StandIn, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, slept = iter([False, False, True]), list[float]()
    monkeypatch.setattr("runner.aws.endpoints.time.sleep", slept.append)
    monkeypatch.setattr(Endpoints, "_described", lambda *_: {"EndpointStatus": "Creating"})
    wanted = Wanted("shop", "0a1b2c3d", image, aws.role, Location(aws.bucket, "x/"), None, {})
    with pytest.raises(Interrupted, match="goes on starting"):
        Endpoints(Account(EndpointSettings())).wait(wanted, poll_s=600, stop=lambda: next(asked))
    assert len(slept) == 2 and max(slept) <= 1
