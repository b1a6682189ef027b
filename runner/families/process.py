"""What training, validation and verification know about a forward process: how latents get noisy, what is learned.

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
    """A path from latents to noise; the denoiser gets timesteps from 0 (no noise) to `num_timesteps` (all noise)."""

    num_timesteps: int

    def to(self, device: torch.device) -> Self:
        """Move what it holds to a device."""

    def timestep(self, uniform: float, settings: FlowSettings, latent_size: Sequence[int]) -> float:
        """The timestep of a training sample, from a uniform draw in [0, 1).

        Args:
            settings: how the timesteps of flow matching are distributed; other processes use a uniform distribution.
            latent_size: height and width of the sample's latents.
        """

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Noisy latents at the given timesteps, `[B, C, H, W]`."""

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """What the denoiser must predict, `[B, C, H, W]`."""

    def sampler(self, folder: Path, name: str) -> Any:
        """A fresh sampler of that name for the model in `folder`."""

    def sampler_fault(self, sampler: Any) -> str:
        """Why this sampler cannot draw images; empty if it can."""
