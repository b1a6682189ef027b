"""The training loss of each sample, and the squared error that is used to compare runs.

# Shape suffixes: B samples, C channels, H W latent height and width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from runner.families.noise import NoiseSchedule
from runner.families.process import NoiseProcess
from runner.schema import LossSettings
from runner.train.inputs.samples import Batch
from runner.train.place import sent


def residual(predicted_BCHW: Tensor, batch: Batch, noise: NoiseProcess, by_base_RCHW: Tensor | None = None) -> Tensor:
    """The difference between each prediction and its target, in fp32, `[B, C, H, W]`.

    Args:
        by_base_RCHW: the target of the rows `batch.from_base`: the base model's prediction for them.
    """
    target_BCHW = noise.target(batch.latents, batch.noise, batch.timesteps)
    if by_base_RCHW is not None:
        rows = sent(torch.tensor(batch.from_base), target_BCHW.device)
        target_BCHW = target_BCHW.index_copy(0, rows, by_base_RCHW.float())
    return predicted_BCHW.float() - target_BCHW


def squared_error(residual_BCHW: Tensor) -> Tensor:
    """The mean over each sample, `[B]`."""
    return residual_BCHW.square().flatten(1).mean(1)


def training_loss(
    residual_BCHW: Tensor,
    timesteps_B: Tensor,
    settings: LossSettings,
    noise: NoiseProcess,
    masks_B1HW: Tensor | None = None,
) -> Tensor:
    """Each sample's error, weighted by its mask and its timestep, `[B]`."""
    if settings.name == "huber":
        error_BCHW = _huber_error(residual_BCHW, _huber_c(timesteps_B, settings, noise))
    else:
        error_BCHW = residual_BCHW.square()
    error_B = error_BCHW.flatten(1).mean(1) if masks_B1HW is None else masked_mean(error_BCHW, masks_B1HW)
    if settings.snr_gamma is None and not settings.debiased:
        return error_B
    assert isinstance(noise, NoiseSchedule), "the schema refuses it for flow matching"
    if settings.snr_gamma is not None:
        return error_B * noise.min_snr_weight(timesteps_B, settings.snr_gamma)
    return error_B * noise.debiased_weight(timesteps_B)


def masked_mean(error_BCHW: Tensor, masks_B1HW: Tensor) -> Tensor:
    """Each sample's error weighted by its mask, `[B]`: mean(mask * error) / mean(mask).

    Dividing by the mask's mean gives a sample the same weight however small its subject is. A mask of ones gives the
    plain mean; a crop in which nothing counts gives 0.
    """
    share_B = masks_B1HW.flatten(1).mean(1)
    return (error_BCHW * masks_B1HW).flatten(1).mean(1) / share_B.clamp(min=torch.finfo(share_B.dtype).tiny)


def _huber_error(residual_BCHW: Tensor, c_B: Tensor) -> Tensor:
    """The pseudo-Huber error of each element (arXiv 2403.16728).

    It is 2 c (sqrt(r^2 + c^2) - c): close to r^2 for r far below c, and to 2 c |r| far above.
    """
    c_B111 = c_B.view(-1, 1, 1, 1)
    square_BCHW = residual_BCHW.square()
    # sqrt(r^2 + c^2) - c, without subtracting two nearly equal numbers.
    return 2 * c_B111 * square_BCHW / ((square_BCHW + c_B111.square()).sqrt() + c_B111)


def _huber_c(timesteps_B: Tensor, settings: LossSettings, noise: NoiseProcess) -> Tensor:
    """The c of each sample, `[B]` (arXiv 2403.16728, section 4)."""
    last = settings.huber_c
    if settings.huber_schedule == "exponential":
        return torch.exp(math.log(last) * timesteps_B.float() / noise.num_timesteps)
    if settings.huber_schedule == "snr":
        assert isinstance(noise, NoiseSchedule), "the schema refuses it for flow matching"
        sigma_B = noise.snr(timesteps_B).rsqrt()
        return (1 - last) / (1 + sigma_B).square() + last
    return torch.full_like(timesteps_B, last, dtype=torch.float32)
