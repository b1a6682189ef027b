"""Writes an adapter's file: peft keys with metadata for diffusers, or the layout of ComfyUI, A1111 and others."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save, save_file
from torch import Tensor

from runner.families.family import Family, is_text_encoder
from runner.mix.layers import AdapterLayers
from runner.paths import WEIGHTS_NAME, atomic_file, named_where_full
from runner.system.tensor_file import TEXT_MODEL, order_metadata

DOWN, UP, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
"""peft's suffixes for what an adapter holds for a layer; they follow the layer's name."""

Layers = Mapping[str, Mapping[str, Tensor]]
"""component -> peft key -> tensor."""


def published_keys(layers: Layers) -> dict[str, dict[str, Tensor]]:
    """The same layers under the names traditionally used in files."""
    return {
        component: {_published_key(component, key): tensor for key, tensor in tensors.items()}
        for component, tensors in layers.items()
    }


def published_name(component: str, name: str) -> str:
    """A layer, or an entry about it, under the name traditionally used in files.

    transformers 5.6 removed `text_model.` from the module names of CLIPTextModel (huggingface/transformers #13843);
    diffusers, ComfyUI and older files still use it.
    """
    return TEXT_MODEL + name if is_text_encoder(component) and not name.startswith(TEXT_MODEL) else name


def _published_key(component: str, key: str) -> str:
    # transformers (5.23) finds the magnitudes of DoRA only under this name; peft accepts both.
    ending = ".weight" if is_text_encoder(component) and key.endswith(MAGNITUDE) else ""
    return published_name(component, key) + ending


def write_peft(folder: Path, family: Family, layers: Layers, configs: Mapping[str, dict[str, Any]]) -> Path:
    """Write `pytorch_lora_weights.safetensors`; without the metadata, diffusers would use the rank as alpha.

    Args:
        configs: component -> its configuration as a peft dictionary.
    """
    ordered = {component: _in_order(config) for component, config in configs.items()}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        with named_where_full(folder / WEIGHTS_NAME):
            family.save_adapter(Path(temporary), published_keys(layers), ordered)
            order_metadata(Path(temporary) / WEIGHTS_NAME)
        with atomic_file(folder / WEIGHTS_NAME) as target:
            (Path(temporary) / WEIGHTS_NAME).replace(target)
    return folder / WEIGHTS_NAME


def _in_order(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its layers sorted: peft keeps their names as a set, so two processes would write different
    files, and jobs are identified by the files that they use.
    """
    targets = config["target_modules"]
    return {**config, "target_modules": targets if isinstance(targets, str) else sorted(targets)}


def write_diffusers(folder: Path, family: Family, layers: AdapterLayers) -> Path:
    """Write an adapter with any ranks and scales as `pytorch_lora_weights.safetensors`."""
    tensors: dict[str, dict[str, Tensor]] = {}
    for (component, name), each in layers.items():
        part = tensors.setdefault(component, {})
        part[f"{name}.{DOWN}"], part[f"{name}.{UP}"] = each.down.contiguous(), each.up.contiguous()
        if each.magnitude is not None:
            ones = (1, each.up.shape[0], 1, 1) if each.down.dim() == 4 else (-1,)
            part[f"{name}.{MAGNITUDE}"] = each.magnitude.view(ones)
    return write_peft(folder, family, tensors, {component: _config(layers, component) for component in tensors})


def _config(layers: AdapterLayers, component: str) -> dict[str, Any]:
    """The peft configuration of a component: the usual rank and alpha, and the layers that differ."""
    mine = {name: each for (part, name), each in layers.items() if part == component}
    ranks = {name: each.rank for name, each in mine.items()}
    alphas = {name: each.scale * each.rank for name, each in mine.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    doras = {each.magnitude is not None for each in mine.values()}
    assert len(doras) == 1, component
    config: dict[str, Any] = LoraConfig(
        r=int(rank),
        lora_alpha=alpha,
        rank_pattern=differing(ranks, rank),
        alpha_pattern=differing(alphas, alpha),
        use_dora=doras.pop(),
        lora_dropout=0.0,
        target_modules=list(mine),
    ).to_dict()
    return config


def differing(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """The layers whose value is not the usual one, under patterns that match no other layer."""
    # A name that is the end of another layer's name would match that one too.
    ends = {name for name in values if any(other.endswith(f".{name}") for other in values)}
    return {f"^{name}" if name in ends else name: value for name, value in values.items() if value != usual}


def write_kohya(
    file: Path, family: Family, layers: AdapterLayers, *, about: Mapping[str, str], folded: bool = True
) -> Path:
    """Write the layout that other programs read.

    When folded, each layer's scale is part of its up-projection: with alpha = rank, it means the same to readers that
    honour the alpha tensors and to those that do not. Layers of lower rank are then padded with zeros to the largest
    rank: diffusers (0.42.1) loses alphas that differ from layer to layer.

    Args:
        folded: if False, the factors stay unchanged and the alpha tensors carry the scale.
    """
    rank = max(each.rank for each in layers.values())
    tensors: dict[str, Tensor] = {}
    for (component, name), each in layers.items():
        assert each.magnitude is None
        names = family.export.names(component, published_name(component, name))
        assert folded or names.alpha is not None
        tensors[names.down] = _padded(each.down, 0, rank) if folded else each.down
        tensors[names.up] = _padded(each.up * each.scale, 1, rank) if folded else each.up
        if names.alpha is not None:
            tensors[names.alpha] = each.down.new_tensor(float(rank) if folded else each.scale * each.rank)
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    alphas = Counter(float(rank) if folded else each.scale * each.rank for each in layers.values())
    # The published hash of a LoRA covers only what follows the header, so that editing the header does not change it.
    content = save(tensors)
    values = memoryview(content)[8 + int.from_bytes(content[:8], "little") :]
    header = {
        **({"ss_network_module": family.export.module} if family.export.module else {}),
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alphas.most_common(1)[0][0]),
        "sshs_model_hash": hashlib.sha256(values).hexdigest(),
        **about,
    }
    with atomic_file(file) as temporary:
        save_file(tensors, temporary, metadata=header)
        order_metadata(temporary)
    return file


def _padded(tensor: Tensor, dim: int, rank: int) -> Tensor:
    zeros = list(tensor.shape)
    zeros[dim] = rank - zeros[dim]
    return torch.cat([tensor, tensor.new_zeros(zeros)], dim)
