"""Checks that a merged base, or merged adapter, does what diffusers does with the base and the adapters beside it."""

from __future__ import annotations

import dataclasses
import gc
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from peft.tuners.lora import LoraLayer
from torch import Tensor

from runner.artifacts.verify import LARGEST_DIFFERENCE, LARGEST_UPDATE_DIFFERENCE, load, off
from runner.errors import ArtifactError
from runner.families import find_family
from runner.families.family import Family, Text, TextStack
from runner.mix.layers import AdapterLayers
from runner.mix.read import read_adapter
from runner.schema import ModelSettings
from runner.train.place import Place

CAPTIONS = ("a photo of a red house on a hill", "a drawing of a cat in the snow")
TIMESTEPS = (701.0, 201.0)
LATENT_SIDE = 16
LEAST_ROUNDING = 1e-6
"""Allowed for any layer's weight, as a share of its norm: fp32 sums in another order."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """How far two models are apart."""

    output: float
    """Difference of the denoiser's output, as a share of its norm."""
    weights: float
    """Difference of the layer that differs most, as a share of its weight's norm."""
    effect: float
    """How much the adapters change the output, as a share of its norm."""


class Model:
    """A base model's denoiser and text encoders, loaded for comparison.

    Args:
        folder: in diffusers layout, on this machine.
    """

    def __init__(self, settings: ModelSettings, folder: Path, place: Place, dtype: torch.dtype) -> None:
        self.family = find_family(settings.family)
        self.folder, self.settings, self.place = folder, settings, place
        self.denoiser = self.family.load_denoiser(folder, settings.variant, dtype).to(place.device)
        self.text: TextStack = self.family.load_text(folder, settings.variant, dtype)
        for encoder in self.text.encoders:
            encoder.to(place.device)
        noise = self.family.load_noise(folder, settings)
        self.pipeline: Any = self.family.pipeline(
            denoiser=self.denoiser, text=self.text, vae=None, scheduler=noise.sampler(folder, "model")
        )

    @property
    def components(self) -> dict[str, torch.nn.Module]:
        """The parts that may carry adapters."""
        return {name: getattr(self.pipeline, name) for name in self.family.adapter_components}

    @torch.no_grad()
    def output(self) -> Tensor:
        """The denoiser's output for fixed noise and captions, `[B, C, H, W]`, fp32 on the CPU."""
        draw = torch.Generator().manual_seed(0)
        channels = AutoencoderKL.load_config(self.folder / "vae")["latent_channels"]
        noisy = torch.randn(len(CAPTIONS), channels, LATENT_SIDE, LATENT_SIDE, generator=draw).to(self.place.device)
        ids = [each.to(self.place.device) for each in self.text.tokenizers.ids(CAPTIONS)]
        text: Text = self.family.encode_text(self.text, ids)
        side = float(self.settings.resolution)
        sizes = torch.tensor([[side, side, 0, 0, side, side]] * len(CAPTIONS), device=self.place.device)
        timesteps = torch.tensor(TIMESTEPS, device=self.place.device)
        return self.family.predict(self.denoiser, noisy, timesteps, text, sizes).float().cpu()

    def weight(self, component: str, name: str) -> Tensor:
        """The weight of a layer, whether or not diffusers has wrapped it with adapters."""
        module: Any = getattr(self.pipeline, component).get_submodule(name)
        base = module.get_base_layer() if isinstance(module, LoraLayer) else module
        weight: Tensor = base.weight.detach()
        return weight

    @contextmanager
    def beside(self, adapters: Sequence[tuple[Path, float]]) -> Iterator[None]:
        """Inside the context, diffusers has loaded the adapters from their files, with their weights.

        Raises:
            ArtifactError: diffusers cannot load one.
        """
        names = [f"adapter_{index}" for index in range(len(adapters))]
        try:
            for name, (file, _) in zip(names, adapters, strict=True):
                with warnings.catch_warnings():
                    # Several adapters are intended.
                    warnings.filterwarnings("ignore", "Already found a `peft_config`")
                    load(self.pipeline, file, adapter_name=name)
            self.pipeline.set_adapters(names, [weight for _, weight in adapters])
            for part in self.components.values():
                part.eval()  # diffusers leaves what it adds in training mode: dropout would apply
            yield
        finally:
            self.pipeline.unload_lora_weights()

    def fuse(self, components: Sequence[str]) -> None:
        """Let diffusers fuse the loaded adapters into the weights."""
        self.pipeline.fuse_lora(components=list(components))


