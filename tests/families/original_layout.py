"""A miniature of SD1.5 as one file in the layout of the original code: the way back from what diffusers reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

LAYERS = 1
"""Residual blocks on each level of a miniature."""
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
AROUND = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def write_original(pipeline: Any, file: Path, *, without: Sequence[str] = ()) -> Path:
    """Write an SD1.5-shaped pipeline; `without` names components to leave out."""
    attended = {name.split(".attentions")[0] for name, _ in pipeline.unet.named_modules() if ".attentions" in name}
    parts: dict[str, Mapping[str, Tensor]] = {
        "unet": {
            f"model.diffusion_model.{_unet_key(key, attended)}": tensor
            for key, tensor in pipeline.unet.state_dict().items()
        },
        "vae": _vae(pipeline.vae),
        "text_encoder": {
            f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}": tensor
            for key, tensor in pipeline.text_encoder.state_dict().items()
        },
    }
    tensors = {key: tensor for name, part in parts.items() if name not in without for key, tensor in part.items()}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
    return file


def _unet_key(key: str, attended: set[str]) -> str:
    stem, _, kind = key.rpartition(".")
    if stem in AROUND:
        return f"{AROUND[stem]}.{kind}"
    for name, original in RESIDUAL.items():
        key = re.sub(rf"(resnets\.\d+)\.{name}\.", rf"\1.{original}.", key)
    where, rest = key.split(".", 1)
    if where == "mid_block":
        part, index, rest = rest.split(".", 2)
        return f"middle_block.{2 * int(index) if part == 'resnets' else 1}.{rest}"
    block, part, index, rest = rest.split(".", 3)
    if where == "down_blocks":
        first = 1 + int(block) * (LAYERS + 1)
        if part == "downsamplers":
            return f"input_blocks.{first + LAYERS}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{first + int(index)}.{0 if part == 'resnets' else 1}.{rest}"
    first = int(block) * (LAYERS + 1)
    if part == "upsamplers":
        return f"output_blocks.{first + LAYERS}.{2 if f'up_blocks.{block}' in attended else 1}.{rest}"
    return f"output_blocks.{first + int(index)}.{0 if part == 'resnets' else 1}.{rest}"


def _vae(vae: Any) -> dict[str, Tensor]:
    levels = len(vae.config.block_out_channels)
    written = {}
    for key, tensor in vae.state_dict().items():
        name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            name = name.replace("to_out.0", "proj_out").replace("to_", "")
            # Linear here, a convolution over single pixels there.
            tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
        written[f"first_stage_model.{name}"] = tensor
    return written
