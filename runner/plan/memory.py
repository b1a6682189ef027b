"""How much memory jobs need, by arithmetic: the base, what encodes and draws, the adapters and what a step keeps.

Off by a third easily: what a device had at its peak is known only after a training there (`runner.cache.measured`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from runner.families.arithmetic import Work
from runner.jobs.job import Job
from runner.plan.models import adapter_size, text_parameters, vae_channels
from runner.system.machine import Machine

if TYPE_CHECKING:
    from runner.plan.packs import Pack

USABLE_SHARE = 0.9
"""Of a device's memory; the rest is left to its driver and to fragmentation."""
ADAPTER_BYTES = 24
"""Per trained number: weight, gradient, two moments, the padded compute copy with its gradient, and where it lies."""
PROCESS_GB = 0.6
"""Of the host's memory, before anything is loaded: torch and diffusers. Measured."""
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Of each weight of linear layers, with the scales (runner/train/adapters/quantized.py)."""

VAE_PARAMETERS = 84e6 / 128**2
"""Of a VAE, for each pair of channels at its finest level."""
DECODED = 4
"""Tensors of the second level's channels, at full resolution, that are there at once when an image is decoded. Measured
at 512 px: 1.1 GB in fp32."""


def memory_gb(pack: Pack, work: Work | None, machine: Machine, count: int) -> float:
    """Of each worker's device at the peak of a pack that will have so many jobs, in 1e9 bytes.

    Args:
        work: what an image costs in the base; known wherever nothing was measured.
    """
    assert work is not None
    largest = sorted((job_gb(job, work, pack.processes) for job in pack.jobs), reverse=True)[: pack.at_once]
    together = math.fsum(largest) / len(largest) * min(pack.at_once, count)
    kept_gb, drawing_gb = _drawing_gb(pack.jobs[0])
    return base_gb(pack.jobs[0], work, machine) + kept_gb + max(together, drawing_gb)


def base_gb(job: Job, work: Work, machine: Machine) -> float:
    """Of what stays for a whole training."""
    # Text encoders are gone by then, unless captions pass through them at every step.
    whole = BYTES[job.experiment.precision]
    linear = QUANTIZED_BYTES.get(job.experiment.model.quantization, whole)
    weights = work.in_convolutions * whole + (work.parameters - work.in_convolutions) * linear
    if job.experiment.live_text:
        weights += text_parameters(job.experiment.model) * whole
    held_gb = 1.05 * weights / 1e9
    return held_gb if machine.has_gpus else held_gb + PROCESS_GB


def encoding_gb(job: Job, machine: Machine) -> float:
    """While captions are encoded, in fp32."""
    encoders_gb = text_parameters(job.experiment.model) * BYTES["fp32"] / 1e9
    return encoders_gb if machine.has_gpus else encoders_gb + PROCESS_GB


def job_gb(job: Job, work: Work, processes: int) -> float:
    """What one more job adds to a step."""
    settings = job.experiment
    checkpointing = settings.launcher.gradient_checkpointing
    rows = -(-settings.images_per_step // (settings.accumulation * processes))
    kept = rows * work.kept_numbers(checkpointing=checkpointing) * BYTES[settings.precision]
    return (kept + adapter_size(settings, work) * ADAPTER_BYTES) / 1e9


def _drawing_gb(job: Job) -> tuple[float, float]:
    """Of the VAE that draws samples, in fp32 beside the denoiser; and of an image that it decodes."""
    settings = job.experiment
    if settings.validation.prompts == ():
        return 0.0, 0.0
    channels = vae_channels(settings.model)
    decoded = DECODED * channels[:2][-1] * settings.resolution**2
    return VAE_PARAMETERS * channels[0] ** 2 * BYTES["fp32"] / 1e9, decoded * BYTES["fp32"] / 1e9
