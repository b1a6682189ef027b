"""The saved files, read back by diffusers, must give what was trained; a job that cannot show that is not done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from runner.artifacts.files import Layers, published_keys
from runner.errors import ArtifactError
from runner.train.base import Base
from runner.train.samples import Batch
from runner.train.text import Conditioner

LARGEST_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest allowed difference of two denoiser outputs, as a share of their norm: the same product in another
order of operations. A lost scale, layer or alpha is far beyond it."""


def check_tensors(file: Path, layers: Layers) -> None:
    """The file's tensors are, bit for bit, the trained ones.

    Raises:
        ArtifactError: naming the first that is not.
    """
    saved = load_file(file)
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


@torch.no_grad()
def check_behaviour(
    files: Mapping[str, Path],
    base: Base,
    conditioner: Conditioner,
    batch: Batch,
    use_rows: Callable[[int], AbstractContextManager[None]],
) -> dict[str, float]:
    """Load each file into a diffusers pipeline over the same base and compare its denoiser with the trained one.

    Args:
        files: what each file is called in the result -> the file.
        batch: samples to compare on.
        use_rows: gives rows of a forward pass to the trained adapter.

    Returns:
        The difference as a share of the norm, for each file.

    Raises:
        ArtifactError: a difference is beyond rounding.
    """

    def output() -> Tensor:
        text = conditioner.text(batch.captions)
        noisy = base.noise.add_noise(batch.latents, batch.noise, batch.timesteps)
        return base.family.predict(base.denoiser, noisy, batch.timesteps, text, batch.time_ids).float()

    with use_rows(len(batch.captions)):
        trained = output()
    differences = {}
    for name, file in files.items():
        text = base.text if base.trains_text else None
        pipeline = base.family.pipeline(denoiser=base.denoiser, text=text, scheduler=base.sampler("model"))
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
        try:
            loaded = output()
        finally:
            pipeline.unload_lora_weights()
        difference = float(torch.linalg.vector_norm(loaded - trained) / torch.linalg.vector_norm(trained))
        if not difference <= LARGEST_DIFFERENCE[base.dtype]:
            raise ArtifactError(
                f"{file}: loaded into diffusers, the adapter differs from the trained one by {difference:.1e} of the "
                f"output's norm, more than rounding ({LARGEST_DIFFERENCE[base.dtype]:.0e})"
            )
        differences[name] = difference
    return differences
