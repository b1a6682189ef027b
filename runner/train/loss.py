"""The training loss of each sample, and the held-out loss that runs are compared by.

# Shape suffixes: B samples.
"""

from __future__ import annotations

from torch import Tensor

from runner.families.noise import NoiseSchedule
from runner.families.process import NoiseProcess
from runner.schema import LossSettings
from runner.train.samples import Batch


def squared_error(predicted: Tensor, batch: Batch, noise: NoiseProcess) -> Tensor:
    """Mean squared error of each sample's prediction in fp32, `[B]`."""
    target = noise.target(batch.latents, batch.noise, batch.timesteps)
    return (predicted.float() - target).square().flatten(1).mean(1)


def weigh(error_B: Tensor, timesteps_B: Tensor, settings: LossSettings, noise: NoiseProcess) -> Tensor:
    """Each sample's error times the weight of its timestep, `[B]`."""
    if settings.snr_gamma is None:
        return error_B
    assert isinstance(noise, NoiseSchedule), "the schema refuses it for flow matching"
    return error_B * noise.min_snr_weight(timesteps_B, settings.snr_gamma)
