"""Faults of other trainers when they save, shown on files beside those of this one; the page is docs/correctness.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn

from tests.train.bench import Bench


@pytest.fixture
def pipeline(sdxl_folder: Path) -> Any:
    return StableDiffusionXLPipeline.from_pretrained(sdxl_folder)


def scales(pipeline: Any) -> set[float]:
    return {
        float(next(iter(module.scaling.values())))
        for module in pipeline.unet.modules()
        if isinstance(module, LoraLayer)
    }


def layers(pipeline: Any) -> int:
    """Layers with an adapter that has an effect."""
    return sum(
        isinstance(module, LoraLayer) and any(bool(up.weight.any()) for up in module.lora_B.values())
        for module in pipeline.unet.modules()
    )


def test_alpha_survives(bench: Bench, sdxl_folder: Path, pipeline: Any, tmp_path: Path) -> None:
    """Alpha lost on the way to other programs

    Elsewhere: diffusers' SD and SDXL scripts write LoRA files without the adapter's configuration. That is harmless as
    long as alpha equals the rank, as in these scripts. An adapter trained with alpha 16 at rank 4, a scale of 4, loads
    from such a file with a scale of 1. diffusers' own `convert_state_dict_to_kohya` writes alpha = rank, whatever alpha
    was.

    Here: the file for diffusers carries the configuration; the file for ComfyUI and A1111 has the scale folded into its
    weights. Both are loaded back and compared before a job is completed.
    """
    pipeline.unet.add_adapter(LoraConfig(r=4, lora_alpha=16, target_modules=["to_q"]))
    state = get_peft_model_state_dict(pipeline.unet)
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, unet_lora_layers=state)
    pipeline.unet.delete_adapters("default")
    pipeline.load_lora_weights(tmp_path)
    assert scales(pipeline) == {1.0}
    pipeline.unload_lora_weights()
    converted = convert_state_dict_to_kohya({f"unet.{key}": tensor for key, tensor in state.items()})
    assert {float(tensor) for key, tensor in converted.items() if key.endswith(".alpha")} == {4.0}

    job = bench.job(sdxl_folder, lora={"rank": 4, "alpha": 16.0}, steps=1)
    assert bench.train(job)
    pipeline.load_lora_weights(job.paths.lora, weight_name="pytorch_lora_weights.safetensors")
    assert scales(pipeline) == {4.0}
    trained = load_file(job.paths.weights)
    kohya = load_file(job.paths.lora / f"dev-{job.id}.safetensors")
    name = next(key for key in trained if key.startswith("unet.") and "lora_A" in key).removesuffix(".lora_A.weight")
    path = "lora_unet_" + name.removeprefix("unet.").replace(".", "_")
    wanted = 4.0 * trained[f"{name}.lora_B.weight"] @ trained[f"{name}.lora_A.weight"]
    read = kohya[f"{path}.lora_up.weight"] @ kohya[f"{path}.lora_down.weight"] * kohya[f"{path}.alpha"] / 4
    assert torch.allclose(read, wanted, rtol=1e-5)


def test_convolutions_survive(bench: Bench, sdxl_folder: Path, pipeline: Any, tmp_path: Path) -> None:
    """Layers lost when convolutions are trained

    Elsewhere: `convert_state_dict_to_diffusers`, which diffusers' scripts call before saving, mixes two naming schemes
    if the layers include convolutions or `proj_in`. On loading, most layers are dropped with a warning.

    Here: peft's own names are written, and every layer is present when the file is loaded back.
    """
    targets = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2"]
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=targets))
    for module in pipeline.unet.modules():
        if isinstance(module, LoraLayer):
            nn.init.ones_(module.lora_B["default"].weight)
    trained = layers(pipeline)
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, unet_lora_layers=state)
    pipeline.unet.delete_adapters("default")
    with pytest.warns(RuntimeWarning, match="inconsistency"):
        pipeline.load_lora_weights(tmp_path)
    assert layers(pipeline) < 0.5 * trained
    pipeline.unload_lora_weights()

    job = bench.job(sdxl_folder, lora={"targets": "linear_conv"}, steps=1)
    assert bench.train(job)
    pipeline.load_lora_weights(job.paths.lora, weight_name="pytorch_lora_weights.safetensors")
    assert layers(pipeline) == sum("lora_A" in key for key in load_file(job.paths.weights)) > trained
