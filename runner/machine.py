"""The machine that jobs would run on: its GPUs or its CPU, as plain facts; asked without importing torch."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Device:
    """Something that one process trains on."""

    kind: Literal["cpu", "cuda"]
    name: str
    memory_gb: float | None
    """What it holds in all (1e9 bytes): of the host for a CPU; None where that is not known."""
    selector: str = ""
    """How CUDA_VISIBLE_DEVICES names a GPU."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where a launcher runs jobs."""

    devices: tuple[Device, ...]
    """The GPUs, or the one CPU."""
    cores: int

    @property
    def has_gpus(self) -> bool:
        """Whether jobs run on GPUs."""
        return self.devices[0].kind == "cuda"

    def shared_by(self, count: int) -> Machine:
        """What each of so many processes has of a CPU and its memory; GPUs are not shared."""
        if self.has_gpus or count == 1:
            return self
        (cpu,) = self.devices
        memory_gb = None if cpu.memory_gb is None else cpu.memory_gb / count
        return Machine((dataclasses.replace(cpu, memory_gb=memory_gb),), max(1, self.cores // count))

    def line(self) -> str:
        """In words."""
        first, count = self.devices[0], len(self.devices)
        memory = "" if first.memory_gb is None else f", {first.memory_gb:.0f} GB" + (" each" if count > 1 else "")
        return f"{count} x {first.name}{memory}" if count > 1 else f"{first.name}{memory}"


def this_machine(device: Literal["auto", "cpu", "cuda"]) -> Machine:
    """The machine this runs on, as far as `device` lets it be used."""
    gpus = () if device == "cpu" else find_gpus()
    return Machine(gpus or (Device("cpu", cpu_name(), host_memory_gb()),), cores())


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(count: int, processes: int) -> int:
    """Threads of each of several processes on so many cores; `OMP_NUM_THREADS` where it is set.

    A single process leaves one core to others. Threads wait for each other in every operation: with as many as cores,
    one other busy program made steps of a small model 15 to 35 times slower, and without one the last core gave less
    than half more (measured on two cores).
    """
    named = named_threads()
    if named is not None:
        return named
    return max(1, count - 1 if processes == 1 else count // processes)


def named_threads() -> int | None:
    """What `OMP_NUM_THREADS` says, where it is set to a number."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdigit() and int(named) else None


def cpu_name() -> str:
    """The processor's name and how many cores of it may be used."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name}, {cores()} core{'s' * (cores() != 1)}"


def host_memory_gb() -> float | None:
    """Memory of the host in 1e9 bytes; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError, AttributeError):
        return None


def find_gpus() -> tuple[Device, ...]:
    """The NVIDIA GPUs that a process started here may use, as the driver's own tool lists them."""
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if answer.returncode == 0]
    found = {row[0]: Device("cuda", row[2], _mebibytes(row[3]), row[0]) for row in rows if len(row) == 4}
    found |= {row[1]: found[row[0]] for row in rows if len(row) == 4}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple({device.selector: device for device in found.values()}.values())
    wanted = [entry.strip() for entry in visible.split(",") if entry.strip()]
    # As CUDA does: what follows an entry that is no device is not seen.
    seen = []
    for entry in wanted:
        if entry not in found:
            break
        seen.append(dataclasses.replace(found[entry], selector=entry))
    return tuple(seen)


def _mebibytes(text: str) -> float | None:
    return float(text) * 2**20 / 1e9 if text.isdigit() else None
