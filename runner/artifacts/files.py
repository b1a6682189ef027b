"""The adapter's files: peft keys with metadata for diffusers, and the kohya layout for ComfyUI, A1111 and others."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save, save_file
from torch import Tensor

from runner.families.family import Family, is_text_encoder
from runner.paths import atomic_file
from runner.schema import LoraSettings
from runner.train.adapter import peft_config

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"

Layers = Mapping[str, Mapping[str, Tensor]]
"""component -> peft key -> tensor."""


def published_keys(layers: Layers) -> dict[str, dict[str, Tensor]]:
    """The same layers under the names that files have always had.

    transformers 5.6 took `text_model.` out of the module names of CLIPTextModel (huggingface/transformers #13843);
    diffusers, ComfyUI and older files have it.
    """
    return {
        component: {
            f"text_model.{key}" if is_text_encoder(component) and not key.startswith("text_model.") else key: tensor
            for key, tensor in tensors.items()
        }
        for component, tensors in layers.items()
    }


def write_diffusers(folder: Path, family: Family, layers: Layers, settings: LoraSettings) -> Path:
    """Write `pytorch_lora_weights.safetensors`; without the metadata, diffusers would load alpha as rank."""
    published = published_keys(layers)
    configs: dict[str, Any] = {
        component: peft_config(settings, component, family.target_presets).to_dict() for component in published
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        family.save_adapter(Path(temporary), published, configs)
        with atomic_file(folder / DIFFUSERS_FILE) as target:
            (Path(temporary) / DIFFUSERS_FILE).replace(target)
    return folder / DIFFUSERS_FILE


def write_kohya(
    file: Path, family: Family, layers: Layers, settings: LoraSettings, *, about: Mapping[str, str]
) -> Path:
    """Write the layout that other programs read, with the scale alpha / rank folded into the up-projections.

    Folded, with alpha = rank, it means the same to readers that honour the alpha tensors and to those that do not.
    """
    tensors: dict[str, Tensor] = {}
    for component, keys in published_keys(layers).items():
        for key, tensor in keys.items():
            path, _, kind = key.removesuffix(".weight").rpartition(".")
            names = family.export.names(component, path)
            if kind == "lora_B":
                tensors[names.up] = tensor * settings.scale
                continue
            tensors[names.down] = tensor
            if names.alpha is not None:
                tensors[names.alpha] = tensor.new_tensor(float(settings.rank))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # The published hash of a LoRA covers the tensors alone, so that editing the header does not change it.
    header = {
        **({"ss_network_module": family.export.module} if family.export.module else {}),
        "ss_network_dim": str(settings.rank),
        "ss_network_alpha": str(float(settings.rank)),
        "sshs_model_hash": hashlib.sha256(save(tensors)).hexdigest(),
        **about,
    }
    with atomic_file(file) as temporary:
        save_file(tensors, temporary, metadata=header)
    return file
