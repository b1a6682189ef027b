"""What the training loop knows of a model family: a handful of functions, the same names in each family's file.

# Shape suffixes: N captions, B samples, L text tokens, D text width, P pooled width, C H W latents or pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Text = dict[str, Tensor]
"""Encoded captions: named tensors, a row for each caption; which names, only the family knows."""


class Tokenizers:
    """The tokenizers of a model, in its order."""

    def __init__(self, tokenizers: Sequence[Any]) -> None:
        self.each = list(tokenizers)

    def ids(self, captions: Sequence[str]) -> list[Tensor]:
        """Padded token ids for each tokenizer, `[N, L]`; too long captions are cut."""
        return [
            tokenizer(
                list(captions),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            for tokenizer in self.each
        ]

    @property
    def limit(self) -> int:
        """Tokens a caption may have, its begin and end included."""
        return min(int(tokenizer.model_max_length) for tokenizer in self.each)

    def too_long(self, captions: Sequence[str]) -> list[str]:
        """The captions that do not fit, and are cut."""
        return [
            caption
            for caption in captions
            if any(
                len(tokenizer(caption, truncation=False, verbose=False).input_ids) > self.limit
                for tokenizer in self.each
            )
        ]


@dataclasses.dataclass
class TextStack:
    """The tokenizers and text encoders of a model, in its order."""

    tokenizers: Tokenizers
    encoders: list[nn.Module]
    zeros_for_empty: bool


class Family(Protocol):
    """One family's file."""

    adapter_components: tuple[str, ...]
    """Components that can carry adapters, by their names in the pipeline; the denoiser is the first."""
    kohya_prefixes: dict[str, str]
    """Component -> prefix of its keys in the kohya layout."""

    def kohya_version(self, denoiser: nn.Module) -> str:
        """`ss_base_model_version` in the kohya header."""

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

        From the VAE it takes only how much smaller latents are than images.
        """

    def prompt_arguments(self, positive: Text, negative: Text) -> dict[str, Any]:
        """The pipeline's arguments for already encoded prompts."""

    def save_adapter(self, folder: Path, layers: dict[str, dict[str, Tensor]], configs: dict[str, Any]) -> None:
        """Write `pytorch_lora_weights.safetensors` with peft keys and the adapters' configuration."""
