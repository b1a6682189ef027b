"""The training loss of each sample, and the held-out loss that runs are compared by.

# Shape suffixes: B samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from runner.families.noise import NoiseSchedule
from runner.schema import LossSettings
from runner.train.samples import Batch


def squared_error(predicted: Tensor, batch: Batch, noise: NoiseSchedule) -> Tensor:
    """Mean squared error of each sample's prediction in fp32, `[B]`; with masks the mean over what counts."""
    target = noise.target(batch.latents, batch.noise, batch.timesteps)
    error_BCHW = (predicted.float() - target).square()
    if batch.masks is None:
        return error_BCHW.flatten(1).mean(1)
    return masked_mean(error_BCHW, batch.masks)


def masked_mean(error_BCHW: Tensor, masks_B1HW: Tensor) -> Tensor:
    """Each sample's error weighted by its mask, `[B]`: mean(mask * error) / mean(mask).

    Divided by the mask's mean, so that a sample weighs the same however small its subject is. A mask of ones gives
    the plain mean; a crop in which nothing counts gives 0.
    """
    share_B = masks_B1HW.flatten(1).mean(1)
    return (error_BCHW * masks_B1HW).flatten(1).mean(1) / share_B.clamp(min=torch.finfo(share_B.dtype).tiny)


def weigh(error_B: Tensor, timesteps_B: Tensor, settings: LossSettings, noise: NoiseSchedule) -> Tensor:
    """Each sample's error times the weight of its timestep, `[B]`."""
    if settings.snr_gamma is None:
        return error_B
    return error_B * noise.min_snr_weight(timesteps_B, settings.snr_gamma)
