"""What trainings write, by arithmetic: checkpoints, adapters and samples to the outputs, new encodings to the cache.

Knows only trainings, and about free space only what it is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from runner.families.arithmetic import Work
from runner.plan.models import adapter_size
from runner.schema import Experiment

NUMBER_BYTES = 4
"""Checkpoints and adapters are written in fp32."""
FILES = 2
"""One adapter file for diffusers and one for other programs."""
STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "prodigy": 16, "adafactor": 1}
"""What optimizers store per number; Adafactor keeps sums of rows and columns, next to nothing for linear layers."""
PNG_BYTES = 1.5
"""Per pixel of a photograph-like picture."""


@dataclasses.dataclass(frozen=True)
class Disk:
    """A folder that a plan writes to."""

    holds: str
    """What is written there, in a word."""
    gb: float
    """The most that will be written there, in 1e9 bytes."""
    free_gb: float
    """Free space on its file system, in 1e9 bytes."""
    filesystem: int
    """Id of the file system; folders with the same id share the free space."""


def results_gb(settings: Experiment, work: Work | None, *, pictures: int) -> float:
    """What a training leaves in its folder, in 1e9 bytes, if it draws `pictures` pictures.

    Args:
        work: what an image costs in the base; without it, the adapter's size may be unknown and is then left out.
    """
    checkpoint = settings.checkpoint
    kept = min(checkpoint.keep, (settings.steps - 1) // checkpoint.every) if checkpoint.every else 0
    averages = NUMBER_BYTES if settings.lora.ema else 0
    each = NUMBER_BYTES + averages + STATE_BYTES[settings.optimizer.name]
    adapter = adapter_size(settings, work) * (kept * each + FILES * NUMBER_BYTES)
    return (adapter + pictures * settings.resolution**2 * PNG_BYTES) / 1e9


def too_full(disks: Sequence[Disk]) -> bool:
    """Whether any file system has less free space than will be written to it."""
    asked_gb: dict[int, float] = {}
    for disk in disks:
        asked_gb[disk.filesystem] = asked_gb.get(disk.filesystem, 0.0) + disk.gb
    return any(asked_gb[disk.filesystem] > disk.free_gb for disk in disks)
