"""task=deploy and task=undeploy from the command line to an image over HTTP: a real container process answers."""

from __future__ import annotations

import base64
import io
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runner.check import Checker
from runner.errors import SettingsError
from runner.jobs.adapter_file import AdapterFile
from runner.schema.tasks import TASKS
from runner.schema.tasks.deploy import Deploy
from runner.tasks.deploy.contents import served_names, serving_of
from runner.tasks.deploy.work import request_example
from tests.command_line import command, runner, trained
from tests.conftest import MakeOnce
from tests.launchers.running import manifests, outputs
from tests.sagemaker.stand_in import Image as ContainerImage
from tests.sagemaker.stand_in import StandIn

SERVER = ContainerImage((sys.executable, "-m", "runner.container"), {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
SMALL = ("steps=2", "lora.rank=2", "validation.prompts=[]", "logger=none")


@pytest.fixture(scope="module")
def adapters(made_once: MakeOnce) -> list[Path]:
    """Two jobs of different experiments."""

    def make(folder: Path) -> None:
        trained(folder, "name=one", *SMALL)
        trained(folder, "name=two", "seed=1", *SMALL)

    folder = made_once("deployed-adapters", make)
    return sorted(file.parent for file in folder.glob("outputs/*/*/manifest.json"))


@pytest.fixture
def settings(aws: StandIn, adapters: list[Path]) -> list[str]:
    image = aws.add_image("lora:1", SERVER)
    return [
        *("task=deploy", "name=shop", f"adapter=[{','.join(map(str, adapters))}]", "inference_steps=2"),
        *(f"endpoint.image={image}", f"endpoint.role={aws.role}", f"endpoint.bucket={aws.bucket}"),
        *("endpoint.instance=ml.m5.xlarge", "endpoint.poll_s=0.2", "logger=none"),
    ]


def drawn(aws: StandIn, body: dict[str, Any]) -> Image.Image:
    answer = aws.client("sagemaker-runtime").invoke_endpoint(
        EndpointName="shop", ContentType="application/json", Accept="application/json", Body=json.dumps(body)
    )
    (image,) = json.loads(answer["Body"].read())["images"]
    return Image.open(io.BytesIO(base64.b64decode(image["png"])))


def left(aws: StandIn) -> dict[str, list[str]]:
    """The remaining endpoints, configurations and models, by kind."""
    made = aws.endpoints
    return {"endpoints": [*made.endpoints], "configs": [*made.configs], "models": [*made.models]}


def test_an_endpoint_draws_with_the_adapters_that_a_request_names_and_leaves_nothing_behind(
    aws: StandIn, settings: list[str]
) -> None:
    answer = runner(*settings, "endpoint.max_instances=3")

    assert answer.code == 0, answer.output
    assert "aws sagemaker-runtime invoke-endpoint --region us-east-1 --endpoint-name shop" in answer.output
    mixed = drawn(aws, {"prompt": "a house", "seed": 3, "adapters": {"one": 1.0, "two": 0.5}})
    assert mixed.size == (64, 64)
    assert mixed.tobytes() != drawn(aws, {"prompt": "a house", "seed": 4, "adapters": {}}).tobytes()
    (target,) = aws.client("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")[
        "ScalableTargets"
    ]
    assert (target["ResourceId"], target["MinCapacity"], target["MaxCapacity"]) == ("endpoint/shop/variant/main", 1, 3)

    again = runner(*settings, "endpoint.max_instances=3")

    assert "1 already done" in again.output
    assert len(aws.asked("CreateEndpoint")) == 1

    costs = command("status", str(outputs() / "shop"), "--once").output
    assert "endpoint shop in us-east-1 costs money: 1 x ml.m5.xlarge, about " in " ".join(costs.split())

    undeploy = ("task=undeploy", "name=shop", f"endpoint.bucket={aws.bucket}", "endpoint.poll_s=0.2", "logger=none")
    removed = runner(*undeploy)

    assert removed.code == 0, removed.output
    assert left(aws) == {"endpoints": [], "configs": [], "models": []}
    assert aws.keys("lora-runner/endpoints/") == []
    assert not aws.client("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")[
        "ScalableTargets"
    ]
    (deployed,) = (each for each in manifests("shop").values() if each["task"] == "deploy")
    assert (deployed["state"], deployed["endpoint"]) == ("cancelled", None)

    # Nor is a missing bucket an error: SageMaker's own does not exist until somebody needs it.
    nothing = runner("task=undeploy", "name=shop", "endpoint.poll_s=0.2", "logger=none")

    assert nothing.code == 0, nothing.output
    assert "found nothing of an endpoint shop in us-east-1" in nothing.output


@pytest.mark.slow
def test_an_endpoint_that_does_not_come_up_says_why_and_is_made_anew(aws: StandIn, settings: list[str]) -> None:
    broken = aws.add_image("broken:1", [sys.executable, "-c", "raise SystemExit(3)"])

    answer = runner(*settings, f"endpoint.image={broken}")

    assert answer.code == 1
    assert "endpoint shop is not in service: The primary container" in answer.output
    assert "/aws/sagemaker/Endpoints/shop" in answer.output

    # Another image is another job, and its endpoint replaces the broken one of that name.
    assert runner(*settings).code == 0
    assert drawn(aws, {"prompt": "a house", "seed": 3}).size == (64, 64)
    with pytest.raises(aws.client("sagemaker-runtime").exceptions.ModelError, match="unknown key, did you mean seed"):
        drawn(aws, {"prompt": "a house", "sed": 3})


def test_what_cannot_be_deployed_is_refused_before_anything_is_made(aws: StandIn, settings: list[str]) -> None:
    answer = runner(
        *settings, "endpoint.role=nobody", "endpoint.image=null", "endpoint.instance=ml.g5.xlage", "lora.rank=4"
    )

    assert answer.code == 2
    assert "endpoint.instance = 'ml.g5.xlage': is not a known instance type" in answer.output
    assert "lora.rank = 4: has no effect with task=deploy; remove it" in answer.output

    answer = runner(*settings, "endpoint.role=nobody", "endpoint.image=null")

    assert answer.code == 2
    assert "endpoint.role = 'nobody': account 123456789012 has no such role" in answer.output
    assert "endpoint.image = null: no image was pushed from here yet" in answer.output
    assert left(aws) == {"endpoints": [], "configs": [], "models": []}
    assert not aws.keys("lora-runner/endpoints/")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "my_shop"}, "name = 'my_shop': would be the name of the endpoint, .* such as endpoint.name=my-shop"),
        ({"name": "x" * 51}, "name = 'x+': would be the name of the endpoint"),
        ({"guidance_scale": 150}, "guidance_scale = 150: should be at most 100"),
        ({"resolution": 8192}, "resolution = 8192: should be at most 4096"),
    ],
)
def test_what_an_endpoint_cannot_be_or_draw_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Checker(tmp_path).job({"name": "shop", "task": {"name": "deploy"}, **changes})


