"""What one image costs in a UNet: floating-point operations and activations kept, from its config.json alone.

For predictions before anything is loaded, so it does not use torch. Counts what the architecture of
`UNet2DConditionModel` computes; tests compare it with torch's own counter on the real shapes (SDXL at 1024 px: 14.2
TFLOP forward and backward, 5.6 GB).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

TEXT_TOKENS = 77


@dataclasses.dataclass
class Work:
    """The cost of a forward pass of one image."""

    products: float = 0.0
    """Operations of linear layers and convolutions; a multiply-add counts as two."""
    attention: float = 0.0
    """Operations of the products inside attention."""
    kept: float = 0.0
    """Numbers kept for the backward pass."""
    kept_at_borders: float = 0.0
    """Of these, the inputs of blocks: all that gradient checkpointing keeps, ..."""
    kept_in_largest: float = 0.0
    """... apart from the one block that it recomputes at a time."""
    parameters: float = 0.0
    in_convolutions: float = 0.0
    """The parameters that belong to convolutions; linear layers have the others."""

    def training_flop(self, *, checkpointing: bool) -> float:
        """Operations of forward and backward for one image: frozen layers need only the gradient of their input,
        attention that of both factors; gradient checkpointing runs the forward pass twice.
        """
        forward = self.products + self.attention
        return forward * (1 + checkpointing) + self.products + 2 * self.attention

    def kept_numbers(self, *, checkpointing: bool) -> float:
        """Numbers that a training step keeps per image at its peak."""
        return self.kept_at_borders + self.kept_in_largest if checkpointing else self.kept


def count_unet(config: Mapping[str, Any], *, latent_side: int) -> Work:
    """Count one image of `latent_side` x `latent_side` latents through the UNet that `config` describes."""
    return _Counter(config, latent_side * latent_side).count()


def count_text_encoder(config: Mapping[str, Any]) -> float:
    """Parameters of the CLIP or T5 text encoder that `config` describes, without norms and biases."""
    if "d_model" in config:
        width, layers = config["d_model"], config["num_layers"]
        attention = 4 * width * config["num_heads"] * config["d_kv"]
        factors = 3 if str(config.get("feed_forward_proj", "relu")).startswith("gated") else 2
        return float(config["vocab_size"] * width + layers * (attention + factors * width * config["d_ff"]))
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    words = (config["vocab_size"] + config["max_position_embeddings"]) * width
    return float(words + layers * (4 * width**2 + 2 * width * config["intermediate_size"]))


class _Counter:
    def __init__(self, config: Mapping[str, Any], pixels: int) -> None:
        self.config, self.pixels, self.work = config, pixels, Work()
        self.widths = list(config["block_out_channels"])
        self.time_width = 4 * self.widths[0]
        self.text_width = int(config["cross_attention_dim"])

    def count(self) -> Work:
        config, widths = self.config, self.widths
        layers = _per_block(config.get("layers_per_block", 2), len(widths))
        depths = _per_block(config.get("transformer_layers_per_block", 1), len(widths))
        self._convolution(config["in_channels"], widths[0], 9)
        skips = [widths[0]]
        width = widths[0]
        for block, kind in enumerate(config["down_block_types"]):
            for _ in range(layers[block]):
                self._residual(width, widths[block])
                width = widths[block]
                if "CrossAttn" in kind:
                    self._transformer(width, depths[block])
                skips.append(width)
            if block < len(widths) - 1:
                self.pixels //= 4
                self._convolution(width, width, 9)
                skips.append(width)
        self._residual(width, width)
        self._transformer(width, depths[-1])
        self._residual(width, width)
        for block, kind in enumerate(config["up_block_types"]):
            place = len(widths) - 1 - block
            for _ in range(layers[place] + 1):
                self._residual(width + skips.pop(), widths[place])
                width = widths[place]
                if "CrossAttn" in kind:
                    self._transformer(width, depths[place])
            if block < len(widths) - 1:
                self.pixels *= 4
                self._convolution(width, width, 9)
        self._convolution(width, config["out_channels"], 9)
        return self.work

    def _product(self, inputs: int, outputs: int, rows: int) -> None:
        self.work.products += 2 * inputs * outputs * rows
        self.work.parameters += inputs * outputs

    def _convolution(self, inputs: int, outputs: int, taps: int) -> None:
        self._product(inputs * taps, outputs, self.pixels)
        self.work.in_convolutions += inputs * taps * outputs

    def _keep(self, channels: float, at_border: int) -> None:
        kept = channels * self.pixels
        self.work.kept += kept
        self.work.kept_at_borders += at_border * self.pixels
        self.work.kept_in_largest = max(self.work.kept_in_largest, kept)

    def _residual(self, inputs: int, outputs: int) -> None:
        self._convolution(inputs, outputs, 9)
        self._convolution(outputs, outputs, 9)
        self._product(self.time_width, outputs, 1)
        if inputs != outputs:
            self._convolution(inputs, outputs, 1)
        self._keep(KEPT_BY_NORM * (inputs + outputs), inputs)

    def _transformer(self, width: int, depth: int) -> None:
        rows = self.pixels
        self._product(width, width, rows)
        self._keep(KEPT_BY_PROJECTIONS * width, width)
        for _ in range(depth):
            for context, tokens in ((width, rows), (self.text_width, TEXT_TOKENS)):
                for _ in range(2):  # queries and the output
                    self._product(width, width, rows)
                for _ in range(2):  # keys and values
                    self._product(context, width, tokens)
                self.work.attention += 4 * rows * tokens * width
            self._product(width, 8 * width, rows)  # the gated feed-forward
            self._product(4 * width, width, rows)
            self._keep(KEPT_BY_BLOCK * width, width)
        self._product(width, width, rows)


KEPT_BY_NORM, KEPT_BY_PROJECTIONS, KEPT_BY_BLOCK = 3.0, 2.0, 23.0
"""Activations kept for the backward pass, in multiples of (channels x pixels)."""


def _per_block(value: int | Sequence[int], count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value)
