"""What a job costs in its pack, and what it would have cost alone."""

from __future__ import annotations

import dataclasses
import resource
import sys

import torch


@dataclasses.dataclass
class Cost:
    """What a manifest says about a job's cost, apart from its share of the time."""

    alone_s: float | None = None
    """Seconds it would have taken in a process of its own, from a step measured alone; None until known."""
    packed_with: int = 1
    """The most jobs that were trained together with it, including itself."""
    peak_memory_gb: float = 0.0
    """Peak memory of its process, in units of 1e9 bytes: of the GPU if it used one, of the host otherwise."""


@dataclasses.dataclass(frozen=True)
class Alone:
    """What a separate process would spend again for each job."""

    startup_s: float
    """From the start of the process to its first job."""
    load_s: float
    """Loading the base."""
    step_s: float | None
    """One optimizer step without the other jobs; None if there were none."""


def alone_s(alone: Alone, timings: dict[str, float], steps: int) -> float:
    """Seconds from the start to the end of a process that trains one job alone.

    Encoding, validation and file times are taken as measured: they are this job's own.
    """
    own_s = timings["cache"] + timings["validate"] + timings["artifacts"]
    train_s = timings["train"] if alone.step_s is None else steps * alone.step_s
    return alone.startup_s + alone.load_s + own_s + train_s


def peak_memory_gb() -> float:
    """Peak memory so far: of the GPU if this process uses one, of the process itself otherwise."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 1e9