def test_what_may_be_deployed_may_be_served() -> None:
    largest = {"resolution": 4096, "guidance_scale": 100, "guidance_rescale": 1, "inference_steps": 1000}
    settings = Deploy.model_validate({"name": "my_shop", "endpoint": {"name": "my-shop"}, **largest})
    assert serving_of(settings, []).resolution == 4096


def test_only_what_could_be_an_endpoint_is_undeployed() -> None:
    with pytest.raises(ValueError, match="name = 'my_shop': would be the name of the endpoint"):
        TASKS["undeploy"].model_validate({"name": "my_shop"})


def test_a_sampler_that_cannot_start_from_noise_alone_is_refused(sd15_folder: Path, tmp_path: Path) -> None:
    noise_alone = {"prediction_type": "v_prediction", "zero_terminal_snr": True}
    model = {"family": "sd", "path": str(sd15_folder), **noise_alone}
    with pytest.raises(SettingsError, match="scheduler = 'model': PNDMScheduler cannot start from noise alone"):
        Checker(tmp_path).job({"name": "shop", "task": {"name": "deploy"}, "model": model})


def test_a_base_that_the_container_would_not_find_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    file = tmp_path / "base.safetensors"
    file.touch()
    models = {
        "model.vae = '.*vae': is on this machine": {"vae": str(tmp_path / "vae")},
        "model.path = '.*': a single file is laid out on": {"path": str(file), "config": str(tmp_path)},
    }
    for said, model in models.items():
        with pytest.raises(SettingsError, match=said):
            Checker(tmp_path).job({"name": "shop", "task": {"name": "deploy"}, "model": model}, ("model.path=x",))


def test_adapters_are_called_as_their_folders_and_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("cat-v1.5", "cat-v1.6", "dog-v2.0.safetensors"):
        (tmp_path / name).touch() if name.endswith(".safetensors") else (tmp_path / name).mkdir()
    given = [str(tmp_path / "cat-v1.5"), "~/cat-v1.6/", "~/dog-v2.0.safetensors", "owner/bird-v3.1"]
    settings = Deploy.model_validate({"task": {"name": "deploy"}, "adapter": given})
    names = served_names(settings, [AdapterFile(tmp_path, None)] * len(given))
    assert names == ["cat-v1.5", "cat-v1.6", "dog-v2.0", "bird-v3.1"]


def test_the_request_that_is_shown_can_be_copied_whatever_adapters_are_called() -> None:
    about = {"name": "shop", "region": "eu-west-1", "bucket": None, "prefix": "lora", "adapters": ["bob's cat"]}
    words = shlex.split(request_example(about).partition("To end it")[0])
    assert json.loads(words[words.index("--body") + 1])["adapters"] == {"bob's cat": 1.0}
