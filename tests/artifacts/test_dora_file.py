"""A saved DoRA equals what was trained, in diffusers and by the paper; no reader gets one that it would misread."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from runner.artifacts.verify import check_behaviour
from runner.errors import ArtifactError
from runner.jobs.job import Job
from tests.artifacts.saved import (
    ATTENTION_AND_CONVOLUTION,
    DIFFUSERS,
    apart,
    as_trained,
    output,
    published_key,
    rewritten,
)
from tests.train.bench import Bench


@pytest.fixture(scope="module")
def dora(bench: Bench, sdxl_folder: Path) -> Job:
    lora = {"rank": 4, "alpha": 6.0, "targets": ATTENTION_AND_CONVOLUTION, "text_encoder": True, "dora": True}
    job = bench.job(sdxl_folder, lora=lora, optimizer={"eps": 1e-8}, steps=2)
    assert bench.train(job)
    return job


def merge_dora(pipeline: Any, file: Path, scale: float) -> None:
    """Replace the weights of a plain pipeline by m (W + s B A) / ||W + s B A||."""
    tensors = load_file(file)
    for component in ("unet", "text_encoder", "text_encoder_2"):
        for path, module in getattr(pipeline, component).named_modules():
            name = published_key(component, path)
            magnitude = tensors.pop(published_key(component, f"{path}.lora_magnitude_vector"), None)
            if magnitude is None:
                continue
            down, up = (tensors.pop(f"{name}.lora_{kind}.weight").flatten(1) for kind in "AB")
            total = module.weight.data + (scale * up @ down).view(module.weight.shape)
            factor = magnitude.flatten() / total.flatten(1).norm(dim=1)
            module.weight.data = total * factor.view(-1, *[1] * (total.dim() - 1))
    assert not tensors, f"no layer for {min(tensors)}"


def test_dora_means_the_same_to_diffusers_and_to_the_paper(dora: Job) -> None:
    model = dora.experiment.model.path
    bare = output(DiffusionPipeline.from_pretrained(model))
    by_diffusers, merged = (DiffusionPipeline.from_pretrained(model) for _ in range(2))
    by_diffusers.load_lora_weights(dora.paths.lora, weight_name=DIFFUSERS)
    merge_dora(merged, dora.paths.lora / DIFFUSERS, 1.5)
    wanted = output(by_diffusers)
    assert apart(bare, wanted) > 1e-3, "the adapter does nothing"
    assert apart(output(merged), wanted) < 1e-5


def test_there_is_no_file_of_dora_that_other_readers_would_misread(dora: Job) -> None:
    assert [file.name for file in dora.paths.lora.glob("*.safetensors")] == [DIFFUSERS]
    card = (dora.paths.lora / "README.md").read_text()
    assert "# dev: DoRA of rank 4" in card
    assert "there is no file for them" in card


def _drop_magnitudes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    for key in [key for key in tensors if "lora_magnitude_vector" in key]:
        del tensors[key]
    about = json.loads(metadata["lora_adapter_metadata"])
    changed = {key: False if key.endswith(".use_dora") else value for key, value in about.items()}
    metadata["lora_adapter_metadata"] = json.dumps(changed)


def _change_a_magnitude(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    key = next(key for key in tensors if "unet" in key and "lora_magnitude_vector" in key)
    tensors[key] = tensors[key] * 1.5


@pytest.mark.parametrize("change", [_drop_magnitudes, _change_a_magnitude])
def test_dora_that_is_not_what_was_trained_is_refused(
    bench: Bench, dora: Job, tmp_path: Path, change: Callable[..., None]
) -> None:
    base, conditioner, layers, batch, use_rows = as_trained(bench, dora)
    file = Path(shutil.copy(dora.paths.lora / DIFFUSERS, tmp_path))
    files = {"diffusers": (file, dora.experiment.lora.scale_of)}
    check_behaviour(files, layers, base, conditioner, batch, use_rows)
    rewritten(change)(file)
    with pytest.raises(ArtifactError, match=file.name):
        check_behaviour(files, layers, base, conditioner, batch, use_rows)
