"""What one image costs in a transformer over patches (SD3, FLUX.1), from its config.json alone.

Like `runner.families.arithmetic` for UNets; tests compare it with torch's own counter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.families.arithmetic import Work

SD3_TEXT_TOKENS = 77 + 256
FLUX_TEXT_TOKENS = 512
TIME_WIDTH = 256
"""Number of sines and cosines that encode the time."""
KEPT_BY_JOINT, KEPT_BY_SECOND_ATTENTION, KEPT_BY_SINGLE = 12.5, 9.0, 12.0
"""Activations kept for the backward pass, in multiples of (width x tokens), with adapters on the attention."""


def count_sd3(config: Mapping[str, Any], *, latent_side: int) -> Work:
    """Count one image of `latent_side` x `latent_side` latents through an `SD3Transformer2DModel`."""
    counter = _Counter(config, (latent_side // int(config["patch_size"])) ** 2, SD3_TEXT_TOKENS)
    patch = int(config["in_channels"]) * int(config["patch_size"]) ** 2
    counter.ends(patch, embedders=1)
    layers, dual = int(config["num_layers"]), set(config.get("dual_attention_layers") or ())
    for layer in range(layers):
        counter.joint_block(text_goes_on=layer < layers - 1)
        if layer in dual:
            counter.second_attention()
    return counter.work


def count_flux(config: Mapping[str, Any], *, latent_side: int) -> Work:
    """Count one image of `latent_side` x `latent_side` latents through a `FluxTransformer2DModel`."""
    counter = _Counter(config, (latent_side // 2) ** 2, FLUX_TEXT_TOKENS)
    counter.ends(int(config["in_channels"]), embedders=2 if config.get("guidance_embeds") else 1)
    for _ in range(int(config["num_layers"])):
        counter.joint_block(text_goes_on=True)
    for _ in range(int(config["num_single_layers"])):
        counter.single_block()
    return counter.work


class _Counter:
    def __init__(self, config: Mapping[str, Any], image_tokens: int, text_tokens: int) -> None:
        self.config, self.work = config, Work()
        self.image, self.text = image_tokens, text_tokens
        self.width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])

    def ends(self, patch: int, *, embedders: int) -> None:
        """The layers before the first block and after the last; `embedders` counts inputs such as the time."""
        width = self.width
        self._product(patch, width, self.image)
        self._product(int(self.config["joint_attention_dim"]), width, self.text)
        for inputs in (*[TIME_WIDTH] * embedders, int(self.config["pooled_projection_dim"])):
            self._product(inputs, width, 1)
            self._product(width, width, 1)
        self._product(width, 2 * width, 1)
        self._product(width, patch, self.image)

    def joint_block(self, *, text_goes_on: bool) -> None:
        """Image and text, each with its own projections, in one attention; after the last, the text is not needed."""
        width = self.width
        for tokens, goes_on in ((self.image, True), (self.text, text_goes_on)):
            self._product(width, (6 if goes_on else 2) * width, 1)
            self._product(width, 3 * width, tokens)
            if goes_on:
                self._product(width, width, tokens)
                self._product(width, 8 * width, tokens)
        self._attention(self.image + self.text)
        self._keep(KEPT_BY_JOINT, self.image + self.text)

    def second_attention(self) -> None:
        """The attention of the image alone (SD3.5 medium), in the same block."""
        width = self.width
        self._product(width, 3 * width, 1)
        self._product(width, 4 * width, self.image)
        self._attention(self.image)
        kept = KEPT_BY_SECOND_ATTENTION * width * self.image
        self.work.kept += kept
        self.work.kept_in_largest = max(
            self.work.kept_in_largest, kept + KEPT_BY_JOINT * width * (self.image + self.text)
        )

    def single_block(self) -> None:
        """Image and text as one sequence, with attention and feed-forward in parallel."""
        width, tokens = self.width, self.image + self.text
        self._product(width, 3 * width, 1)
        self._product(width, 7 * width, tokens)
        self._product(5 * width, width, tokens)
        self._attention(tokens)
        self._keep(KEPT_BY_SINGLE, tokens)

    def _product(self, inputs: int, outputs: int, rows: int) -> None:
        self.work.products += 2 * inputs * outputs * rows
        self.work.parameters += inputs * outputs

    def _attention(self, tokens: int) -> None:
        self.work.attention += 4 * tokens * tokens * self.width

    def _keep(self, multiple: float, tokens: int) -> None:
        kept = multiple * self.width * tokens
        self.work.kept += kept
        self.work.kept_at_borders += self.width * tokens
        self.work.kept_in_largest = max(self.work.kept_in_largest, kept)
