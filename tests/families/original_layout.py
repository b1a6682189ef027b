"""A miniature as one file in the layout of the original code: the reverse of diffusers' conversion."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
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
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
OPEN_CLIP = {
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
    "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
}
SD3 = {
    "pos_embed.proj": "x_embedder.proj",
    "pos_embed.pos_embed": "pos_embed",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "transformer_blocks": "joint_blocks",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
}
FUSED = {
    "attn.to_{}": "x_block.attn.qkv",
    "attn2.to_{}": "x_block.attn2.qkv",
    "attn.add_{}_proj": "context_block.attn.qkv",
}


def write_original(pipeline: Any, file: Path) -> Path:
    """Write an SD1.5-, SDXL- or SD3-shaped pipeline."""
    tensors = {
        **(_unet(pipeline.unet) if hasattr(pipeline, "unet") else _sd3(pipeline.transformer)),
        **_vae(pipeline.vae),
        **TEXT[type(pipeline).__name__](pipeline),
    }
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, file)
    return file


def _clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}text_model.{key.removeprefix('text_model.')}": tensor
        for key, tensor in encoder.state_dict().items()
        if not key.startswith("text_projection")
    }


def _open_clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    state = {key.removeprefix("text_model."): tensor for key, tensor in encoder.state_dict().items()}
    written = {"text_projection": state.pop("text_projection.weight").T}
    for key in [key for key in state if ".q_proj." in key]:
        parts = [state.pop(key.replace("q_proj", f"{each}_proj")) for each in "qkv"]
        state[key.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    written |= {_renamed(key, OPEN_CLIP): tensor for key, tensor in state.items()}
    return {prefix + key: tensor for key, tensor in written.items()}


def _t5(encoder: Any) -> dict[str, Tensor]:
    state = dict(encoder.state_dict()) if encoder is not None else {}
    state.pop("encoder.embed_tokens.weight", None)  # the same tensor as shared.weight
    return {f"text_encoders.t5xxl.transformer.{key}": tensor for key, tensor in state.items()}


TEXT: dict[str, Callable[[Any], dict[str, Tensor]]] = {
    "StableDiffusionPipeline": lambda model: _clip(model.text_encoder, "cond_stage_model.transformer."),
    "StableDiffusionXLPipeline": lambda model: {
        **_clip(model.text_encoder, "conditioner.embedders.0.transformer."),
        **_open_clip(model.text_encoder_2, "conditioner.embedders.1.model."),
    },
    "StableDiffusion3Pipeline": lambda model: {
        **_clip(model.text_encoder, "text_encoders.clip_l.transformer."),
        **_clip(model.text_encoder_2, "text_encoders.clip_g.transformer."),
        "text_encoders.clip_g.transformer.text_projection.weight": model.text_encoder_2.text_projection.weight.data,
        **_t5(model.text_encoder_3),
    },
}


def _sd3(transformer: Any) -> dict[str, Tensor]:
    state = dict(transformer.state_dict())
    written: dict[str, Tensor] = {}
    last = f"transformer_blocks.{transformer.config.num_layers - 1}.norm1_context.linear"
    for key in list(state):
        # The halves of the last modulations are swapped there.
        if key.startswith((last, "norm_out.linear")):
            state[key] = torch.cat(state[key].chunk(2)[::-1])
    for separate, fused in FUSED.items():
        for key in [key for key in state if f".{separate.format('q')}." in key]:
            parts = [state.pop(key.replace(separate.format("q"), separate.format(each))) for each in "qkv"]
            written[key.replace(separate.format("q"), fused)] = torch.cat(parts)
    written |= state
    renamed = {
        "final_layer.linear." + key.removeprefix("proj_out.") if key.startswith("proj_out.") else key: tensor
        for key, tensor in written.items()
    }
    return {f"model.diffusion_model.{_renamed(key, SD3)}": tensor for key, tensor in renamed.items()}


def _renamed(key: str, names: Mapping[str, str]) -> str:
    for name, original in names.items():
        key = re.sub(rf"(?<![\w]){re.escape(name)}(?![\w])", original, key)
    return key


def _unet(unet: Any) -> dict[str, Tensor]:
    attended = {name.split(".attentions")[0] for name, _ in unet.named_modules() if ".attentions" in name}
    return {f"model.diffusion_model.{_unet_key(key, attended)}": tensor for key, tensor in unet.state_dict().items()}


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
            # Linear here, a 1x1 convolution there.
            tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
        written[f"first_stage_model.{name}"] = tensor
    return written
