"""Writes the files of a training's adapter, through `runner.mix.write`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from runner.families.family import Family
from runner.mix.layers import AdapterLayers, LowRank
from runner.mix.write import Layers, write_peft
from runner.mix.write import write_kohya as write_kohya_layers
from runner.schema import LoraSettings
from runner.train.adapters.adapter import DOWN, UP, peft_config


def adapted_layers(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers that the peft keys belong to."""
    return [key.removesuffix(f".{DOWN}") for key in tensors if key.endswith(f".{DOWN}")]


def write_diffusers(folder: Path, family: Family, layers: Layers, settings: LoraSettings) -> Path:
    """Write `pytorch_lora_weights.safetensors`, with the configuration used in training."""
    configs = {
        component: peft_config(settings, component, family.target_presets, adapted_layers(tensors)).to_dict()
        for component, tensors in layers.items()
    }
    return write_peft(folder, family, layers, configs)


def write_kohya(
    file: Path, family: Family, layers: Layers, settings: LoraSettings, *, about: Mapping[str, str]
) -> Path:
    """Write the layout that other programs read, with the scale of each layer folded into its up-projection."""
    updates: AdapterLayers = {
        (component, layer): LowRank(tensors[f"{layer}.{DOWN}"], tensors[f"{layer}.{UP}"], settings.scale_of(layer))
        for component, tensors in layers.items()
        for layer in adapted_layers(tensors)
    }
    return write_kohya_layers(file, family, updates, about=about)
