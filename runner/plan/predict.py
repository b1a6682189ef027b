"""What packs will cost: from measurements on the same device if there are any, otherwise from arithmetic.

Arithmetic knows how many operations and activations an image needs (`runner.families.arithmetic`), and what share of a
device's peak such trainings have reached. It is easily off by a factor of two, and is labelled an estimate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.cache.measured import Conditions, Measurement, recall, step_s
from runner.data.prompts import PROMPTS_FROM_CAPTIONS
from runner.families.arithmetic import Work
from runner.families.known import FAMILIES
from runner.jobs.job import Job
from runner.plan.disk import results_gb
from runner.plan.memory import USABLE_SHARE, base_gb, encoding_gb, job_gb, memory_gb
from runner.plan.models import denoiser_config, latent_side, trained_share
from runner.system.machine import Device, Machine, threads_of, with_threads

if TYPE_CHECKING:
    from runner.plan.packs import Pack

OVERHEAD_S = 15.0
"""Time to start a process and load a base, if that was never measured."""
REACHED_TFLOPS = {"H200": 330.0, "H100": 200.0, "A100": 80.0, "L40S": 80.0, "A10G": 25.0, "L4": 20.0, "T4": 10.0}
"""Speed of 16-bit training, until a step has been measured on the device. The H200's is measured
(benchmarks/results/full_size_unet.md); the others are assumed: a quarter of what large matrix products reach.
"""
REACHED_TFLOPS_OTHERWISE = 15.0
REACHED_TFLOPS_PER_THREAD = 0.05


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The time, memory and disk space that a pack will take."""

    seconds: float
    """From the start of its first worker to the end of its last one."""
    alone_s: float
    """Time for the same jobs one after another, each in its own process."""
    memory_gb: float
    """Peak memory of each worker's device in 1e9 bytes. Arithmetic covers training, not what comes before it."""
    measured: bool
    """Whether a step was measured on this device; otherwise all is arithmetic."""
    encoding_gb: float = 0.0
    """Memory of the same device before training, if captions are to be encoded: the text encoders in fp32."""
    results_gb: float = 0.0
    """What it leaves in the outputs, in 1e9 bytes: checkpoints, adapters and samples."""


class Predictor:
    """Looks up what is known, once for each base."""

    def __init__(self) -> None:
        self._works: dict[tuple[Any, ...], Work | None] = {}
        self._known: dict[Conditions, list[Measurement]] = {}

    def fitting(self, jobs: Sequence[Job], machine: Machine, processes: int) -> tuple[int, str] | None:
        """How many of these jobs fit into a place's memory at once, and how that is known; None if unknown."""
        sizes_gb = [device.memory_gb for device in machine.devices if device.memory_gb is not None]
        work = self._work(jobs[0])
        if work is None or not sizes_gb:
            return None
        smallest_gb = min(sizes_gb)
        room_gb = smallest_gb * USABLE_SHARE - base_gb(jobs[0], work, machine)
        each_gb = max(job_gb(job, work, processes) for job in jobs)
        return int(room_gb / each_gb), f"as far as {smallest_gb:.0f} GB hold them, by estimate"

    def predict(
        self, pack: Pack, machine: Machine, places: int, count: int, steps_done: Mapping[Path, int]
    ) -> Prediction | None:
        """Time and memory of a pack if `places` workers share a CPU; None if nothing is known about its base.

        Args:
            count: how many jobs like the present ones it will have in all.
            steps_done: folder -> the step that a job continues after.
        """
        first = pack.jobs[0]
        if not first.trains:
            return None
        work = self._work(first)
        known = self._measured(first, pack, machine, places)
        if work is None and not known:
            return None
        rows = pack.at_once * sum(job.experiment.images_per_step for job in pack.jobs) / len(pack.jobs)
        seconds_of = _Seconds(known, work, first, machine, places, pack.processes)
        known_alone = self._measured(first, pack, machine, 1) or known
        alone_of = _Seconds(known_alone, work, first, machine, 1, pack.processes)
        overhead_s = known[-1].overhead_s if known else OVERHEAD_S
        share = count / len(pack.jobs)
        left = [(job, 1 - min(1.0, steps_done.get(job.folder, 0) / job.experiment.steps)) for job in pack.jobs]
        together_s = share * sum(_trained(job) * part for job, part in left) * seconds_of(rows) / rows
        passes = share * sum(_passes(job) * part for job, part in left)
        alone_s = share * sum(
            job.experiment.steps * part * alone_of(job.experiment.images_per_step) for job, part in left
        )
        alone_s += passes * alone_of.forward(rows)
        return Prediction(
            seconds=overhead_s + (together_s + passes * seconds_of.forward(rows)) / pack.workers,
            alone_s=alone_s + overhead_s * count,
            memory_gb=known[-1].peak_memory_gb if known else memory_gb(pack, work, machine, count),
            measured=bool(known),
            encoding_gb=0.0 if first.experiment.live_text else encoding_gb(first, machine),
            results_gb=share
            * math.fsum(results_gb(each.experiment, work, pictures=_pictures(each)) for each in pack.jobs),
        )

    def _measured(self, job: Job, pack: Pack, machine: Machine, places: int) -> list[Measurement]:
        device = machine.devices[0].name
        if not machine.has_gpus:
            device = with_threads(device, threads_of(machine.cores, places * pack.processes))
        conditions = Conditions.of(job, device=device, processes=pack.processes)
        if conditions not in self._known:
            self._known[conditions] = recall(conditions)
        return self._known[conditions]

    def _work(self, job: Job) -> Work | None:
        settings = job.experiment
        key = (job.identity["model"], settings.model.path, settings.resolution)
        if key not in self._works:
            family = FAMILIES[settings.model.family]
            config = denoiser_config(settings.model, family)
            self._works[key] = None
            if config is not None:
                side = latent_side(settings.model, settings.resolution)
                self._works[key] = family.count(config, latent_side=side)
        return self._works[key]


