"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, last hidden state, no size conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from runner.families.exports import Kohya
from runner.families.family import Text, TextStack, Tokenizers
from runner.families.known import FAMILIES
from runner.families.loading import load_component
from runner.families.noise import load_noise_schedule

adapter_components = ("unet", "text_encoder")
target_presets = FAMILIES["sd"].presets
export = Kohya({"unet": "lora_unet", "text_encoder": "lora_te"})
token_keys = {"text_encoder": "emb_params"}
controlled_pipeline = "StableDiffusionControlNetPipeline"
load_noise = load_noise_schedule
SD2_TEXT_WIDTH = 1024


def kohya_version(denoiser: nn.Module) -> str:
    """SD 2.x has a wider text encoder."""
    width: int = denoiser.config.cross_attention_dim  # type: ignore[union-attr,assignment]
    return "sd_v2" if width == SD2_TEXT_WIDTH else "sd_v1"


def zeros_for_empty(folder: Path) -> bool:
    """Without a prompt, it uses the encoded empty caption."""
    return False


def load_tokenizers(folder: Path) -> Tokenizers:
    """Its single tokenizer."""
    return Tokenizers([CLIPTokenizer.from_pretrained(folder / "tokenizer")])


def load_text(folder: Path, variant: str | None, dtype: torch.dtype) -> TextStack:
    """Tokenizer and text encoder, on the CPU."""
    encoder = load_component(CLIPTextModel, folder, "text_encoder", variant=variant, dtype=dtype)
    return TextStack(load_tokenizers(folder), [encoder], zeros_for_empty(folder))


def encode_text(text: TextStack, token_ids: Sequence[Tensor]) -> Text:
    """`embeds` `[N, L, D]`: the last hidden state, with the final layer norm."""
    return {"embeds": text.encoders[0](token_ids[0])[0]}


def load_denoiser(folder: Path, variant: str | None, dtype: torch.dtype) -> nn.Module:
    """The UNet, on the CPU."""
    return load_component(UNet2DConditionModel, folder, "unet", variant=variant, dtype=dtype)


def predict(denoiser: nn.Module, noisy_BCHW: Tensor, timesteps_B: Tensor, text: Text, time_ids_B6: Tensor) -> Tensor:
    """The UNet's output, `[B, C, H, W]`; image sizes are not an input of this family."""
    dtype = denoiser.get_parameter("conv_in.weight").dtype  # denoiser.dtype walks through all modules at every call
    output = denoiser(noisy_BCHW.to(dtype), timesteps_B, text["embeds"].to(dtype), return_dict=False)
    return output[0]  # type: ignore[no-any-return]


def pipeline(*, denoiser: nn.Module, text: TextStack | None, vae: nn.Module | None, scheduler: Any) -> Any:
    """A StableDiffusionPipeline around existing parts."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text.encoders[0] if text else None,
        tokenizer=text.tokenizers.each[0] if text else None,
        unet=denoiser,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def prompt_arguments(positive: Text, negative: Text) -> dict[str, Any]:
    """The pipeline's arguments for prompts that are already encoded."""
    return {"prompt_embeds": positive["embeds"], "negative_prompt_embeds": negative["embeds"]}


def save_adapter(folder: Path, layers: dict[str, dict[str, Tensor]], configs: dict[str, Any]) -> None:
    """Write `pytorch_lora_weights.safetensors` with peft keys and the adapters' configuration."""
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=layers.get("unet"),
        text_encoder_lora_layers=layers.get("text_encoder"),
        unet_lora_adapter_metadata=configs.get("unet"),
        text_encoder_lora_adapter_metadata=configs.get("text_encoder"),
    )
