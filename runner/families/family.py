"""What the training loop knows of a model family: a handful of functions, the same names in each family's file.

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
"""Encoded captions: named tensors, a row for each caption; which names, only the family knows."""


def is_text_encoder(component: str) -> bool:
    """Whether a component is a text encoder; of those with adapters, all others are the denoiser."""
    return component.startswith("text_encoder")


class Tokenizers:
    """The tokenizers of a model, in its order.

    Args:
        lengths: tokens that each pads and cuts to; none given means what the tokenizers themselves say.
    """

    def __init__(self, tokenizers: Sequence[Any], lengths: Sequence[int] | None = None) -> None:
        self.each = list(tokenizers)
        self.lengths = [int(each.model_max_length) for each in self.each] if lengths is None else list(lengths)

    def ids(self, captions: Sequence[str]) -> list[Tensor]:
        """Padded token ids for each tokenizer, `[N, L]`; too long captions are cut."""
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
        """Tokens a caption may have, its begin and end included: as many as the longest reader takes."""
        return max(self.lengths)

    def too_long(self, captions: Sequence[str]) -> list[str]:
        """The captions whose end no encoder reads; that CLIP reads less of them than T5 is as it was made."""
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
    """Whether a GPU was found not to hold them while they encode."""


class Family(Protocol):
    """One family's file."""

    adapter_components: tuple[str, ...]
    """Components that can carry adapters, by their names in the pipeline: the denoiser, and text encoders in the order
    of `TextStack`."""
    target_presets: Presets
    """What the names in `lora.targets` stand for."""
    export: Layout
    """The layout of the file for ComfyUI and others."""
    token_keys: Mapping[str, str]
    """Text encoder -> key of its vectors in the file of a new word; empty where the family is taught none."""
    controlled_pipeline: str | None
    """Class of diffusers that draws with a ControlNet; None where none is used here."""

    def kohya_version(self, denoiser: nn.Module) -> str:
        """`ss_base_model_version` in the kohya header."""

    def load_noise(self, folder: Path, settings: ModelSettings) -> NoiseProcess:
        """How the model's latents become noisy."""

    def zeros_for_empty(self, folder: Path) -> bool:
        """Whether the unconditional embedding is zeros (SDXL) or the encoded empty caption."""

    def load_tokenizers(self, folder: Path) -> Tokenizers:
        """The tokenizers alone, which are quick to read."""

    def load_text(self, folder: Path, variant: str | None, dtype: torch.dtype) -> TextStack:
        """Tokenizers and text encoders, on the CPU."""

    def encode_text(self, text: TextStack, token_ids: Sequence[Tensor]) -> Text:
        """Encode `[N, L]` token ids (one tensor for each tokenizer)."""

    def load_denoiser(self, folder: Path, variant: str | None, dtype: torch.dtype) -> nn.Module:
        """The frozen network that is adapted, on the CPU."""

    def predict(
        self, denoiser: nn.Module, noisy_BCHW: Tensor, timesteps_B: Tensor, text: Text, time_ids_B6: Tensor
    ) -> Tensor:
        """The denoiser's output, `[B, C, H, W]`, for text with a row for each sample."""

    def pipeline(self, *, denoiser: nn.Module, text: TextStack | None, vae: nn.Module | None, scheduler: Any) -> Any:
        """A diffusers pipeline around parts in use; it can load adapters and, with a VAE, sample latents.

        Latents are `[B, C, H, W]`. From the VAE it takes only how much smaller latents are than images.
        """

    def prompt_arguments(self, positive: Text, negative: Text) -> dict[str, Any]:
        """The pipeline's arguments for already encoded prompts."""

    def save_adapter(self, folder: Path, layers: dict[str, dict[str, Tensor]], configs: dict[str, Any]) -> None:
        """Write `pytorch_lora_weights.safetensors` with peft keys and the adapters' configuration."""
