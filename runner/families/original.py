"""The names of a UNet's layers in Stable Diffusion's own code: in single files, and in kohya's for SDXL."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

AROUND = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def original_names(layers: Collection[str], layers_per_block: int) -> Mapping[str, str]:
    """Name of each layer in diffusers -> its name in the original code; layers unknown to that are left out.

    Args:
        layers: names of all layers of a UNet2DConditionModel: the place of an upsampler depends on others.
        layers_per_block: from the UNet's configuration; a single number, as in all models of the original code.
    """
    attended = {name.partition(".attentions.")[0] for name in layers if ".attentions." in name}
    found = {name: _original(name, attended, layers_per_block) for name in layers}
    return {name: original for name, original in found.items() if original is not None}


def _original(name: str, attended: Collection[str], layers_per_block: int) -> str | None:
    if name in AROUND:
        return AROUND[name]
    found = re.fullmatch(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)", name)
    if found is None:  # such as the guidance embedding of distilled models
        return None
    direction, block, part, index, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if part == "resnets":
        first, _, more = rest.partition(".")
        rest = RESIDUAL[first] + (f".{more}" if more else "")
    if direction is None:
        return f"middle_block.{2 * index + (part == 'attentions')}.{rest}"
    start = block * (layers_per_block + 1)
    if part == "downsamplers":
        return f"input_blocks.{1 + start + layers_per_block}.0.{rest.replace('conv', 'op', 1)}"
    if part == "upsamplers":
        return f"output_blocks.{start + layers_per_block}.{2 if f'up_blocks.{block}' in attended else 1}.{rest}"
    within = int(part == "attentions")
    return (
        f"input_blocks.{1 + start + index}.{within}.{rest}"
        if direction == "down"
        else (f"output_blocks.{start + index}.{within}.{rest}")
    )
