"""The conversion to the original code's names is the inverse of diffusers' conversion, at full size too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from runner.families.original import original_names
from runner.families.shapes import SD15_UNET, SDXL_UNET

SDXL: dict[str, Any] = {
    **SDXL_UNET,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "class_embed_type": None,
}
SD15: dict[str, Any] = {**SD15_UNET, "class_embed_type": None, "addition_embed_type": None}
FULL = {
    "sdxl": (
        SDXL,
        {
            "down_blocks.1.attentions.0.transformer_blocks.1.norm1": "input_blocks.4.1.transformer_blocks.1.norm1",
            "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
            "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        },
    ),
    "sd15": (
        SD15,
        {
            "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
            "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
            "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
        },
    ),
}


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_diffusers_finds_every_tensor_of_a_full_size_unet_again(name: str) -> None:
    config, known = FULL[name]
    with torch.device("meta"):
        state = UNet2DConditionModel(attention_head_dim=8, **config).state_dict()
    names = original_names({key.rpartition(".")[0] for key in state}, 2)
    assert known.items() <= names.items()
    original = {f"model.diffusion_model.{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": key for key in state}
    assert len(original) == len(state)
    again = convert_ldm_unet_checkpoint(dict(original), config)
    assert again == {key: key for key in state}


def test_layers_that_the_original_code_does_not_have_are_left_out() -> None:
    assert original_names(["conv_in", "time_embedding.cond_proj"], 2) == {"conv_in": "input_blocks.0.0"}
