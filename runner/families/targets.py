"""Which layers of a denoiser the names in `lora.targets` stand for."""

from __future__ import annotations

from collections.abc import Mapping

Presets = Mapping[str, tuple[str, ...] | str]
"""Name -> suffixes of layer names, or a regular expression for whole names; what peft calls `target_modules`."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
TEXT_ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The attention of CLIP's text encoders."""
UNET_LINEAR = (*ATTENTION, *FEED_FORWARD, "proj_in", "proj_out")

UNET: Presets = {
    "attention": ATTENTION,
    "attention_ff": (*ATTENTION, *FEED_FORWARD),
    "linear": UNET_LINEAR,
    "linear_conv": (*UNET_LINEAR, "conv1", "conv2", "conv_shortcut", "conv"),
}

# The text has its own projections in the attention that it shares with the image.
JOINT_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
JOINT_FEED_FORWARD = (*FEED_FORWARD, "ff_context.net.0.proj", "ff_context.net.2")

SD3: Presets = {
    "attention": JOINT_ATTENTION,
    "attention_ff": (*JOINT_ATTENTION, *JOINT_FEED_FORWARD),
    "linear": (*JOINT_ATTENTION, *JOINT_FEED_FORWARD, "norm1.linear", "norm1_context.linear"),
}

_ATTENTION = r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_DOUBLE_FF = r"ff(_context)?\.net\.(0\.proj|2)"
_SINGLE_FF = r"proj_mlp|proj_out"
FLUX: Presets = {
    "attention": JOINT_ATTENTION,
    # A suffix could not distinguish the feed-forward of a single block from the last layer of the model.
    "attention_ff": rf"(single_)?transformer_blocks\.\d+\.({_ATTENTION}|{_DOUBLE_FF}|{_SINGLE_FF})",
    "linear": (
        rf"(single_)?transformer_blocks\.\d+\."
        rf"({_ATTENTION}|{_DOUBLE_FF}|{_SINGLE_FF}|norm\.linear|norm1(_context)?\.linear)"
    ),
}
