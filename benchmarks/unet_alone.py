"""What no trainer that uses this UNet as it is can do without: its passes, and nothing else.

    python benchmarks/stamped.py STAMPS.json --script benchmarks/unet_alone.py MODEL RESOLUTION BATCH STEPS

Each step is a forward pass of the frozen UNet, and a backward pass that ends at the first attention layer, as in a
training whose adapters are on the attention layers. There are no images, captions, adapters, noise or logs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

TOKENS = 77


def inputs(unet: UNet2DConditionModel, side: int, batch: int) -> dict[str, Any]:
    """Random arguments of a forward pass on latents with this side."""
    sizes: Any = unet.config
    time_ids = torch.full((batch, 6), 64.0)
    pooled = sizes.projection_class_embeddings_input_dim - sizes.addition_time_embed_dim * time_ids.shape[1]
    return {
        "sample": torch.randn(batch, sizes.in_channels, side, side),
        "timestep": torch.randint(0, 1000, (batch,)),
        "encoder_hidden_states": torch.randn(batch, TOKENS, sizes.cross_attention_dim),
        "added_cond_kwargs": {"text_embeds": torch.randn(batch, pooled), "time_ids": time_ids},
    }


def main() -> None:
    """Read the command line and take the steps; whoever times them is told by the optimizer."""
    model, (resolution, batch, steps) = Path(sys.argv[1]), map(int, sys.argv[2:])
    unet: Any = UNet2DConditionModel.from_pretrained(model, subfolder="unet").requires_grad_(False).train()
    blocks = AutoencoderKL.load_config(model, subfolder="vae")["block_out_channels"]
    given = inputs(unet, resolution >> (len(blocks) - 1), batch)
    first: Tensor = next(each for name, each in unet.named_parameters() if ".attn1.to_q" in name).requires_grad_(True)
    optimizer = torch.optim.SGD([first], lr=0.0)
    for _ in range(steps):
        unet(**given).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