class _Seconds:
    """Seconds of a step, given the number of images on one worker."""

    def __init__(
        self,
        known: Sequence[Measurement],
        work: Work | None,
        job: Job,
        machine: Machine,
        places: int,
        processes: int,
    ) -> None:
        device, self.known = machine.devices[0], known
        settings = job.experiment
        self.image_s = 0.0
        self.least_s = FAMILIES[settings.model.family].least_step_s if device.kind == "cuda" else 0.0
        if work is not None:
            checkpointing = settings.launcher.gradient_checkpointing
            threads = threads_of(machine.cores, places * processes)
            speed = reached_tflops(device, settings.precision, threads) * processes
            self.image_s = work.training_flop(checkpointing=checkpointing) / 1e12 / speed

    def __call__(self, rows: float) -> float:
        return step_s(self.known, rows) if self.known else max(self.least_s, self.image_s * rows)

    def forward(self, rows: float) -> float:
        """Seconds for a pass of one image without training: measured while drawing, or half of a training step's."""
        measured = self.known[-1].forward_s if self.known else 0.0
        return measured or self(rows) / rows / 2


def reached_tflops(device: Device, precision: str, threads: int) -> float:
    """The assumed speed of training on a device without measurements, or with this many CPU threads."""
    if device.kind == "cpu":
        return REACHED_TFLOPS_PER_THREAD * threads
    # The longest name first: "L4" is also in "L40S".
    names = sorted(REACHED_TFLOPS, key=len, reverse=True)
    full = next((REACHED_TFLOPS[name] for name in names if name in device.name), REACHED_TFLOPS_OTHERWISE)
    return full if precision != "fp32" else full / 4


def images_of(job: Job) -> float:
    """The amount of work in a training, in units of one image in a training step through the base alone.

    For a frozen weight, a step computes the output and the input's gradient; for an adapter's, also its own gradient.
    """
    settings = job.experiment
    adapter = 1.5 * trained_share(settings) * settings.lora.rank
    return _trained(job) * (1 + adapter) + _drawing(job)


def without_adapter(job: Job) -> float:
    """The same without what the adapter adds."""
    return _trained(job) + _drawing(job)


def _trained(job: Job) -> int:
    return job.experiment.steps * job.experiment.images_per_step


def _drawing(job: Job) -> float:
    """Validation in images of a training step: a forward pass counts about half."""
    return _passes(job) / 2


def _passes(job: Job) -> float:
    """How often an image passes through the denoiser in all validations, guidance included."""
    validation = job.experiment.validation
    family = FAMILIES[job.settings.model.family]
    rows = family.rows(family.guidance(validation.guidance_scale))
    drawn = _pictures(job) * validation.inference_steps * rows
    return drawn + _validations(job) * validation.timesteps * 4


def _validations(job: Job) -> int:
    every = job.experiment.validation.every
    return 2 + (job.experiment.steps - 1) // every if every else 2


def _pictures(job: Job) -> int:
    validation = job.experiment.validation
    prompts = PROMPTS_FROM_CAPTIONS if validation.prompts is None else len(validation.prompts)
    return _validations(job) * prompts * len(validation.seeds)
