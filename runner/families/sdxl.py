"""Stable Diffusion XL: two CLIP text encoders, penultimate states, a pooled embedding and the image's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from runner.families.exports import Kohya
from runner.families.family import Text, TextStack, Tokenizers
from runner.families.known import FAMILIES
from runner.families.layout import has_zeros_for_empty, index_of
from runner.families.loading import load_component
from runner.families.noise import load_noise_schedule
from runner.families.original import AROUND

adapter_components = ("unet", "text_encoder", "text_encoder_2")
target_presets = FAMILIES["sdxl"].presets
export = Kohya(
    {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    # diffusers (0.42.1) reads these only by their names in the original code.
    renamed={name: AROUND[name] for name in ("add_embedding.linear_1", "add_embedding.linear_2")},
)
token_keys = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
controlled_pipeline = "StableDiffusionXLControlNetPipeline"
load_noise = load_noise_schedule


def kohya_version(denoiser: nn.Module) -> str:
    """One version so far."""
    return "sdxl_base_v1-0"


def zeros_for_empty(folder: Path) -> bool:
    """Without a prompt, it uses zeros, unless the model's index says otherwise."""
    return has_zeros_for_empty(index_of(folder))


def load_tokenizers(folder: Path) -> Tokenizers:
    """Both tokenizers; they pad differently."""
    return Tokenizers([CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")])


def load_text(folder: Path, variant: str | None, dtype: torch.dtype) -> TextStack:
    """Both tokenizers and text encoders, on the CPU."""
    encoders = [
        load_component(CLIPTextModel, folder, "text_encoder", variant=variant, dtype=dtype),
        load_component(CLIPTextModelWithProjection, folder, "text_encoder_2", variant=variant, dtype=dtype),
    ]
    return TextStack(load_tokenizers(folder), encoders, zeros_for_empty(folder))


def encode_text(text: TextStack, token_ids: Sequence[Tensor]) -> Text:
    """`embeds` `[N, L, D1 + D2]`: penultimate states without the final norm; `pooled` `[N, P]`: that of the second."""
    outputs = [encoder(ids, output_hidden_states=True) for encoder, ids in zip(text.encoders, token_ids, strict=True)]
    return {
        "embeds": torch.cat([output.hidden_states[-2] for output in outputs], dim=-1),
        "pooled": outputs[1].text_embeds,
    }


def load_denoiser(folder: Path, variant: str | None, dtype: torch.dtype) -> nn.Module:
    """The UNet, on the CPU."""
    return load_component(UNet2DConditionModel, folder, "unet", variant=variant, dtype=dtype)


def predict(denoiser: nn.Module, noisy_BCHW: Tensor, timesteps_B: Tensor, text: Text, time_ids_B6: Tensor) -> Tensor:
    """The UNet's output, `[B, C, H, W]`.

    The sizes stay in fp32: bf16 represents integers exactly only up to 256, and the UNet embeds them in fp32.
    """
    dtype = denoiser.get_parameter("conv_in.weight").dtype  # denoiser.dtype walks through all modules at every call
    output = denoiser(
        noisy_BCHW.to(dtype),
        timesteps_B,
        text["embeds"].to(dtype),
        added_cond_kwargs={"text_embeds": text["pooled"].to(dtype), "time_ids": time_ids_B6},
        return_dict=False,
    )
    return output[0]  # type: ignore[no-any-return]


def pipeline(*, denoiser: nn.Module, text: TextStack | None, vae: nn.Module | None, scheduler: Any) -> Any:
    """A StableDiffusionXLPipeline around existing parts."""
    encoders = text.encoders if text else [None, None]
    tokenizers = text.tokenizers.each if text else [None, None]
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=denoiser,
        scheduler=scheduler,
        add_watermarker=False,
    )


def prompt_arguments(positive: Text, negative: Text) -> dict[str, Any]:
    """The pipeline's arguments for prompts that are already encoded."""
    return {
        "prompt_embeds": positive["embeds"],
        "pooled_prompt_embeds": positive["pooled"],
        "negative_prompt_embeds": negative["embeds"],
        "negative_pooled_prompt_embeds": negative["pooled"],
    }


def save_adapter(folder: Path, layers: dict[str, dict[str, Tensor]], configs: dict[str, Any]) -> None:
    """Write `pytorch_lora_weights.safetensors` with peft keys and the adapters' configuration."""
    StableDiffusionXLPipeline.save_lora_weights(
        folder,
        unet_lora_layers=layers.get("unet"),
        text_encoder_lora_layers=layers.get("text_encoder"),
        text_encoder_2_lora_layers=layers.get("text_encoder_2"),
        unet_lora_adapter_metadata=configs.get("unet"),
        text_encoder_lora_adapter_metadata=configs.get("text_encoder"),
        text_encoder_2_lora_adapter_metadata=configs.get("text_encoder_2"),
    )
