"""What trainings write, by arithmetic: checkpoints, adapters and samples in the outputs, new encodings in the cache.

Knows of trainings only, and of the room there is what it is told.
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
"""The adapter for diffusers, and the one for other programs."""
STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "prodigy": 16, "adafactor": 1}
"""What optimizers keep of each number; Adafactor has sums of rows and columns, hardly any of linear layers."""
PNG_BYTES = 1.5
"""Of each pixel of a picture like a photograph."""


@dataclasses.dataclass(frozen=True)
class Disk:
    """A folder that a plan writes to."""

    holds: str
    """In a word."""
    gb: float
    """What comes to it, at most: 1e9 bytes."""
    free_gb: float
    """What its file system has left."""
    filesystem: int
    """The same number for folders that share what is left."""


def results_gb(settings: Experiment, work: Work | None, *, pictures: int) -> float:
    """What a training leaves in its folder, in 1e9 bytes, where it draws so many pictures.

    Args:
        work: what an image costs in the base; without it nothing may be known of the adapter, which is left out.
    """
    checkpoint = settings.checkpoint
    kept = min(checkpoint.keep, (settings.steps - 1) // checkpoint.every) if checkpoint.every else 0
    averages = NUMBER_BYTES if settings.lora.ema else 0
    each = NUMBER_BYTES + averages + STATE_BYTES[settings.optimizer.name]
    adapter = adapter_size(settings, work) * (kept * each + FILES * NUMBER_BYTES)
    return (adapter + pictures * settings.resolution**2 * PNG_BYTES) / 1e9


def too_full(disks: Sequence[Disk]) -> bool:
    """Whether one of the file systems has less room than is asked of it."""
    asked_gb: dict[int, float] = {}
    for disk in disks:
        asked_gb[disk.filesystem] = asked_gb.get(disk.filesystem, 0.0) + disk.gb
    return any(asked_gb[disk.filesystem] > disk.free_gb for disk in disks)
