"""Writes a model in diffusers layout as one file in the layout of the original code, for ComfyUI and A1111.

The inverse of what `single_file` reads, for Stable Diffusion 1.x and XL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.errors import ModelError
from runner.families.layout import config_of
from runner.families.original import original_names
from runner.families.single_file import V_PREDICTION, VELOCITY_MARK, ZERO_SNR_MARK
from runner.paths import atomic_file
from runner.system.tensor_file import TEXT_MODEL, order_metadata

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = {"sd": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
OPEN_CLIP = "conditioner.embedders.1.model."
OPEN_CLIP_LAYERS = {
    "encoder.layers.": "transformer.resblocks.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.": ".attn.",
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.": "ln_final.",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
SD2_TEXT_WIDTH = 1024


def write_single_file(folder: Path, file: Path, family: str, *, about: Mapping[str, str]) -> None:
    """Write the UNet, text encoders and VAE of a folder written by `save_pretrained`, in their own precision.

    Args:
        about: the metadata for the header.

    Raises:
        ModelError: this model cannot be written in that layout.
    """
    tensors = {UNET + key: tensor for key, tensor in _unet(folder / "unet").items()}
    tensors |= {VAE + key: tensor for key, tensor in _vae(folder / "vae").items()}
    tensors |= {CLIP[family] + key: tensor for key, tensor in _clip(folder / "text_encoder").items()}
    if family == "sdxl":
        tensors |= {OPEN_CLIP + key: tensor for key, tensor in _open_clip(folder / "text_encoder_2").items()}
    tensors |= _prediction_marks(folder, like=next(iter(tensors.values())))
    with atomic_file(file) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary, metadata=dict(about))
        order_metadata(temporary)


def _prediction_marks(folder: Path, *, like: Tensor) -> dict[str, Tensor]:
    scheduler = config_of(folder, "scheduler")
    marks = {VELOCITY_MARK: scheduler.get("prediction_type") == V_PREDICTION}
    marks[ZERO_SNR_MARK] = bool(scheduler.get("rescale_betas_zero_snr"))
    return {name: like.new_empty(0) for name, marked in marks.items() if marked}


def single_file_reason(folder: Path, family: str, *, prediction: str | None) -> str:
    """Why a model cannot be a single file; empty if it can.

    Args:
        prediction: what the settings say the model predicts; None to ask its sampler.
    """
    config = config_of(folder, "unet")
    if config.get("cross_attention_dim") == SD2_TEXT_WIDTH:
        return "Stable Diffusion 2.x lost a layer of its text encoder in diffusers, and has no way back"
    said = config_of(folder, "scheduler").get("prediction_type") if prediction is None else prediction
    if family == "sd" and said == V_PREDICTION:
        return "it predicts velocity, which programs cannot tell from a single file of Stable Diffusion 1.x"
    if not isinstance(config.get("layers_per_block"), int):
        return "its UNet has another number of layers from block to block, which the original code does not know"
    return ""


def _tensors(folder: Path) -> dict[str, Tensor]:
    return {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}


def _unet(folder: Path) -> dict[str, Tensor]:
    state = _tensors(folder)
    layers = {key.rpartition(".")[0] for key in state}
    names = original_names(layers, config_of(folder)["layers_per_block"])
    if unknown := sorted(layers - names.keys()):
        raise ModelError(f"model: its UNet has {unknown[0]}, which the original code does not; take output=folder")
    return {f"{names[layer]}.{kind}": state[f"{layer}.{kind}"] for layer, _, kind in (k.rpartition(".") for k in state)}


def _vae(folder: Path) -> dict[str, Tensor]:
    last = len(config_of(folder)["block_out_channels"]) - 1
    written = {}
    for key, tensor in _tensors(folder).items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", key)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
        # The original code counts from the image, diffusers from the latents.
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda found: f"up.{last - int(found[1])}.block.", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda found: f"up.{last - int(found[1])}.upsample.", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        if found := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)", name):
            name = f"{found[1]}.mid.attn_1.{VAE_ATTENTION[found[2]]}.{found[3]}"
            # A linear layer in diffusers, a 1x1 convolution in the original code.
            tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
        written[name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")] = tensor
    return written


def _clip(folder: Path) -> dict[str, Tensor]:
    # transformers dropped this prefix from its module names; some of its files still have it.
    return {TEXT_MODEL + key.removeprefix(TEXT_MODEL): tensor for key, tensor in _tensors(folder).items()}


def _open_clip(folder: Path) -> dict[str, Tensor]:
    state = {key.removeprefix(TEXT_MODEL): tensor for key, tensor in _tensors(folder).items()}
    written = {"text_projection": state.pop("text_projection.weight").T}
    for key in [key for key in state if ".q_proj." in key]:
        parts = [state.pop(key.replace(".q_proj.", f".{each}_proj.")) for each in "qkv"]
        state[key.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    for key, tensor in state.items():
        name = key
        for ours, theirs in OPEN_CLIP_LAYERS.items():
            name = name.replace(ours, theirs)
        written[name] = tensor
    return written
