"""The forward process of DDPM-style models: how much noise, what the model must predict, how samples are weighted.

# Shape suffixes: B samples, C channels, H W latent height and width, T training timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from runner.errors import ModelError
from runner.families.loading import load_sampler
from runner.families.prediction import Prediction, prediction_of, start_fault
from runner.schema import FlowSettings, ModelSettings

LARGEST_DEBIASED_SNR = 1000.0
"""Above this, the debiased weight stays constant, as in the trainers that have it."""


class NoiseSchedule:
    """Signal and noise levels of every training timestep, from the model's scheduler configuration."""

    def __init__(self, scheduler: DDPMScheduler, prediction: Prediction) -> None:
        self.alphas_cumprod_T: Tensor = scheduler.alphas_cumprod.float()
        self.prediction = prediction
        self.num_timesteps = len(self.alphas_cumprod_T)

    def to(self, device: torch.device) -> NoiseSchedule:
        """Move the table to a device."""
        self.alphas_cumprod_T = self.alphas_cumprod_T.to(device)
        return self

    def timestep(self, uniform: float, settings: FlowSettings, latent_size: Sequence[int]) -> int:
        """The timestep of a training sample; all are equally likely."""
        return int(uniform * self.num_timesteps)

    def sampler(self, folder: Path, name: str) -> Any:
        """A fresh sampler with the model's own schedule."""
        return load_sampler(folder, name, self.prediction)

    def sampler_fault(self, sampler: Any) -> str:
        """Why it cannot start from pure noise, if the schedule ends in that; empty if it can."""
        return start_fault(type(sampler).__name__, self.prediction)

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Noisy latents at the given timesteps, `[B, C, H, W]`."""
        alpha_B = self.alphas_cumprod_T[timesteps_B].view(-1, 1, 1, 1)
        return alpha_B.sqrt() * latents_BCHW + (1 - alpha_B).sqrt() * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """What the model must predict: the noise, the image, or the velocity of arXiv 2202.00512."""
        if self.prediction.kind == "epsilon":
            return noise_BCHW
        if self.prediction.kind == "sample":
            return latents_BCHW
        alpha_B = self.alphas_cumprod_T[timesteps_B].view(-1, 1, 1, 1)
        return alpha_B.sqrt() * noise_BCHW - (1 - alpha_B).sqrt() * latents_BCHW

    def snr(self, timesteps_B: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha / (1 - alpha) of each sample, `[B]`."""
        alpha_B = self.alphas_cumprod_T[timesteps_B]
        return alpha_B / (1 - alpha_B)

    def min_snr_weight(self, timesteps_B: Tensor, gamma: float) -> Tensor:
        """Min-SNR weight of each sample's loss, `[B]` (arXiv 2303.09556).

        min(SNR, gamma) if the image is predicted; that / SNR for noise, / (SNR + 1) for velocity.
        """
        snr_B = self.snr(timesteps_B)
        return self._weight(snr_B.clamp(max=gamma), snr_B)

    def debiased_weight(self, timesteps_B: Tensor) -> Tensor:
        """Weight of debiased estimation, `[B]` (arXiv 2310.08442).

        1 / sqrt(SNR) if noise is predicted; other predictions get the same objective: sqrt(SNR) for the image, and
        sqrt(SNR) / (SNR + 1) for velocity. (Other trainers use 1 / (SNR + 1) or 1 / sqrt(SNR + 1) for velocity.)
        """
        snr_B = self.snr(timesteps_B)
        return self._weight(torch.maximum(snr_B.sqrt(), snr_B / math.sqrt(LARGEST_DEBIASED_SNR)), snr_B)

    def _weight(self, of_image_B: Tensor, snr_B: Tensor) -> Tensor:
        """Convert the weight of the image's squared error to that of the predicted quantity.

        The same deviation has a squared error SNR times as large in the noise, and SNR + 1 times in velocity.
        """
        if self.prediction.kind == "sample":
            return of_image_B
        return of_image_B / (snr_B + (self.prediction.kind == "v_prediction"))


def load_noise_schedule(folder: Path, settings: ModelSettings) -> NoiseSchedule:
    """Read the noise schedule of the model in `folder`, with the settings taking precedence.

    Raises:
        ModelError: the model predicts something that cannot be trained here.
    """
    prediction = prediction_of(folder, settings)
    if prediction.fault:
        raise ModelError(prediction.fault)
    zero = {"rescale_betas_zero_snr": prediction.zero_terminal_snr}
    return NoiseSchedule(DDPMScheduler.from_pretrained(folder, subfolder="scheduler", **zero), prediction)
