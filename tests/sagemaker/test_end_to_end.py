"""After training, end to end on the embedded model: two concepts are drawn together, measured, merged, trained
further, exported, served and taken down again, each by the command that a person would type."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors import safe_open

from runner.embedded import MODEL_DIR
from tests.command_line import command, runner
from tests.launchers.running import manifests, only_folder, outputs
from tests.sagemaker.stand_in import Image as ContainerImage
from tests.sagemaker.stand_in import StandIn

SERVER = ContainerImage((sys.executable, "-m", "runner.container"), {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
TRAINING = (
    "steps=30",
    "lora.rank=4",
    "lora.targets=linear",
    "optimizer.lr=2e-3",
    "logger=none",
    "validation.prompts=[]",
)


def done(*arguments: str) -> str:
    answer = runner(*arguments, "logger=none")
    assert answer.code == 0, answer.output
    return answer.output


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64)


def with_kohya(unet: UNet2DConditionModel, file: Path) -> UNet2DConditionModel:
    """A reader that knows nothing about the project: W += up @ down * alpha / rank, by the layers' kohya names."""
    named = {f"lora_unet_{name.replace('.', '_')}": module for name, module in unet.named_modules()}
    with safe_open(file, "pt") as opened:
        keys = set(opened.keys())
        for layer in {key.partition(".")[0] for key in keys}:
            down, up = opened.get_tensor(f"{layer}.lora_down.weight"), opened.get_tensor(f"{layer}.lora_up.weight")
            alpha = float(opened.get_tensor(f"{layer}.alpha")) if f"{layer}.alpha" in keys else len(down)
            weight = named[layer].weight
            weight.data += (up.flatten(1) @ down.flatten(1) * alpha / len(down)).view(weight.shape)
    return unet


@pytest.mark.slow
def test_from_two_trainings_to_an_endpoint_and_nothing_left(aws: StandIn, photos: Path) -> None:
    done(*TRAINING, "name=houses")
    done(*TRAINING, "name=pictures", f"dataset.path={photos}", "seed=1")
    houses, pictures = only_folder("houses"), only_folder("pictures")
    both = f"adapter=[{houses},{pictures}]"

    # Both mixed, with the first at two strengths.
    drawing = ("prompts='a red house'", "inference_steps=4", "seeds=[0]")
    done("-m", "task=generate", "name=mixed", both, "adapter_weight=[1.0,0.0],[1.0,1.0]", *drawing)
    first, second = (
        pixels(outputs() / "mixed" / each / "samples/step-000000/p00-s0.png") for each in manifests("mixed")
    )
    assert np.abs(first - second).max() > 0

    # Measured, in the report of the training.
    said = done("task=evaluate", "name=houses", f"adapter={houses}", "metrics=[base_drift]", "inference_steps=2")
    assert "base_drift=" in said
    assert "base_drift" in (outputs() / "houses" / "sweep.csv").read_text()

    # Merged, and trained further from there.
    done("task=merge", "name=merged", both, "adapter_weight=[1.0,0.5]")
    merged = only_folder("merged") / "model"
    done(*TRAINING, "name=further", "steps=3", f"model.path={merged}")
    assert manifests("further")[only_folder("further").name]["state"] == "completed"

    # Exported, and read by an independent reader: the same denoiser as the merge of that adapter alone.
    done("task=export", "name=exported", f"adapter={houses}", "formats=[kohya_alpha]")
    (kohya,) = (only_folder("exported") / "export").glob("*.safetensors")
    done("task=merge", "name=alone", f"adapter={houses}", "dtype=fp32")
    theirs = with_kohya(UNet2DConditionModel.from_pretrained(MODEL_DIR / "unet"), kohya)
    ours = UNet2DConditionModel.from_pretrained(only_folder("alone") / "model" / "unet")
    for (name, one), (_, other) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)

    # Served on the merged base, queried over HTTP, and taken down.
    served = (f"endpoint.image={aws.add_image('lora:1', SERVER)}", f"endpoint.role={aws.role}")
    place = (f"endpoint.bucket={aws.bucket}", "endpoint.poll_s=0.2")
    done(
        *("task=deploy", "name=shop", f"adapter={houses}", f"model.path={merged}", "resolution=64"),
        *(*served, *place, "endpoint.instance=ml.m5.xlarge", "inference_steps=2"),
    )
    answer = aws.client("sagemaker-runtime").invoke_endpoint(
        EndpointName="shop",
        ContentType="application/json",
        Accept="application/json",
        Body=b'{"prompt": "a red house"}',
    )
    (image,) = json.loads(answer["Body"].read())["images"]
    assert Image.open(io.BytesIO(base64.b64decode(image["png"]))).size == (64, 64)
    done("task=undeploy", "name=shop", *place)
    assert not (aws.endpoints.endpoints or aws.endpoints.configs or aws.endpoints.models)
    assert not aws.keys("lora-runner/endpoints/")
    assert "costs money" not in command("status", str(outputs() / "shop"), "--once").output
