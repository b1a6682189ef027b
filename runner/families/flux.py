"""FLUX.1: CLIP's pooled embedding and T5, a transformer over packed latents that takes a guidance scale as input.

# Shape suffixes, in addition to those of `family.py`: T image tokens, of 2 x 2 latents each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from runner.families.exports import Peft
from runner.families.family import Text, TextStack, Tokenizers
from runner.families.flow import load_flow_matching
from runner.families.known import FAMILIES
from runner.families.loading import load_component

adapter_components = ("transformer", "text_encoder")
target_presets = FAMILIES["flux"].presets
export = Peft()
token_keys: dict[str, str] = {}
controlled_pipeline = None
load_noise = load_flow_matching
T5_TOKENS = 512
"""As many as the pipeline reads and the model was trained on."""
TRAINING_GUIDANCE = 1.0
"""Input of a guidance-distilled model during training: no guidance, because the images are real."""


def kohya_version(denoiser: nn.Module) -> str:
    """One version so far."""
    return "flux1"


def zeros_for_empty(folder: Path) -> bool:
    """Without a prompt, it uses the encoded empty caption."""
    return False


def load_tokenizers(folder: Path) -> Tokenizers:
    """The tokenizers of CLIP and T5."""
    clip = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    t5 = T5Tokenizer.from_pretrained(folder / "tokenizer_2")
    return Tokenizers([clip, t5], [int(clip.model_max_length), T5_TOKENS])


def load_text(folder: Path, variant: str | None, dtype: torch.dtype) -> TextStack:
    """Tokenizers and text encoders, on the CPU."""
    encoders = [
        load_component(CLIPTextModel, folder, "text_encoder", variant=variant, dtype=dtype),
        load_component(T5EncoderModel, folder, "text_encoder_2", variant=variant, dtype=dtype),
    ]
    return TextStack(load_tokenizers(folder), encoders, zeros_for_empty(folder))


def encode_text(text: TextStack, token_ids: Sequence[Tensor]) -> Text:
    """`embeds` `[N, L, D]`: T5's last hidden state; `pooled` `[N, P]`: CLIP's, without a projection."""
    return {
        "embeds": text.encoders[1](token_ids[1])[0],
        "pooled": text.encoders[0](token_ids[0]).pooler_output,
    }


def load_denoiser(folder: Path, variant: str | None, dtype: torch.dtype) -> nn.Module:
    """The transformer, on the CPU."""
    return load_component(FluxTransformer2DModel, folder, "transformer", variant=variant, dtype=dtype)


def predict(denoiser: nn.Module, noisy_BCHW: Tensor, timesteps_B: Tensor, text: Text, time_ids_B6: Tensor) -> Tensor:
    """The transformer's output, `[B, C, H, W]`; it takes tokens of 2 x 2 latents, and a noise level from 0 to 1."""
    dtype = next(denoiser.parameters()).dtype  # denoiser.dtype walks through all modules at every call
    config: Any = denoiser.config
    height, width = noisy_BCHW.shape[2:]
    guidance_B = (
        torch.full_like(timesteps_B, TRAINING_GUIDANCE, dtype=torch.float32) if config.guidance_embeds else None
    )
    output = denoiser(
        hidden_states=packed(noisy_BCHW.to(dtype)),
        timestep=timesteps_B.float() / 1000,
        guidance=guidance_B,
        pooled_projections=text["pooled"].to(dtype),
        encoder_hidden_states=text["embeds"].to(dtype),
        txt_ids=torch.zeros(text["embeds"].shape[1], 3, device=noisy_BCHW.device),
        img_ids=_positions(height // 2, width // 2, noisy_BCHW.device),
        return_dict=False,
    )
    return unpacked(output[0], height, width)


def packed(latents_BCHW: Tensor) -> Tensor:
    """Latents as a sequence of tokens, `[B, T, 4 C]`."""
    squares = latents_BCHW.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # B C H/2 2 W/2 2
    tokens: Tensor = squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return tokens


def unpacked(tokens_BTD: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `packed`, `[B, C, H, W]`."""
    squares = tokens_BTD.unflatten(2, (-1, 2, 2)).unflatten(1, (height // 2, width // 2))  # B H/2 W/2 C 2 2
    latents: Tensor = squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    return latents


def _positions(rows: int, columns: int, device: torch.device) -> Tensor:
    """The position of each token in the image, `[T, 3]`; the first number is reserved for other uses."""
    row_T = torch.arange(rows, device=device, dtype=torch.float32).repeat_interleave(columns)
    column_T = torch.arange(columns, device=device, dtype=torch.float32).repeat(rows)
    return torch.stack([torch.zeros_like(row_T), row_T, column_T], dim=1)


class _Pipeline(FluxPipeline):  # type: ignore[misc]
    """Returns latents in the shape other pipelines use, not as a sequence of tokens."""

    def __call__(self, *, height: int, width: int, output_type: str = "pil", **arguments: Any) -> Any:
        drawn = super().__call__(height=height, width=width, output_type=output_type, **arguments)
        if output_type == "latent":
            scale = self.vae_scale_factor
            drawn.images = unpacked(drawn.images, height // scale, width // scale)
        return drawn


def pipeline(*, denoiser: nn.Module, text: TextStack | None, vae: nn.Module | None, scheduler: Any) -> Any:
    """A FluxPipeline around existing parts."""
    encoders = text.encoders if text else [None, None]
    tokenizers = text.tokenizers.each if text else [None, None]
    return _Pipeline(
        vae=vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        transformer=denoiser,
        scheduler=scheduler,
    )


def prompt_arguments(positive: Text, negative: Text) -> dict[str, Any]:
    """The pipeline's arguments for prompts that are already encoded; there is no negative one."""
    return {"prompt_embeds": positive["embeds"], "pooled_prompt_embeds": positive["pooled"]}


def save_adapter(folder: Path, layers: dict[str, dict[str, Tensor]], configs: dict[str, Any]) -> None:
    """Write `pytorch_lora_weights.safetensors` with peft keys and the adapters' configuration."""
    FluxPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=layers.get("transformer"),
        text_encoder_lora_layers=layers.get("text_encoder"),
        transformer_lora_adapter_metadata=configs.get("transformer"),
        text_encoder_lora_adapter_metadata=configs.get("text_encoder"),
    )
