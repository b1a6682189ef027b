"""Every method trains, saves, loads and draws with every family that supports it; other pairs are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from runner.jobs.job import State, state_of
from tests.train.bench import Bench, pipeline_of, records, write_images

METHODS: dict[str, dict[str, Any]] = {
    "text_to_image": {"name": "text_to_image"},
    "dreambooth, images": {
        "name": "dreambooth",
        "class_prompt": "a cat",
        "num_class_images": 1,
        "class_inference_steps": 1,
    },
    "dreambooth, base": {"name": "dreambooth", "prior": "base", "class_prompt": "a cat"},
    "dreambooth": {"name": "dreambooth", "prior": "none"},
    "textual_inversion": {"name": "textual_inversion", "tokens": ["<cat>"], "initial": ["cat"]},
    "pivotal": {"name": "pivotal", "tokens": ["<cat>"], "initial": ["cat"]},
}
FAMILIES = ("sd15", "sd21", "sdxl", "sd3", "sd35", "flux")
NOT_OFFERED = {(family, method) for family in ("sd3", "sd35", "flux") for method in ("textual_inversion", "pivotal")}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_images(tmp_path_factory.mktemp("combinations") / "images")
    for file in folder.glob("*.txt"):
        file.write_text(f"a photo of <cat>, {file.stem}")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_every_family(
    bench: Bench, images: Path, family: str, method: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(f"{family}_folder")
    settings: dict[str, Any] = {
        "steps": 3,
        "method": METHODS[method],
        "lora": {"rank": 8},
        "validation": {"prompts": ["a photo of <cat>"], "inference_steps": 1},
    }
    if (family, method) in NOT_OFFERED:
        with pytest.raises(ValidationError, match="cannot be used with model"):
            bench.job(folder, images=images, **settings)
        return
    job = bench.job(folder, images=images, **settings)
    # Completed means saved, loaded back into a diffusers pipeline and compared.
    assert bench.train(job)
    assert state_of(job.folder) is State.COMPLETED
    assert sorted(records(job, "train/loss")) == [1, 2, 3]
    assert list(job.paths.samples_at(3).glob("*.png"))
    assert list(job.paths.lora.glob("*.safetensors"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_the_denoiser_can_be_targeted(bench: Bench, family: str, request: pytest.FixtureRequest) -> None:
    """Including those around the blocks, which presets leave out and readers name in their own ways."""
    folder: Path = request.getfixturevalue(f"{family}_folder")
    pipeline = pipeline_of(folder)
    denoiser = pipeline.components.get("transformer") or pipeline.unet
    layers = [name for name, each in denoiser.named_modules() if isinstance(each, (nn.Linear, nn.Conv2d))]
    job = bench.job(folder, lora={"targets": "|".join(map(re.escape, layers))}, steps=1)
    assert bench.train(job)
    for file in job.paths.lora.glob("*.safetensors"):
        assert sum(key.endswith((".lora_A.weight", ".lora_down.weight")) for key in load_file(file)) == len(layers)
