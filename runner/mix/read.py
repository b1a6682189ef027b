"""Reads an adapter's file, in whichever layout, into the factors of each layer's update.

A layer is identified by how files spell its name: as in peft, after the component's name; as diffusers wrote it before
peft; or as kohya's scripts do, which use the names of the original code for SDXL. FLUX.1 files with fused projections
go through diffusers' own conversion first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from runner.errors import SettingsError
from runner.families.exports import Kohya
from runner.families.family import Family, is_text_encoder
from runner.families.original import original_names
from runner.jobs.scales import alpha_in, configs_in
from runner.mix.layers import AdapterLayers, LowRank
from runner.system.tensor_file import PEFT_NAMES, TEXT_MODEL

DOWN, UP, ALPHA, MAGNITUDE = "down", "up", "alpha", "magnitude"
OF_DIFFUSERS = {
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_magnitude_vector": MAGNITUDE,
    ".lora_magnitude_vector.weight": MAGNITUDE,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    "_lora.down.weight": DOWN,
    "_lora.up.weight": UP,
}
"""Suffixes of tensor names in diffusers' files, of any version -> what the tensor is."""
ENDINGS = {
    **OF_DIFFUSERS,
    ".lora_A.default.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora_magnitude_vector.default.weight": MAGNITUDE,
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".alpha": ALPHA,
}
"""The same for all layouts."""
OF_TEXT = "lora_te"
"""Prefix of kohya's names for layers of text encoders."""
OTHER_KINDS = {
    "hada_w": "a LoHa",
    "lokr_w": "a LoKr",
    "lora_mid": "a LoCon with a core (Tucker decomposition)",
    "oft_": "an OFT",
    "dora_scale": "a DoRA in kohya's layout, whose norms readers disagree about",
    ".diff": "a file of whole differences",
}
SHOWN = 3


@dataclasses.dataclass
class _Parts:
    """What a file contains for one layer."""

    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    key: str = ""
    """The name of one of its tensors, for messages."""


def read_adapter(file: Path, family: Family, components: Mapping[str, nn.Module]) -> AdapterLayers:
    """The factors and scale of each layer, fp32 on the CPU, in the order of the modules.

    Args:
        components: the parts that may carry adapters, by their names in the pipeline; every layer must be in one.

    Raises:
        SettingsError: the file is not an adapter, or adapts layers that this model does not have.
    """
    tensors, metadata = _load(file)
    tensors, alphas = _converted(file, tensors)
    found = _by_layer(file, tensors, _spellings(family, components))
    for layer, alpha in alphas.items():
        if layer in found:
            found[layer].tensors[ALPHA] = alpha
    for component in components:
        own = [parts for (of, _), parts in found.items() if of == component]
        plain = [parts.key for parts in own if MAGNITUDE not in parts.tensors]
        if plain and len(plain) < len(own):
            raise SettingsError(
                f"{file}: some layers of its {component} are DoRA, and others are not ({plain[0]}); it is damaged, or "
                "of a kind that is not read"
            )
    configs = configs_in(file, metadata, denoiser=family.adapter_components[0])
    read: AdapterLayers = {}
    for component, name, module in _adaptable(components):
        if parts := found.get((component, name)):
            config = configs.get(component, {})
            said = _alpha(file, parts, alpha_in(config, _paths(component, name)))
            read[component, name] = _low_rank(file, parts, module, said, of_root=bool(config.get("use_rslora")))
    return read


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (it is no mapping)
            return tensors, dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"{file}: cannot be read as a .safetensors file ({error})") from error


def _adaptable(components: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, nn.Linear | nn.Conv2d]]:
    for component, root in components.items():
        for name, module in root.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                yield component, name, module


def _spellings(family: Family, components: Mapping[str, nn.Module]) -> dict[str, tuple[str, str]]:
    """Each name that files may use for a layer -> the layer."""
    spelled: dict[str, tuple[str, str]] = {}
    denoiser = family.adapter_components[0]
    for component, root in components.items():
        layers = [name for _, name, _ in _adaptable({component: root})]
        original: Mapping[str, str] = {}
        if component == "unet":
            config: Any = root.config
            if isinstance(config["layers_per_block"], int):
                original = original_names(layers, config["layers_per_block"])
        for name in layers:
            layer = (component, name)
            for path in _paths(component, name):
                spelled[f"{component}.{path}"] = layer
                if component == denoiser:
                    spelled[PEFT_NAMES + path] = spelled[f"diffusion_model.{path}"] = layer
                for prefix in _prefixes(family, component):
                    spelled[f"{prefix}_{path.replace('.', '_')}"] = layer
            if name in original:
                spelled[f"lora_unet_{original[name].replace('.', '_')}"] = layer
                spelled[f"diffusion_model.{original[name]}"] = layer
    return spelled


def _paths(component: str, name: str) -> list[str]:
    """A layer's name, and the names it had before transformers 5.6 and diffusers 0.22."""
    if is_text_encoder(component):
        bare = name.removeprefix(TEXT_MODEL)
        return [bare, TEXT_MODEL + bare]
    old = name
    for attention in ("attn1", "attn2", "attn"):
        old = old.replace(f".{attention}.to_", f".{attention}.processor.to_")
    return [name] if old == name else [name, old, old.replace("to_out.0", "to_out")]


def _prefixes(family: Family, component: str) -> list[str]:
    if isinstance(family.export, Kohya):
        usual = family.export.prefixes[component]
        return [usual, "lora_te1"] if usual == "lora_te" else [usual]
    return [f"lora_{component}"] if not is_text_encoder(component) else [f"lora_te{component[-1:].strip('r') or 1}"]


