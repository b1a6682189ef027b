"""What the training loop knows about a model family: a few functions, with the same names in each family's file.

# Shape suffixes: N captions, B samples, L text tokens, D text width, P pooled width, C H W latents or pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from runner.families.exports import Layout
from runner.families.process import NoiseProcess
from runner.families.targets import Presets
from runner.schema import ModelSettings

Text = dict[str, Tensor]
"""Encoded captions: named tensors with one row per caption; only the family knows the names."""


def is_text_encoder(component: str) -> bool:
    """Whether a component is a text encoder; among those with adapters, any other is the denoiser."""
    return component.startswith("text_encoder")


class Tokenizers:
    """The tokenizers of a model, in its order.

    Args:
        lengths: the token count that each pads and truncates to; by default the tokenizers' own.
    """

    def __init__(self, tokenizers: Sequence[Any], lengths: Sequence[int] | None = None) -> None:
        self.each = list(tokenizers)
        self.lengths = [int(each.model_max_length) for each in self.each] if lengths is None else list(lengths)

    def ids(self, captions: Sequence[str]) -> list[Tensor]:
        """Padded token ids for each tokenizer, `[N, L]`; captions that are too long are truncated."""
        return [
            tokenizer(
                list(captions),
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            for tokenizer, length in zip(self.each, self.lengths, strict=True)
        ]

    @property
    def limit(self) -> int:
        """The most tokens a caption may have, including begin and end: as many as the longest tokenizer takes."""
        return max(self.lengths)

    def too_long(self, captions: Sequence[str]) -> list[str]:
        """The captions whose end no encoder reads. CLIP reading less of them than T5 is part of the model's design."""
        readers = [each for each, length in zip(self.each, self.lengths, strict=True) if length == self.limit]
        return [
            caption
            for caption in captions
            if any(len(each(caption, truncation=False, verbose=False).input_ids) > self.limit for each in readers)
        ]


@dataclasses.dataclass
class TextStack:
    """The tokenizers and text encoders of a model, in its order."""

    tokenizers: Tokenizers
    encoders: list[nn.Module]
    zeros_for_empty: bool
    beyond_gpu: bool = dataclasses.field(default=False, init=False)
    """Whether they turned out not to fit on a GPU while encoding."""


class Family(Protocol):
    """One family's file."""

    adapter_components: tuple[str, ...]
    """Components that can carry adapters, by their names in the pipeline: the denoiser, then text encoders in the order
    of `TextStack`."""
    target_presets: Presets
    """What the names in `lora.targets` stand for."""
    export: Layout
    """The layout of the file for ComfyUI and others."""
    token_keys: Mapping[str, str]
    """Text encoder -> key of its vectors in the file of a new word; empty if the family cannot learn new words."""
    controlled_pipeline: str | None
    """The diffusers class that draws with a ControlNet; None if this family has none here."""

    def kohya_version(self, denoiser: nn.Module) -> str:
        """The `ss_base_model_version` of the kohya header."""

    def load_noise(self, folder: Path, settings: ModelSettings) -> NoiseProcess:
        """How the model's latents become noisy."""

    def zeros_for_empty(self, folder: Path) -> bool:
        """Whether the unconditional embedding is zeros (SDXL) or the encoded empty caption."""

    def load_tokenizers(self, folder: Path) -> Tokenizers:
        """The tokenizers alone, which load quickly."""

    def load_text(self, folder: Path, variant: str | None, dtype: torch.dtype) -> TextStack:
        """Tokenizers and text encoders, on the CPU."""

    def encode_text(self, text: TextStack, token_ids: Sequence[Tensor]) -> Text:
        """Encode token ids `[N, L]`, one tensor per tokenizer."""

    def load_denoiser(self, folder: Path, variant: str | None, dtype: torch.dtype) -> nn.Module:
        """The frozen network that is adapted, on the CPU."""

    def predict(
        self, denoiser: nn.Module, noisy_BCHW: Tensor, timesteps_B: Tensor, text: Text, time_ids_B6: Tensor
    ) -> Tensor:
        """The denoiser's output, `[B, C, H, W]`, for text with one row per sample."""

    def pipeline(self, *, denoiser: nn.Module, text: TextStack | None, vae: nn.Module | None, scheduler: Any) -> Any:
        """A diffusers pipeline around existing parts; it can load adapters and, with a VAE, sample latents.

        Latents are `[B, C, H, W]`. It uses the VAE only for how much smaller latents are than images.
        """

    def prompt_arguments(self, positive: Text, negative: Text) -> dict[str, Any]:
        """The pipeline's arguments for prompts that are already encoded."""

    def save_adapter(self, folder: Path, layers: dict[str, dict[str, Tensor]], configs: dict[str, Any]) -> None:
        """Write `pytorch_lora_weights.safetensors` with peft keys and the adapters' configuration."""
