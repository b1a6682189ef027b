"""The adapter's files: peft keys with metadata for diffusers, and the kohya layout for ComfyUI, A1111 and others."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor

from runner.families.family import Family, is_text_encoder
from runner.paths import atomic_file
from runner.schema import LoraSettings
from runner.train.adapters.adapter import DOWN, MAGNITUDE, UP, peft_config

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"

Layers = Mapping[str, Mapping[str, Tensor]]
"""component -> peft key -> tensor."""


def adapted_layers(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers that peft keys are about."""
    return [key.removesuffix(f".{DOWN}") for key in tensors if key.endswith(f".{DOWN}")]


def published_keys(layers: Layers) -> dict[str, dict[str, Tensor]]:
    """The same layers under the names that files have always had."""
    return {
        component: {_published_key(component, key): tensor for key, tensor in tensors.items()}
        for component, tensors in layers.items()
    }


def published_name(component: str, name: str) -> str:
    """A layer, or what is said of it, by the name that files have always had.

    transformers 5.6 took `text_model.` out of the module names of CLIPTextModel (huggingface/transformers #13843);
    diffusers, ComfyUI and older files have it.
    """
    return f"text_model.{name}" if is_text_encoder(component) and not name.startswith("text_model.") else name


def _published_key(component: str, key: str) -> str:
    # transformers (5.23) finds the magnitudes of DoRA by this name only, and peft by either.
    ending = ".weight" if is_text_encoder(component) and key.endswith(MAGNITUDE) else ""
    return published_name(component, key) + ending


def write_diffusers(folder: Path, family: Family, layers: Layers, settings: LoraSettings) -> Path:
    """Write `pytorch_lora_weights.safetensors`; without the metadata, diffusers would load alpha as rank."""
    published = published_keys(layers)
    configs: dict[str, Any] = {
        component: peft_config(settings, component, family.target_presets, adapted_layers(tensors)).to_dict()
        for component, tensors in layers.items()
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        family.save_adapter(Path(temporary), published, configs)
        with atomic_file(folder / DIFFUSERS_FILE) as target:
            (Path(temporary) / DIFFUSERS_FILE).replace(target)
    return folder / DIFFUSERS_FILE


def write_kohya(
    file: Path, family: Family, layers: Layers, settings: LoraSettings, *, about: Mapping[str, str]
) -> Path:
    """Write the layout that other programs read, with the scale of each layer folded into its up-projection.

    Folded, with alpha = rank, it means the same to readers that honour the alpha tensors and to those that do not.
    Layers of other ranks are padded with zeros to the largest: diffusers (0.42.1) loses the alphas that differ from
    layer to layer.
    """
    rank = max(len(trained[f"{layer}.{DOWN}"]) for trained in layers.values() for layer in adapted_layers(trained))
    tensors: dict[str, Tensor] = {}
    for component, trained in layers.items():
        for layer in adapted_layers(trained):
            down, up = trained[f"{layer}.{DOWN}"], trained[f"{layer}.{UP}"]
            names = family.export.names(component, published_name(component, layer))
            tensors[names.down] = _padded(down, 0, rank)
            tensors[names.up] = _padded(up * settings.scale_of(layer), 1, rank)
            if names.alpha is not None:
                tensors[names.alpha] = down.new_tensor(float(rank))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # The published hash of a LoRA covers the tensors alone, so that editing the header does not change it.
    header = {
        **({"ss_network_module": family.export.module} if family.export.module else {}),
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "sshs_model_hash": hashlib.sha256(save(tensors)).hexdigest(),
        **about,
    }
    with atomic_file(file) as temporary:
        save_file(tensors, temporary, metadata=header)
    return file


def _padded(tensor: Tensor, dim: int, rank: int) -> Tensor:
    zeros = list(tensor.shape)
    zeros[dim] = rank - zeros[dim]
    return torch.cat([tensor, tensor.new_zeros(zeros)], dim)
