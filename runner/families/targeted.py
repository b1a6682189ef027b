"""Which layers of a denoiser carry an adapter, and what is wrong with how they were named; without torch.

The names are in the headers of the model's files, so a mistyped name is found without loading anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from runner.families.files import model_folder
from runner.families.known import FAMILIES
from runner.families.targets import TEXT_ENCODER, Presets
from runner.schema import LoraSettings, ModelSettings
from runner.schema.messages import nearest
from runner.schema.training import matches_layer
from runner.system.tensor_file import read_header

WEIGHT = ".weight"
OF_LAYERS = (2, 4)
"""Number of dimensions of the weights of linear layers and convolutions."""

CLIP_LAYERS = [f"encoder.layers.{number}.self_attn.{end}" for number in range(32) for end in TEXT_ENCODER]
"""Layers of a text encoder that may be adapted; the largest, in SDXL and SD3, has this many."""

Targets = Sequence[str] | str
Shapes = Mapping[str, tuple[int, ...]]


def targets_of(settings: LoraSettings, presets: Presets) -> Targets:
    """Suffixes of layer names, or a regular expression for whole names, restricted to the chosen blocks."""
    chosen = presets.get(settings.targets, settings.targets)
    return chosen if settings.blocks is None else _inside(settings.blocks, chosen)


def _inside(blocks: Sequence[str], targets: Targets) -> str:
    """A regular expression for the targets, whole names or suffixes, that lie in one of the blocks."""
    ends = targets if isinstance(targets, str) else rf"(.*\.)?({'|'.join(map(re.escape, targets))})"
    return rf"(?=({'|'.join(map(re.escape, blocks))})\.)({ends})"


def matched(targets: Targets, names: Collection[str]) -> list[str]:
    """The targeted names, matched as peft does."""
    if isinstance(targets, str):
        return [name for name in names if re.fullmatch(targets, name)]
    ends = tuple(f".{each}" for each in targets)
    return [name for name in names if name in targets or name.endswith(ends)]


def target_faults(settings: LoraSettings, model: ModelSettings) -> list[str]:
    """Settings that name nothing in a checked model, one line each; empty if its weights are not here yet."""
    known, shapes = FAMILIES[model.family], _shapes_of(model)
    layers, modules = _layers(shapes), _modules(shapes)
    if not layers:
        return []
    targets = targets_of(settings, known.presets)
    adapted, unfit = matched(targets, layers), matched(targets, [name for name in modules if name not in layers])
    if unfit:
        return [cannot_carry(settings.targets, unfit[0], "no linear layer or convolution")]
    if faults := block_faults(settings, adapted, modules):
        return faults
    if not adapted:
        return [matches_nothing(settings, known.denoiser, layers)]
    return pattern_faults(settings, [*adapted, *(CLIP_LAYERS if settings.text_encoder else ())])


def adapted_shapes(settings: LoraSettings, model: ModelSettings) -> Shapes | None:
    """Weight shapes of the adapted layers of a checked model's denoiser; None if the weights are not here yet."""
    layers = _layers(_shapes_of(model))
    if not layers:
        return None
    return {name: layers[name] for name in matched(targets_of(settings, FAMILIES[model.family].presets), layers)}


def adapter_numbers(settings: LoraSettings, model: ModelSettings) -> int | None:
    """Size of an adapter for a checked model's denoiser, in numbers; None if the weights are not here yet."""
    adapted = adapted_shapes(settings, model)
    if adapted is None:
        return None
    return sum(settings.rank_of(name) * (shape[0] + math.prod(shape[1:])) for name, shape in adapted.items())


def _shapes_of(model: ModelSettings) -> Shapes:
    folder = model_folder(model)
    return {} if folder is None else _shapes(folder / FAMILIES[model.family].denoiser)


@lru_cache
def _shapes(denoiser: Path) -> Shapes:
    """The shapes of all tensors, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for file in sorted(denoiser.glob("*.safetensors")):
            shapes |= {key: tuple(about["shape"]) for key, about in read_header(file).tensors.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # loading the model reports the error
    return shapes


def _layers(shapes: Shapes) -> Shapes:
    """Linear layers and convolutions."""
    return {
        key.removesuffix(WEIGHT): shape
        for key, shape in shapes.items()
        if key.endswith(WEIGHT) and len(shape) in OF_LAYERS
    }


def _modules(names: Collection[str]) -> Collection[str]:
    """All modules with weights, and the modules that contain them."""
    parts = [key.split(".")[:-1] for key in names]
    return {".".join(part[: end + 1]): None for part in parts for end in range(len(part))}


def matches_nothing(settings: LoraSettings, component: str, layers: Collection[str]) -> str:
    """The message that nothing is targeted, with examples of existing layers."""
    names = list(layers)
    examples = dict.fromkeys((names[0], names[len(names) // 2], names[-1])) if names else ()
    return (
        f"lora.targets = {settings.targets!r}: matches no layer of the {component}; its layers are named "
        f"like {', '.join(examples)}, and a whole name must match, as with '.*to_q'"
    )


def cannot_carry(targets: str, name: str, kind: str) -> str:
    """The message that something other than a layer is targeted."""
    return (
        f"lora.targets = {targets!r}: matches {name}, {kind}, which cannot carry a LoRA; "
        "match only linear and convolution layers"
    )


def block_faults(settings: LoraSettings, adapted: Collection[str], modules: Collection[str]) -> list[str]:
    """Blocks that contain none of the adapted layers."""
    return [
        f"lora.blocks = {block!r}: holds no layer of lora.targets = {settings.targets!r}"
        f"{nearest(block, list(modules)) if block not in modules else ''}"
        for block in settings.blocks or ()
        if not any(layer.startswith(f"{block}.") for layer in adapted)
    ]


def pattern_faults(settings: LoraSettings, adapted: Sequence[str]) -> list[str]:
    """Patterns for ranks and alphas that match no adapted layer, or the same one as another pattern."""
    faults = []
    for key in ("rank_pattern", "alpha_pattern"):
        faults += _pattern_faults(f"lora.{key}", getattr(settings, key) or {}, adapted)
    return faults


def _pattern_faults(key: str, patterns: Mapping[str, float], adapted: Sequence[str]) -> list[str]:
    found = {pattern: {name for name in adapted if matches_layer(pattern, name)} for pattern in patterns}
    faults = []
    for number, (pattern, names) in enumerate(found.items()):
        if not names:
            ends = {".".join(name.split(".")[start:]): None for name in adapted for start in range(name.count(".") + 1)}
            faults.append(
                f"{key}.{pattern} = {patterns[pattern]}: matches none of the adapted layers, which are named like "
                f"{adapted[0]} and {adapted[-1]}{nearest(pattern, list(ends))}"
            )
        faults += [
            f"{key}: {pattern} and {other} both match {min(both)}; let each layer be matched by one of them"
            for other in list(found)[number + 1 :]
            if (both := names & found[other])
        ]
    return faults
