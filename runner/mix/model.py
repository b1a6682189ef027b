"""Merges an adapter into a base model's weights, part by part, into a folder in diffusers layout.

Everything else in the base is copied: tokenizers, sampler, configurations.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import ArtifactError, Interrupted
from runner.families.layout import CONFIG, SCHEDULER_CONFIG, config_of, index_of
from runner.families.loading import load_component
from runner.mix.layers import AdapterLayers, LowRank
from runner.paths import atomic_folder, files_below, write_text
from runner.system.tensor_file import read_header

log = logging.getLogger(__name__)

LIBRARIES = ("diffusers", "transformers")
WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".msgpack", ".onnx", ".index.json")
STORED = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def parts_of(base: Path) -> dict[str, type[nn.Module]]:
    """The networks of a model in diffusers layout, by name."""
    index = index_of(base)
    found = {}
    for name, value in index.items():
        if isinstance(value, list) and value[0] in LIBRARIES and (base / name / CONFIG).is_file():
            kind = getattr(import_module(value[0]), value[1], None)
            if isinstance(kind, type) and issubclass(kind, nn.Module):
                found[name] = kind
    return found


def stored_dtype(folder: Path, variant: str | None = None) -> torch.dtype:
    """The highest precision among a part's weights; fp32 if the files do not say."""
    files = list(folder.glob(f"*.{variant}*.safetensors" if variant else "*.safetensors"))
    kinds = {str(each["dtype"]) for file in files for each in read_header(file).tensors.values()}
    return next((STORED[kind] for kind in ("F32", "BF16", "F16") if kind in kinds), torch.float32)


@torch.no_grad()
def fused(weight: Tensor, update: LowRank) -> Tensor:
    """The weight merged with the update, fp32, in the weight's shape.

    For DoRA it is `m (W + s B A) / ||W + s B A||`, output by output (arXiv 2402.09353).
    """
    change = update.up.flatten(1).to(weight.device) @ update.down.flatten(1).to(weight.device) * update.scale
    total: Tensor = weight.float() + change.view(weight.shape)
    if update.magnitude is None:
        return total
    factor = update.magnitude.to(total.device) / total.flatten(1).norm(dim=1)
    scaled: Tensor = total * factor.view(-1, *[1] * (total.dim() - 1))
    return scaled


@torch.no_grad()
def fuse(components: Mapping[str, nn.Module], layers: AdapterLayers, dtype: torch.dtype) -> None:
    """Merge an adapter into the weights of some components, in place, and convert all their weights to `dtype`.

    The sum is computed in fp32 and rounded once.
    """
    for (component, name), update in layers.items():
        if component in components:
            module = components[component].get_submodule(name)
            assert isinstance(module, (nn.Linear, nn.Conv2d)), name
            module.weight = nn.Parameter(fused(module.weight, update).to(dtype), requires_grad=False)
    for root in components.values():
        root.to(dtype)


def write_fused(
    base: Path,
    target: Path,
    layers: AdapterLayers,
    *,
    dtype: torch.dtype | None,
    variant: str | None,
    vae: Path | None,
    stop: Callable[[], bool],
) -> None:
    """Fill a folder with the model; parts that already exist are not written again.

    Args:
        dtype: precision of the weights; None keeps each part as it is stored.
        vae: folder of the VAE that replaces the base's.

    Raises:
        ArtifactError: a weight exceeds the range of `dtype`.
        Interrupted: a signal asked to stop; the parts written so far stay.
    """
    target.mkdir(parents=True, exist_ok=True)
    parts = parts_of(base)
    for name, kind in parts.items():
        if (target / name).is_dir():
            continue
        if stop():
            raise Interrupted(f"stopped before the {name}; the parts before it are written")
        replaced = vae if name == "vae" else None
        source, its_variant = (replaced, None) if replaced else (base / name, variant)
        module = load_component(
            kind, source, "", variant=its_variant, dtype=(found := stored_dtype(source, its_variant))
        )
        fuse({name: module}, layers, dtype or found)
        _check_finite(name, module, dtype or found)
        _save(module, target / name)
        log.info("%s: written", name)
    _copy_rest(base, target, set(parts), variant)


def _check_finite(name: str, module: nn.Module, dtype: torch.dtype) -> None:
    for key, tensor in module.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(
                f"{name}.{key} has numbers that are not finite in {str(dtype).removeprefix('torch.')}; take dtype=fp32"
            )


def _save(module: Any, folder: Path) -> None:
    with atomic_folder(folder) as temporary:
        module.save_pretrained(temporary)
        # diffusers records the folder that it read from, which is private.
        config = config_of(temporary)
        config.pop("_name_or_path", None)
        write_text(temporary / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _copy_rest(base: Path, target: Path, written: set[str], variant: str | None) -> None:
    index = index_of(base)
    for entry in base.iterdir():
        if entry.name in written or entry.name.startswith("."):
            continue
        if entry.is_dir() and entry.name in index:
            for file in files_below(entry):
                copy = target / entry.name / file.relative_to(entry)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)  # without its permissions: the base may be read-only
            for file in (target / entry.name).glob(f"*.{variant}.*"):  # the parts written here have no variant
                plain = file.with_name(file.name.replace(f".{variant}.", "."))
                if not plain.exists():
                    file.rename(plain)
        elif entry.is_file() and not entry.name.endswith(WEIGHTS):
            shutil.copyfile(entry, target / entry.name)


def set_prediction(folder: Path, kind: str | None, zero_terminal_snr: bool | None) -> None:
    """Make a model's sampler record what the settings said about the base's prediction, if they said anything."""
    said = {"prediction_type": kind, "rescale_betas_zero_snr": zero_terminal_snr}
    changes = {key: value for key, value in said.items() if value is not None}
    if not changes:
        return
    config = config_of(folder, "scheduler")
    write_text(folder / "scheduler" / SCHEDULER_CONFIG, json.dumps(config | changes, indent=2, sort_keys=True) + "\n")


def configuration_of(model: Path, target: Path) -> None:
    """Write a model's folder without its weights: what readers of its single file need beside it."""
    shutil.copytree(
        model, target, dirs_exist_ok=True, ignore=lambda _, names: [n for n in names if n.endswith(WEIGHTS)]
    )


def skeleton(base: Path, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """Some of a model's parts without weights, built from its configurations: names and shapes of layers."""
    found: dict[str, nn.Module] = {}
    for name, kind in parts_of(base).items():
        if name not in names:
            continue
        made: Any = kind
        with torch.device("meta"):
            if hasattr(made, "load_config"):
                found[name] = made.from_config(made.load_config(base / name))
            else:
                found[name] = made(made.config_class.from_pretrained(base / name))
    return found
