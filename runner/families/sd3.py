"""Stable Diffusion 3 and 3.5: two CLIP text encoders and T5, a transformer over patches, flow matching."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from runner.families.exports import Peft
from runner.families.family import Text, TextStack, Tokenizers
from runner.families.flow import load_flow_matching
from runner.families.known import FAMILIES
from runner.families.layout import config_of, index_of
from runner.families.loading import load_component

adapter_components = ("transformer", "text_encoder", "text_encoder_2")
target_presets = FAMILIES["sd3"].presets
export = Peft()
token_keys: dict[str, str] = {}
controlled_pipeline = None
load_noise = load_flow_matching
T5_TOKENS = 256
"""As many as the pipeline reads and the model was trained on."""


@dataclasses.dataclass
class Stack(TextStack):
    """Tokenizers and encoders, possibly without T5."""

    width: int
    """Width of a token as the transformer takes it: that of T5."""


def kohya_version(denoiser: nn.Module) -> str:
    """3.5 normalises queries and keys, 3 does not."""
    norm: str | None = denoiser.config.qk_norm  # type: ignore[union-attr,assignment]
    return "sd3.5" if norm else "sd3_medium"


def zeros_for_empty(folder: Path) -> bool:
    """Without a prompt, it uses the encoded empty caption."""
    return False


def load_tokenizers(folder: Path) -> Tokenizers:
    """The two of CLIP, and T5's if the model has it."""
    tokenizers: list[Any] = [CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")]
    lengths = [int(tokenizer.model_max_length) for tokenizer in tokenizers]
    if _has_t5(folder):
        tokenizers.append(T5Tokenizer.from_pretrained(folder / "tokenizer_3"))
        lengths.append(T5_TOKENS)
    return Tokenizers(tokenizers, lengths)


def load_text(folder: Path, variant: str | None, dtype: torch.dtype) -> TextStack:
    """Tokenizers and text encoders, on the CPU."""
    kinds = {"text_encoder": CLIPTextModelWithProjection, "text_encoder_2": CLIPTextModelWithProjection}
    if _has_t5(folder):
        kinds["text_encoder_3"] = T5EncoderModel
    encoders = [load_component(kind, folder, name, variant=variant, dtype=dtype) for name, kind in kinds.items()]
    config = config_of(folder, "transformer")
    return Stack(load_tokenizers(folder), encoders, zeros_for_empty(folder), width=config["joint_attention_dim"])


def encode_text(text: TextStack, token_ids: Sequence[Tensor]) -> Text:
    """`embeds` `[N, L, D]`: CLIP's penultimate states side by side, then T5's; `pooled` `[N, P]`: that of both CLIPs.

    CLIP's states are padded with zeros to T5's width; without T5, zeros replace all its tokens.
    """
    assert isinstance(text, Stack), text
    clip = [
        encoder(ids, output_hidden_states=True) for encoder, ids in zip(text.encoders[:2], token_ids[:2], strict=True)
    ]
    embeds_NLD = torch.cat([output.hidden_states[-2] for output in clip], dim=-1)
    embeds_NLD = F.pad(embeds_NLD, (0, text.width - embeds_NLD.shape[-1]))
    if len(text.encoders) > 2:
        embeds_NLD = torch.cat([embeds_NLD, text.encoders[2](token_ids[2])[0]], dim=1)
    else:
        embeds_NLD = F.pad(embeds_NLD, (0, 0, 0, T5_TOKENS))
    return {"embeds": embeds_NLD, "pooled": torch.cat([output.text_embeds for output in clip], dim=-1)}


def load_denoiser(folder: Path, variant: str | None, dtype: torch.dtype) -> nn.Module:
    """The transformer, on the CPU."""
    return load_component(SD3Transformer2DModel, folder, "transformer", variant=variant, dtype=dtype)


def predict(denoiser: nn.Module, noisy_BCHW: Tensor, timesteps_B: Tensor, text: Text, time_ids_B6: Tensor) -> Tensor:
    """The transformer's output, `[B, C, H, W]`; image sizes are not an input of this family."""
    dtype = next(denoiser.parameters()).dtype  # denoiser.dtype walks through all modules at every call
    output = denoiser(
        hidden_states=noisy_BCHW.to(dtype),
        timestep=timesteps_B,
        encoder_hidden_states=text["embeds"].to(dtype),
        pooled_projections=text["pooled"].to(dtype),
        return_dict=False,
    )
    return output[0]  # type: ignore[no-any-return]


def pipeline(*, denoiser: nn.Module, text: TextStack | None, vae: nn.Module | None, scheduler: Any) -> Any:
    """A StableDiffusion3Pipeline around existing parts."""
    encoders = [*(text.encoders if text else []), None, None, None]
    tokenizers = [*(text.tokenizers.each if text else []), None, None, None]
    return StableDiffusion3Pipeline(
        vae=vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        text_encoder_3=encoders[2],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        tokenizer_3=tokenizers[2],
        transformer=denoiser,
        scheduler=scheduler,
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
    StableDiffusion3Pipeline.save_lora_weights(
        folder,
        transformer_lora_layers=layers.get("transformer"),
        text_encoder_lora_layers=layers.get("text_encoder"),
        text_encoder_2_lora_layers=layers.get("text_encoder_2"),
        transformer_lora_adapter_metadata=configs.get("transformer"),
        text_encoder_lora_adapter_metadata=configs.get("text_encoder"),
        text_encoder_2_lora_adapter_metadata=configs.get("text_encoder_2"),
    )


def _has_t5(folder: Path) -> bool:
    index = index_of(folder)
    return bool(index.get("text_encoder_3", [None])[0])
