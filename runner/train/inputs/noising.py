"""The noise and the timestep of a training sample, for jobs that ask for more than plain ones.

Every kind of noise has its own random stream: switching one on does not change what another draws.

# Shape suffixes: C channels, H W latent height and width, T training timesteps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from runner.families.process import NoiseProcess
from runner.schema import Experiment, LossSettings
from runner.train.randomness import generator

SMALLEST_REDUCTION, LARGEST_REDUCTION = 2.0, 4.0


class Noising:
    """How one job's samples are noised."""

    def __init__(self, experiment: Experiment, process: NoiseProcess, *, stream: str = "") -> None:
        self.settings, self.flow = experiment.loss, experiment.flow
        self.seed, self.process, self.stream = experiment.seed, process, stream
        self._shares_T = _cumulative_shares(self.settings, process.num_timesteps)

    def timestep(self, uniform: float, latent_size: Sequence[int]) -> float:
        """The timestep for a number from [0, 1), for latents of this height and width."""
        if self._shares_T is None:
            return self.process.timestep(uniform, self.flow, latent_size)
        return int(np.searchsorted(self._shares_T, uniform, side="right"))

    def noise(self, draw: np.random.Generator, sample: int, shape: Sequence[int]) -> Tensor:
        """The noise that is added to the latent and is the target where noise is predicted, `[C, H, W]`."""
        settings, noise_CHW = self.settings, normal(draw, shape)
        if settings.multires_levels:
            own = generator(self.seed, f"{self.stream}multires", sample)
            noise_CHW = _multires(noise_CHW, own, settings.multires_levels, settings.multires_discount)
        if settings.noise_offset:
            noise_CHW = noise_CHW + settings.noise_offset * normal(draw, (shape[0], 1, 1))
        return noise_CHW

    def perturbation(self, sample: int, shape: Sequence[int]) -> Tensor | None:
        """Extra noise that the model sees but that is not part of the target, `[C, H, W]` (arXiv 2301.11706)."""
        strength = self.settings.input_perturbation
        return (
            strength * normal(generator(self.seed, f"{self.stream}perturbation", sample), shape) if strength else None
        )


def _cumulative_shares(settings: LossSettings, count: int) -> np.ndarray | None:
    """Share of draws up to and including each timestep, `[T]`; None if all timesteps are equally likely."""
    if settings.timestep_bias == "none":
        return None
    often = np.ones(count)
    biased = min(max(1, round(settings.timestep_bias_portion * count)), count - 1)
    first, end = settings.timestep_bias_range or (0, 0)
    chosen = {"earlier": slice(0, biased), "later": slice(count - biased, count), "range": slice(first, end)}
    often[chosen[settings.timestep_bias]] *= settings.timestep_bias_multiplier
    shares: np.ndarray = np.cumsum(often) / often.sum()
    shares[-1] = 1.0
    return shares


def _multires(noise_CHW: Tensor, draw: np.random.Generator, levels: int, discount: float) -> Tensor:
    """Noise with coarser noise mixed in, scaled to unit deviation (pyramid noise, J. Whitaker 2023).

    Level i is noise on a grid coarser by r^i, with r drawn from [2, 4), enlarged and multiplied by discount^i.
    """
    channels, height, width = noise_CHW.shape
    for level in range(1, levels + 1):
        ratio = draw.uniform(SMALLEST_REDUCTION, LARGEST_REDUCTION) ** level
        grid = max(1, int(height / ratio)), max(1, int(width / ratio))
        coarse = F.interpolate(normal(draw, (1, channels, *grid)), size=(height, width), mode="bilinear")
        noise_CHW = noise_CHW + discount**level * coarse[0]
        if grid == (1, 1):
            break
    return noise_CHW / noise_CHW.std()


def normal(draw: np.random.Generator, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, fp32."""
    return torch.from_numpy(draw.standard_normal(tuple(shape), dtype=np.float32))
