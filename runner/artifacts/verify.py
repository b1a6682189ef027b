"""Checks that the saved files, read back by diffusers, give what was trained; otherwise the job fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from runner.artifacts.files import adapted_layers
from runner.errors import ArtifactError
from runner.families.family import Family
from runner.mix.layers import LowRank
from runner.mix.write import Layers, published_keys, published_name
from runner.train.adapters.adapter import DOWN, MAGNITUDE, UP
from runner.train.base import Base
from runner.train.inputs.samples import Batch
from runner.train.inputs.text import Conditioner

LARGEST_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest allowed difference of two denoiser outputs, as a share of their norm: the same product in another
order of operations. A short training may change the output by less, so layers, weights and scales are also
compared one by one."""
LARGEST_UPDATE_DIFFERENCE = 1e-5
"""Largest allowed difference of a layer's update, fp32, as a share of its norm."""

ScaleOf = Callable[[str], float]
"""The scale of the update of a layer, by its name."""


def check_tensors(file: Path, layers: Layers) -> None:
    """Check that the file's tensors are, bit for bit, the trained ones.

    Raises:
        ArtifactError: one is not; names the first.
    """
    saved = _read(file)
    expected = {
        f"{component}.{key}": tensor
        for component, tensors in published_keys(layers).items()
        for key, tensor in tensors.items()
    }
    if saved.keys() != expected.keys():
        raise ArtifactError(f"{file}: other layers than were trained: {min(saved.keys() ^ expected.keys())}")
    for key, tensor in expected.items():
        if not torch.equal(saved[key], tensor):
            raise ArtifactError(f"{file}: {key} is not what was trained")


def check_kohya(file: Path, family: Family, layers: Layers, scale_of: ScaleOf) -> None:
    """Check that every layer's update, by the layout's arithmetic (up @ down * alpha / rank), is the trained one.

    Raises:
        ArtifactError: one is not; names the first layer.
    """
    saved = _read(file)
    for component, tensors in layers.items():
        for layer in adapted_layers(tensors):
            names = family.export.names(component, published_name(component, layer))
            up, down = saved.pop(names.up, None), saved.pop(names.down, None)
            alpha = saved.pop(names.alpha, None) if names.alpha else None
            if up is None or down is None or (names.alpha and alpha is None):
                raise ArtifactError(f"{file}: {names.up} is not complete")
            trained = LowRank(tensors[f"{layer}.{DOWN}"], tensors[f"{layer}.{UP}"], scale_of(layer))
            read = LowRank(down, up, 1.0 if alpha is None else float(alpha) / len(down))
            apart, size = read.compared(trained)
            if not apart <= LARGEST_UPDATE_DIFFERENCE * size:
                raise ArtifactError(f"{file}: {names.up} is not what was trained")
    if saved:
        raise ArtifactError(f"{file}: {min(saved)} was not trained")


def off(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference of two tensors, as a share of the second's norm."""
    return float(torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted))


def _read(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{file}: cannot be read back ({error})") from error
    return tensors


@torch.no_grad()
def check_behaviour(
    files: Mapping[str, tuple[Path, ScaleOf]],
    layers: Layers,
    base: Base,
    conditioner: Conditioner,
    batch: Batch,
    use_rows: Callable[[int], AbstractContextManager[None]],
) -> dict[str, float]:
    """Load each file into a diffusers pipeline over the same base and compare its denoiser with the trained one.

    Args:
        files: name of each file in the result -> the file, and the scale that each of its layers must get.
        layers: the trained weights, which also determine the layers that must be found.
        batch: samples to compare on.
        use_rows: gives rows of a forward pass to the trained adapter.

    Returns:
        The difference as a share of the norm, for each file.

    Raises:
        ArtifactError: a layer or scale is not the trained one, or a difference is beyond rounding.
    """

    with use_rows(len(batch.captions)):
        as_trained = conditioner.text(batch.captions)

    def output() -> Tensor:
        # These files do not contain new words.
        text = conditioner.text(batch.captions) if base.trains_text else as_trained
        noisy = base.noise.add_noise(batch.latents, batch.noise, batch.timesteps)
        return base.family.predict(base.denoiser, noisy, batch.timesteps, text, batch.time_ids).float()

    with use_rows(len(batch.captions)):
        trained = output()
    differences = {}
    for name, (file, scale_of) in files.items():
        text = base.text if base.trains_text else None
        pipeline = base.family.pipeline(denoiser=base.denoiser, text=text, vae=None, scheduler=base.sampler("model"))
        try:
            load(pipeline, file)
            _check_layers(pipeline, file, layers, scale_of)
            _check_magnitudes(pipeline, file, layers)
            loaded = output()
        finally:
            pipeline.unload_lora_weights()
        difference = off(loaded, trained)
        if not difference <= LARGEST_DIFFERENCE[base.dtype]:
            raise ArtifactError(
                f"{file}: loaded into diffusers, the adapter differs from the trained one by {difference:.1e} of the "
                f"output's norm, more than rounding ({LARGEST_DIFFERENCE[base.dtype]:.0e})"
            )
        differences[name] = difference
    return differences


def load(pipeline: Any, file: Path, **options: Any) -> None:
    """Let diffusers load the adapter in a file beside a pipeline's layers.

    Raises:
        ArtifactError: it cannot.
    """
    try:
        # On the meta device peft runs the usual initialization of each layer in Python; with real tensors, loading
        # takes about half as long (measured on 56 layers: 0.17 instead of 0.30 s).
        pipeline.load_lora_weights(file.parent, weight_name=file.name, low_cpu_mem_usage=False, **options)
    except Exception as error:  # whatever it is, users could not load the file either
        raise ArtifactError(f"{file}: diffusers cannot load it ({type(error).__name__}: {error})") from error


def _check_layers(pipeline: Any, file: Path, layers: Layers, scale_of: ScaleOf) -> None:
    """Check that diffusers has put an adapter, with the right scale, on the trained layers and on no others."""
    expected = {
        (component, layer): scale_of(layer)
        for component, tensors in layers.items()
        for layer in adapted_layers(tensors)
    }
    found = {
        (component, name): float(next(iter(module.scaling.values())))
        for component in layers
        for name, module in getattr(pipeline, component).named_modules()
        if isinstance(module, LoraLayer)
    }
    for component, name in sorted(expected.keys() | found.keys()):
        want, got = expected.get((component, name)), found.get((component, name))
        if want is None or got is None or abs(want - got) > LARGEST_UPDATE_DIFFERENCE * want:
            raise ArtifactError(
                f"{file}: diffusers scales {component}.{name} by {got or 'nothing'}, but it was trained with "
                f"{want or 'nothing'}"
            )


def _check_magnitudes(pipeline: Any, file: Path, layers: Layers) -> None:
    """Check that diffusers has the trained DoRA magnitudes at every trained layer, and none elsewhere."""
    for component, tensors in layers.items():
        for name, module in getattr(pipeline, component).named_modules():
            if not isinstance(module, LoraLayer):
                continue
            trained = tensors.get(f"{name}.{MAGNITUDE}")
            read = next((each.weight.cpu() for each in module.lora_magnitude_vector.values()), None)
            if trained is None and read is None:
                continue
            if trained is None or read is None or not torch.equal(trained.to(read.dtype), read):
                raise ArtifactError(f"{file}: diffusers has other magnitudes at {component}.{name} than were trained")
