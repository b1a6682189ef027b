"""Adapters with random weights, written in the layouts of several programs, and a plain reader of kohya's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from runner.mix.layers import AdapterLayers, LowRank

TARGETS = ("to_q", "to_v", "to_out.0", "ff.net.2", "proj_in", "conv1", "conv_shortcut", "downsamplers.0.conv")
TEXT_TARGETS = ("q_proj", "out_proj")
LARGE = 0.3
"""Standard deviation of the factors: it makes the update as large as the weights."""


def delta(update: LowRank) -> Tensor:
    """The update of the layer's weight, `[O, I]` or `[O, I, kernel, kernel]`, fp32; not for DoRA."""
    assert update.magnitude is None
    product = update.up.flatten(1).float() @ update.down.flatten(1).float() * update.scale
    return product.view(len(update.up), *update.down.shape[1:])


def random_layers(
    components: Mapping[str, nn.Module],
    *,
    rank: int = 3,
    seed: int = 0,
    scale: float = 1.0,
    targets: tuple[str, ...] = TARGETS,
    dora: bool = False,
) -> AdapterLayers:
    """An adapter on some layers of each of the given parts."""
    draw = torch.Generator().manual_seed(seed)
    layers: AdapterLayers = {}
    for component, root in components.items():
        ends = TEXT_TARGETS if component.startswith("text_encoder") else targets
        for name, module in root.named_modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d)) or not name.endswith(ends):
                continue
            weight = module.weight
            ones = (1, 1) if weight.dim() == 4 else ()
            down = torch.randn(rank, *weight.shape[1:], generator=draw) * LARGE
            up = torch.randn(weight.shape[0], rank, *ones, generator=draw) * LARGE
            norms = weight.detach().float().flatten(1).norm(dim=1)
            factor = 1 + torch.rand(norms.shape, generator=draw)
            layers[component, name] = LowRank(down, up, scale, norms * factor if dora else None)
    return layers


def kohya_names(component: str, name: str, prefixes: Mapping[str, str]) -> str:
    if component.startswith("text_encoder") and not name.startswith("text_model."):
        name = f"text_model.{name}"
    return f"{prefixes[component]}_{name.replace('.', '_')}"


SDXL_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
SD_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}


def write_kohya_plainly(
    file: Path, layers: AdapterLayers, prefixes: Mapping[str, str], names: Mapping[str, str] | None = None
) -> Path:
    """Write a file as other trainers do: alpha beside untouched factors.

    Args:
        names: other names of the UNet's layers.
    """
    tensors = {}
    for (component, name), each in layers.items():
        said = (names or {}).get(name, name) if component == "unet" else name
        key = kohya_names(component, said, prefixes)
        tensors[f"{key}.lora_down.weight"] = each.down.contiguous()
        tensors[f"{key}.lora_up.weight"] = each.up.contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(each.scale * len(each.down))
    save_file(tensors, file)
    return file


def write_kohya_of_flux(file: Path, transformer: Any, scale: float, stored: torch.dtype) -> tuple[Path, AdapterLayers]:
    """A file of some layers under the names of the original code of FLUX.1, and its updates."""
    theirs = {"attn.to_out.0": "img_attn_proj", "ff.net.2": "img_mlp_2"}
    layers, tensors = dict[tuple[str, str], LowRank](), dict[str, Tensor]()
    for (component, name), each in random_layers({"transformer": transformer}, targets=tuple(theirs)).items():
        if name.startswith("transformer_blocks."):
            _, block, layer = name.split(".", 2)
            key = f"lora_unet_double_blocks_{block}_{theirs[layer]}"
            down, up = each.down.to(stored), each.up.to(stored)
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            tensors[f"{key}.alpha"] = torch.tensor(scale * each.rank)
            layers[component, name] = LowRank(down.float(), up.float(), scale)
    assert len(layers) > 1
    save_file(tensors, file)
    return file, layers


def write_peft_plainly(file: Path, layers: AdapterLayers, config: Mapping[str, Any]) -> Path:
    tensors = {}
    for (component, name), each in layers.items():
        tensors[f"{component}.{name}.lora_A.weight"] = each.down
        tensors[f"{component}.{name}.lora_B.weight"] = each.up
        if each.magnitude is not None:
            tensors[f"{component}.{name}.lora_magnitude_vector"] = each.magnitude
    about = {f"{component}.{key}": value for component in {c for c, _ in layers} for key, value in config.items()}
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(about)} if config else None)
    return file


@torch.no_grad()
def add_kohya(pipeline: Any, file: Path, weight: float = 1.0) -> int:
    """Add up @ down * alpha / rank to the weights of a plain pipeline; knows only the layout."""
    tensors, added = load_file(file), 0
    prefixes = SDXL_PREFIXES if hasattr(pipeline, "text_encoder_2") else SD_PREFIXES
    for component, prefix in prefixes.items():
        for path, module in getattr(pipeline, component).named_modules():
            key = kohya_names(component, path, {component: prefix})
            up = tensors.pop(f"{key}.lora_up.weight", None)
            if up is None:
                continue
            down, alpha = tensors.pop(f"{key}.lora_down.weight"), tensors.pop(f"{key}.alpha")
            update = up.flatten(1) @ down.flatten(1) * float(alpha) / down.shape[0]
            module.weight += weight * update.view(module.weight.shape)
            added += 1
    assert not tensors, f"no layer for {min(tensors)}"
    return added


def same_updates(left: AdapterLayers, right: AdapterLayers) -> float:
    """The largest difference between the updates of a layer, as a share of their norm."""
    assert left.keys() == right.keys()
    worst = 0.0
    for key, each in left.items():
        wanted: Tensor = delta(right[key])
        worst = max(worst, float((delta(each) - wanted).norm() / wanted.norm()))
    return worst