def check_merged(
    settings: ModelSettings,
    folders: tuple[Path, Path],
    adapters: Sequence[tuple[Path, float]],
    layers: AdapterLayers,
    place: Place,
    *,
    computed: torch.dtype,
    stored: Mapping[str, torch.dtype],
) -> Compared:
    """Compare a merged base with the base and the adapters beside it: its output, and every adapted weight.

    Args:
        folders: of the base, and of the merged base.
        adapters: (file, weight), as diffusers reads them.
        layers: which layers are adapted.
        computed: precision of the computation.
        stored: component -> precision of its weights in the merged base.

    Raises:
        ArtifactError: a weight or the output differs by more than rounding.
    """
    base = Model(settings, folders[0], place, computed)
    bare = base.output()
    with base.beside(adapters):
        wanted = base.output()
        base.fuse(sorted({component for component, _ in layers}))
        # Only this is kept of the base: many GPUs cannot hold two whole models.
        targets = {key: base.weight(*key).cpu() for key in layers}
    del base
    gc.collect()  # the pipeline refers to itself
    merged = Model(settings.model_copy(update={"variant": None}), folders[1], place, computed)
    worst = 0.0
    for component, name in layers:
        found_weight = merged.weight(component, name).float()
        target = targets.pop((component, name)).to(found_weight)
        apart = off(found_weight, target)
        allowed = _rounding(stored[component]) + _rounding(computed)
        if not apart <= allowed:
            raise ArtifactError(
                f"{folders[1]}: {component}.{name} is not the base and the adapters: it differs by {apart:.1e} "
                f"of its norm, more than rounding ({allowed:.0e})"
            )
        worst = max(worst, apart)
    difference = off(merged.output(), wanted)
    allowed = max(LARGEST_DIFFERENCE[each] for each in (computed, *stored.values()))
    if not difference <= allowed:
        raise ArtifactError(
            f"{folders[1]}: differs from the base with the adapters beside it by {difference:.1e} of the output's "
            f"norm, more than rounding ({allowed:.0e})"
        )
    return Compared(difference, worst, off(bare, wanted))


def check_put_together(
    settings: ModelSettings,
    folder: Path,
    adapters: Sequence[tuple[Path, float]],
    merged: Path,
    place: Place,
    *,
    computed: torch.dtype,
    exact: bool,
) -> Compared:
    """Compare one adapter with those that it was combined from, both loaded by diffusers.

    Args:
        exact: whether nothing was left out; otherwise the difference is measured but not judged.

    Raises:
        ArtifactError: the difference is beyond rounding.
    """
    base = Model(settings, folder, place, computed)
    bare = base.output()
    with base.beside(adapters):
        wanted = base.output()
    with base.beside([(merged, 1.0)]):
        difference = off(base.output(), wanted)
    if exact and not difference <= LARGEST_DIFFERENCE[computed]:
        raise ArtifactError(
            f"{merged}: differs from the adapters that it was put together from by {difference:.1e} of the output's "
            f"norm, more than rounding ({LARGEST_DIFFERENCE[computed]:.0e})"
        )
    return Compared(difference, 0.0, off(bare, wanted))


def check_read_back(file: Path, family: Family, parts: Mapping[str, torch.nn.Module], wanted: AdapterLayers) -> None:
    """Read an adapter's file back and compare it, layer by layer, with what should have been written.

    Raises:
        ArtifactError: a layer's update differs.
    """
    found = read_adapter(file, family, parts)
    if found.keys() != wanted.keys():
        raise ArtifactError(f"{file}: read back, it has other layers than were written")
    for key, each in wanted.items():
        mine, read = each.magnitude, found[key].magnitude
        same = read is None if mine is None else read is not None and torch.equal(mine, read)
        apart, size = found[key].compared(each)
        if not same or not apart <= LARGEST_UPDATE_DIFFERENCE * size:
            raise ArtifactError(f"{file}: read back, {'.'.join(key)} is not what was written")


def _rounding(dtype: torch.dtype) -> float:
    return max(float(torch.finfo(dtype).eps), LEAST_ROUNDING)
