"""What training, validation and verification know of a forward process: how latents become noisy, and what is learned.

# Shape suffixes: B samples, C channels, H W latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from runner.schema import FlowSettings


class NoiseProcess(Protocol):
    """A way from latents to noise, told to the denoiser in timesteps from 0 (none) to `num_timesteps` (all noise)."""

    num_timesteps: int

    def to(self, device: torch.device) -> Self:
        """Move what it holds to a device."""

    def timestep(self, uniform: float, settings: FlowSettings, latent_size: Sequence[int]) -> float:
        """The timestep of a training sample, from a uniform draw in [0, 1).

        Args:
            settings: how timesteps of flow matching are spread; other processes spread them evenly.
            latent_size: height and width of the sample's latents.
        """

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Noisy latents at the given timesteps, `[B, C, H, W]`."""

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """What the denoiser shall predict, `[B, C, H, W]`."""

    def sampler(self, folder: Path, name: str) -> Any:
        """A fresh sampler of that name for the model in `folder`."""

    def sampler_fault(self, sampler: Any) -> str:
        """Why images cannot be drawn by such a sampler; empty if they can."""
