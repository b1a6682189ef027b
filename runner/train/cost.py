"""What a job costs: with the others, and what it would have cost alone."""

from __future__ import annotations

import dataclasses
import resource
import sys

import torch


@dataclasses.dataclass
class Cost:
    """What a manifest says of a job's cost beside its share of the time."""

    alone_s: float | None = None
    """Seconds it would have taken as a process of its own, from a step measured alone; None before it is known."""
    packed_with: int = 1
    """Most jobs that were trained together with it, itself included."""
    peak_memory_gb: float = 0.0
    """Most memory that its process held: of the GPU where it used one, of the host otherwise; 1e9 bytes."""


@dataclasses.dataclass(frozen=True)
class Alone:
    """What a process of its own would pay again for a job."""

    startup_s: float
    """From the start of the process to its first job."""
    load_s: float
    """Loading the base."""
    step_s: float | None
    """One optimizer step without the others; None where there were no others."""


def alone_s(alone: Alone, timings: dict[str, float], steps: int) -> float:
    """Seconds from the start to the end of a process that trains one job alone.

    Encoding, validation and files are taken as they were measured: they are this job's own.
    """
    own_s = timings["cache"] + timings["validate"] + timings["artifacts"]
    train_s = timings["train"] if alone.step_s is None else steps * alone.step_s
    return alone.startup_s + alone.load_s + own_s + train_s


def peak_memory_gb() -> float:
    """Most memory held so far: of the GPU where this process uses one, of itself otherwise."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 1e9
