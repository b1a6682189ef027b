"""The forward process of DDPM-style models: how much noise, what the model shall predict, how samples weigh.

# Shape suffixes: B samples, C channels, H W latent height and width, T training timesteps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from runner.errors import ModelError
from runner.families.loading import load_sampler
from runner.schema import FlowSettings, ModelSettings


class NoiseSchedule:
    """Signal and noise levels of every training timestep, as the model's scheduler configuration has them."""

    def __init__(self, scheduler: DDPMScheduler, prediction_type: str) -> None:
        self.alphas_cumprod_T: Tensor = scheduler.alphas_cumprod.float()
        self.prediction_type = prediction_type
        self.num_timesteps = len(self.alphas_cumprod_T)

    def to(self, device: torch.device) -> NoiseSchedule:
        """Move the table to a device."""
        self.alphas_cumprod_T = self.alphas_cumprod_T.to(device)
        return self

    def timestep(self, uniform: float, settings: FlowSettings, latent_size: Sequence[int]) -> int:
        """The timestep of a training sample; all are drawn alike."""
        return int(uniform * self.num_timesteps)

    def sampler(self, folder: Path, name: str) -> Any:
        """A fresh sampler on the model's own schedule."""
        return load_sampler(folder, name, self.prediction_type)

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Noisy latents at the given timesteps, `[B, C, H, W]`."""
        alpha_B = self.alphas_cumprod_T[timesteps_B].view(-1, 1, 1, 1)
        return alpha_B.sqrt() * latents_BCHW + (1 - alpha_B).sqrt() * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """What the model shall predict: the noise, or the velocity of arXiv 2202.00512."""
        if self.prediction_type == "epsilon":
            return noise_BCHW
        alpha_B = self.alphas_cumprod_T[timesteps_B].view(-1, 1, 1, 1)
        return alpha_B.sqrt() * noise_BCHW - (1 - alpha_B).sqrt() * latents_BCHW

    def snr(self, timesteps_B: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha / (1 - alpha) of each sample, `[B]`."""
        alpha_B = self.alphas_cumprod_T[timesteps_B]
        return alpha_B / (1 - alpha_B)

    def min_snr_weight(self, timesteps_B: Tensor, gamma: float) -> Tensor:
        """Min-SNR weight of each sample's loss, `[B]` (arXiv 2303.09556).

        min(SNR, gamma) / SNR where noise is predicted, / (SNR + 1) where velocity is.
        """
        snr_B = self.snr(timesteps_B)
        return snr_B.clamp(max=gamma) / (snr_B + (self.prediction_type == "v_prediction"))


def load_noise_schedule(folder: Path, settings: ModelSettings) -> NoiseSchedule:
    """Read the noise schedule of the model in `folder`; `model.prediction_type` overrides what it says.

    Raises:
        ModelError: the model predicts something that is not trained here.
    """
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    kind = settings.prediction_type or config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise ModelError(f"model.prediction_type = {kind!r}: should be epsilon or v_prediction; set it to what fits")
    schedule = NoiseSchedule(scheduler, kind)
    if kind == "epsilon" and float(schedule.alphas_cumprod_T[-1]) == 0:
        raise ModelError(
            "model.prediction_type = 'epsilon': the model's schedule ends in pure noise (zero terminal SNR), from "
            "which no image follows if noise is predicted; set model.prediction_type=v_prediction or "
            "rescale_betas_zero_snr to false in the model's scheduler_config.json"
        )
    return schedule
