"""Flow matching: a straight line from the image to the noise, and the points on it where a model is trained.

SD3 and FLUX.1 are trained on it (arXiv 2403.03206): x_s = (1 - s) x + s n at noise level s, and the model predicts
the velocity n - x. Its timestep input is 1000 s.

# Shape suffixes: B samples, C channels, H W latent height and width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, Self

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from runner.errors import ModelError
from runner.schema import FlowSettings, ModelSettings

PATCH = 2
"""Side of the squares of latents that make up one token of the transformer, in all families so far."""
LEAST_DRAW = 2.0**-54
"""Replaces 0, whose quantile is infinite; other draws are multiples of 2^-53."""


class FlowMatching:
    """The straight line, with the shift towards noise from the model's scheduler configuration."""

    def __init__(self, scheduler: Mapping[str, Any]) -> None:
        self.num_timesteps = int(scheduler.get("num_train_timesteps", 1000))
        self.scheduler = scheduler

    def to(self, device: torch.device) -> Self:
        """There is nothing to move."""
        return self

    def timestep(self, uniform: float, settings: FlowSettings, latent_size: Sequence[int]) -> float:
        """`num_timesteps` times the noise level of a training sample, from a uniform draw in [0, 1)."""
        tokens = math.prod(latent_size) // PATCH**2
        shift = self.shift(tokens) if settings.shift is None else settings.shift
        return self.num_timesteps * shifted(spread(uniform, settings), shift)

    def shift(self, tokens: int) -> float:
        """How far the model's own sampler shifts noise levels towards noise for an image of this many tokens.

        Either a constant (SD3), or exp(mu) with mu on a line through two image sizes (FLUX.1).
        """
        config = self.scheduler
        if not config.get("use_dynamic_shifting", False):
            return float(config.get("shift", 1.0))
        small, large = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        mu = low + (high - low) * (tokens - small) / (large - small)
        return float(mu if config.get("time_shift_type") == "linear" else math.exp(mu))

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """(1 - s) x + s n, `[B, C, H, W]`."""
        level_B111 = (timesteps_B.float() / self.num_timesteps).view(-1, 1, 1, 1)
        return (1 - level_B111) * latents_BCHW + level_B111 * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """n - x, `[B, C, H, W]`."""
        return noise_BCHW - latents_BCHW

    def sampler(self, folder: Path, name: str) -> Any:
        """The model's own sampler; the schema rejects the other names, which belong to other processes."""
        assert name == "model", name
        return FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")

    def sampler_fault(self, sampler: Any) -> str:
        """Always empty: this sampler starts from pure noise."""
        return ""


def spread(uniform: float, settings: FlowSettings) -> float:
    """The noise level s in [0, 1] for a uniform draw, before the shift.

    `logit_normal`: the logit of s is normal. `mode`: s = 1 - u - scale (cos^2(pi u / 2) - 1 + u), which favours the
    middle (both arXiv 2403.03206, section 3.1).
    """
    if settings.timesteps == "logit_normal":
        logit = NormalDist(settings.logit_mean, settings.logit_std).inv_cdf(max(uniform, LEAST_DRAW))
        return 1 / (1 + math.exp(-logit))
    if settings.timesteps == "mode":
        from_noise = 1 - uniform  # so that a larger draw is a noisier sample, as in the other schemes
        level = uniform - settings.mode_scale * (math.cos(math.pi * from_noise / 2) ** 2 - uniform)
        return min(max(level, 0.0), 1.0)
    return uniform


def shifted(level: float, shift: float) -> float:
    """A noise level, moved towards noise as larger images require (arXiv 2403.03206, section 5.3.2)."""
    return shift * level / (1 + (shift - 1) * level)


def load_flow_matching(folder: Path, settings: ModelSettings) -> FlowMatching:
    """Read the scheduler configuration of the model in `folder`.

    Raises:
        ModelError: the model was made for another process.
    """
    own = diffusers.DiffusionPipeline.load_config(folder)["scheduler"][1]
    if own != "FlowMatchEulerDiscreteScheduler":
        raise ModelError(
            f"model.family = {settings.family!r}: the model's scheduler is {own}, but the family is trained by flow "
            "matching; model_index.json should name FlowMatchEulerDiscreteScheduler, or set another model.family"
        )
    return FlowMatching(FlowMatchEulerDiscreteScheduler.load_config(folder, subfolder="scheduler"))