def _converted(file: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
    """Convert FLUX.1 files in the original code's layout to diffusers' names; also returns the alphas they contain."""
    if not any("double_blocks" in key or "single_blocks" in key for key in tensors):
        return tensors, {}
    from diffusers import FluxPipeline

    try:
        # It multiplies the scale into the factors, which must not be rounded to the file's precision again.
        exact = {key: tensor.float() for key, tensor in tensors.items() if not key.startswith(OF_TEXT)}
        converted, alphas = FluxPipeline.lora_state_dict(exact, return_alphas=True)
    except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise SettingsError(f"{file}: diffusers cannot convert its names ({error})") from error
    by_layer = {}
    for key, alpha in (alphas or {}).items():
        component, _, name = key.removesuffix(".alpha").partition(".")
        by_layer[component, name] = torch.tensor(float(alpha))
    # Text encoders have their own names in this layout, which need no conversion.
    return converted | {key: tensor for key, tensor in tensors.items() if key.startswith(OF_TEXT)}, by_layer


def is_named_for_diffusers(names: Iterable[str], family: Family) -> bool:
    """Whether diffusers (0.42.1) accepts all of a file's tensors by these names, and uses their factors unchanged.

    It knows its own names and kohya's; FLUX.1 factors in kohya's layout it multiplies in the file's precision.
    """
    listed, own = list(names), tuple(f"{component}." for component in family.adapter_components)
    if isinstance(family.export, Kohya) and all(name.startswith("lora_") for name in listed):
        return True
    return all(name.startswith(own) and name.endswith(tuple(OF_DIFFUSERS)) for name in listed)


def _by_layer(
    file: Path, tensors: Mapping[str, Tensor], spelled: Mapping[str, tuple[str, str]]
) -> dict[tuple[str, str], _Parts]:
    found: dict[tuple[str, str], _Parts] = {}
    unknown = []
    for key, tensor in tensors.items():
        for mark, kind in OTHER_KINDS.items():
            if mark in key:
                raise SettingsError(f"{file}: is {kind} ({key}); only LoRA is read, and DoRA as diffusers writes it")
        ending = next((each for each in ENDINGS if key.endswith(each)), None)
        layer = spelled.get(key.removesuffix(ending)) if ending is not None else None
        if ending is None or layer is None:
            unknown.append(key)
            continue
        parts = found.setdefault(layer, _Parts(key=key))
        if ENDINGS[ending] in parts.tensors:
            raise SettingsError(f"{file}: has two adapters for {'.'.join(layer)} ({parts.key}, {key})")
        parts.tensors[ENDINGS[ending]] = tensor
    if unknown:
        shown = ", ".join(sorted(unknown)[:SHOWN]) + (", ..." if len(unknown) > SHOWN else "")
        components = ", ".join(dict.fromkeys(component for component, _ in spelled.values()))
        raise SettingsError(
            f"{file}: {len(unknown)} of {len(tensors)} tensors belong to no layer of this model's {components} "
            f"({shown}); is it an adapter, and for this kind of model?"
        )
    if not found:
        raise SettingsError(f"{file}: is empty")
    return found


def _low_rank(
    file: Path, parts: _Parts, module: nn.Linear | nn.Conv2d, alpha: float | None, *, of_root: bool
) -> LowRank:
    """The factors of a layer; `of_root`: whether alpha is divided by the square root of the rank."""
    down, up = parts.tensors.get(DOWN), parts.tensors.get(UP)
    if down is None or up is None:
        raise SettingsError(f"{file}: has only a part of an adapter for a layer ({parts.key})")
    rank = len(down) if down.dim() else 0
    if rank == 0:
        raise SettingsError(f"{file}: {parts.key} has rank 0")
    fitted: dict[str, Tensor] = {}
    for kind, shape in _shapes(module, rank).items():
        if (tensor := parts.tensors.get(kind)) is None:
            continue
        found = _fitted(tensor, shape)
        if found is None:
            raise SettingsError(
                f"{file}: the {kind} part of {parts.key} is of shape {list(tensor.shape)}, but the layer of this model "
                f"needs {list(shape)}; is it for another kind of model?"
            )
        if not bool(torch.isfinite(found).all()):
            raise SettingsError(f"{file}: {parts.key} holds numbers that are not finite")
        fitted[kind] = found
    scale = 1.0 if alpha is None else alpha / (math.sqrt(rank) if of_root else rank)
    return LowRank(fitted[DOWN], fitted[UP], scale, fitted.get(MAGNITUDE))


def _alpha(file: Path, parts: _Parts, said: float | None) -> float | None:
    """The alpha of a layer, from its own tensor or else the file's configuration; None if neither gives one."""
    given = parts.tensors.get(ALPHA)
    alpha = said
    if given is not None:
        alpha = float(given) if given.numel() == 1 and not given.is_complex() else math.nan
    if alpha is not None and not math.isfinite(alpha):
        raise SettingsError(f"{file}: the alpha of {parts.key} is {said if given is None else given.tolist()}")
    return alpha


def _shapes(module: nn.Linear | nn.Conv2d, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of what a file contains for a layer."""
    if isinstance(module, nn.Linear):
        outputs = module.out_features
        return {DOWN: (rank, module.in_features), UP: (outputs, rank), MAGNITUDE: (outputs,)}
    outputs, kernel = module.out_channels, module.kernel_size
    inputs = module.in_channels // module.groups
    return {DOWN: (rank, inputs, *kernel), UP: (outputs, rank, 1, 1), MAGNITUDE: (outputs,)}


def _fitted(tensor: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """In fp32 and in the layer's shape: a linear layer in one program is a 1x1 convolution in another."""
    ones_apart = [side for side in tensor.shape if side != 1] == [side for side in shape if side != 1]
    return tensor.float().reshape(shape).contiguous() if ones_apart else None
