"""How much memory jobs need, by arithmetic: the base, encoders and decoders, the adapters and what a step keeps.

Easily off by a third: a device's real peak is known only after a training there (`runner.cache.measured`).
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
"""Share of a device's memory to plan with; the rest is left to its driver and fragmentation."""
ADAPTER_BYTES = 24
"""Per trained number: weight, gradient, two moments, the padded compute copy with its gradient, and its position."""
PROCESS_GB = 0.6
"""Host memory for torch and diffusers before anything is loaded. Measured."""
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Per weight of a linear layer, including the scales (runner/train/adapters/quantized.py)."""

VAE_PARAMETERS = 84e6 / 128**2
"""Parameters of a VAE per pair of channels at its finest level."""
DECODED = 4
"""How many full-resolution tensors with the second level's channels exist at once while an image is decoded. Measured
at 512 px: 1.1 GB in fp32."""


def memory_gb(pack: Pack, work: Work | None, machine: Machine, count: int) -> float:
    """Peak memory of each worker's device for a pack that will have `count` jobs, in 1e9 bytes.

    Args:
        work: what an image costs in the base; always known if nothing was measured.
    """
    assert work is not None
    largest = sorted((job_gb(job, work, pack.processes) for job in pack.jobs), reverse=True)[: pack.at_once]
    together = math.fsum(largest) / len(largest) * min(pack.at_once, count)
    kept_gb, drawing_gb = _drawing_gb(pack.jobs[0])
    return base_gb(pack.jobs[0], work, machine) + kept_gb + max(together, drawing_gb)


def base_gb(job: Job, work: Work, machine: Machine) -> float:
    """What stays in memory for a whole training."""
    # Text encoders are unloaded by then, unless captions pass through them at every step.
    whole = BYTES[job.experiment.precision]
    linear = QUANTIZED_BYTES.get(job.experiment.model.quantization, whole)
    weights = work.in_convolutions * whole + (work.parameters - work.in_convolutions) * linear
    if job.experiment.live_text:
        weights += text_parameters(job.experiment.model) * whole
    held_gb = 1.05 * weights / 1e9
    return held_gb if machine.has_gpus else held_gb + PROCESS_GB


def encoding_gb(job: Job, machine: Machine) -> float:
    """What is in memory while captions are encoded, in fp32."""
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
    """(memory of the VAE that draws samples, in fp32 beside the denoiser; memory of an image that it decodes)."""
    settings = job.experiment
    if settings.validation.prompts == ():
        return 0.0, 0.0
    channels = vae_channels(settings.model)
    decoded = DECODED * channels[:2][-1] * settings.resolution**2
    return VAE_PARAMETERS * channels[0] ** 2 * BYTES["fp32"] / 1e9, decoded * BYTES["fp32"] / 1e9
