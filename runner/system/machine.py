"""The machine that jobs would run on: its GPUs or its CPU, as plain facts, found without importing torch."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Literal

from runner.system.amounts import count
from runner.system.exclusive import why_no_locks
from runner.system.printable import whole


@dataclasses.dataclass(frozen=True)
class Device:
    """Something that one process trains on."""

    kind: Literal["cpu", "cuda"]
    name: str
    memory_gb: float | None
    """Total memory (1e9 bytes); for a CPU, that of the host; None if unknown."""
    selector: str = ""
    """How CUDA_VISIBLE_DEVICES names a GPU."""
    in_software: tuple[str, ...] = ()
    """Precisions that it has no instructions for."""


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
        """The machine as each of `count` workers may use it: a CPU's memory is divided, GPUs are not shared."""
        if self.has_gpus or count == 1:
            return self
        shares = [
            dataclasses.replace(cpu, memory_gb=None if cpu.memory_gb is None else cpu.memory_gb / count)
            for cpu in self.devices
        ]
        return dataclasses.replace(self, devices=tuple(shares))

    def line(self) -> str:
        """The machine in words."""
        first, count = self.devices[0], len(self.devices)
        memory = "" if first.memory_gb is None else f", {first.memory_gb:.0f} GB" + (" each" if count > 1 else "")
        return f"{count} x {first.name}{memory}" if count > 1 else f"{first.name}{memory}"


def this_machine(device: Literal["auto", "cpu", "cuda"]) -> Machine:
    """The machine this runs on, as far as `device` allows its use."""
    gpus = () if device == "cpu" else find_gpus()
    cpu = Device("cpu", cpu_name(), host_memory_gb(), in_software=_in_software())
    return Machine(gpus or (cpu,), cores())


def with_threads(cpu: str, threads: int) -> str:
    """A CPU and how many threads of it a process uses; measurements on it are stored under this text."""
    return f"{cpu}, {count(threads, 'thread')}"


CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The file that lists this process's control groups, and the folder that holds the groups."""


def cores() -> int:
    """Number of processors that this process may use; in a container with a quota, as many as the quota is worth."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for text in _limits("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota != "max":
            found = min(found, max(1, int(quota) // int(period)))
    return found


def _limits(name: str) -> list[str]:
    """The contents of file `name` in this process's control groups (version 2), from its own up to the root."""
    mine, root = CONTROL_GROUPS
    try:
        line = next(line for line in mine.read_text(encoding="utf-8").splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    own = root / line.removeprefix("0::").lstrip("/")
    # In a container, the groups above its own are not visible.
    folders = [each for each in (own, *own.parents) if each.is_relative_to(root)]
    found = []
    for folder in folders:
        try:
            found.append((folder / name).read_text(encoding="utf-8").strip())
        except OSError:
            continue
    return found


def threads_of(count: int, processes: int) -> int:
    """Threads for each of several processes on `count` cores; `OMP_NUM_THREADS` if it is set.

    A single process leaves one core to others. Threads wait for each other in every operation: with one thread per
    core, one other busy program made steps of a small model 15 to 35 times slower, while on an idle machine the last
    core added less than half to the speed (measured on two cores).
    """
    named = named_threads()
    if named is not None:
        return named
    return max(1, count - 1 if processes == 1 else count // processes)


def named_threads() -> int | None:
    """The value of `OMP_NUM_THREADS`, if it is set to a positive number."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdecimal() and int(named) else None


CPU_FACTS = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """The processor's name and how many of its cores may be used."""
    name = _cpu_fact("model name") or platform.processor() or platform.machine()
    return f"{name}, {count(cores(), 'core')}"


def _in_software() -> tuple[str, ...]:
    """The precisions that the processor has no instructions for; none if it does not list its features."""
    has = _cpu_fact("flags").split()
    return ("bf16", "fp16") if has and not any(each.startswith("avx512") for each in has) else ()


def _cpu_fact(name: str) -> str:
    """What Linux reports about the first processor; empty on other systems."""
    try:
        found = re.search(rf"^{name}\s*:\s*(.+)$", CPU_FACTS.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def host_memory_gb() -> float | None:
    """Memory of the host in 1e9 bytes, or a container's limit; None if the system does not report it."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    return min([found, *(int(text) for text in _limits("memory.max") if text != "max")]) / 1e9


def standing(folder: Path) -> Path:
    """The folder, or its nearest existing parent if it does not exist yet."""
    # Path.exists raises below a folder that may not be entered.
    return next(each for each in (folder, *folder.parents) if os.path.exists(each))


def folder_fault(folder: Path) -> str:
    """Why this user cannot keep results in a folder, which may not exist yet; empty if that is possible."""
    if whole(str(folder)) != str(folder):
        return "its name is not UTF-8, and safetensors opens no file in it"
    there = standing(folder)
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return f"{there} cannot be written to"
    with suppress(OSError):  # a full disk, of which there are words elsewhere
        # Who works on a job is told by a lock: without them, every job would seem to be worked on by somebody else.
        if said := why_no_locks(there):
            return f"{there} is on a file system without locks ({said}; Lustre has them where it is mounted with flock)"
    return ""


def disk_of(folder: Path) -> tuple[float, int]:
    """Free space for this user, in 1e9 bytes, and the number of the file system, for a folder that may not exist yet.

    The number tells whether two folders share a file system.
    """
    there = standing(folder)
    return shutil.disk_usage(there).free / 1e9, there.stat().st_dev


def find_gpus() -> tuple[Device, ...]:
    """The NVIDIA GPUs that a process started here may use, as listed by the driver's own tool."""
    answer = _driver_says("--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines()]
    found = {row[0]: Device("cuda", row[2], _mebibytes(row[3]), row[0]) for row in rows if len(row) == 4}
    by_uuid = {row[1]: found[row[0]] for row in rows if len(row) == 4}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(found.values())
    wanted = [entry.strip() for entry in visible.split(",") if entry.strip()]
    if any(entry.startswith("MIG-") for entry in wanted):
        by_uuid |= _parts_of_gpus()
    # As in CUDA: a UUID may be shortened to its beginning, entries after an invalid one are ignored, and a process sees
    # at most one part of a GPU.
    seen = []
    for entry in wanted:
        meant = [found[entry]] if entry in found else [each for uuid, each in by_uuid.items() if uuid.startswith(entry)]
        if len(meant) != 1:
            break
        seen.append(dataclasses.replace(meant[0], selector=entry))
        if entry.startswith("MIG-"):
            break
    return tuple(seen)


def _parts_of_gpus() -> dict[str, Device]:
    """The instances that GPUs are divided into (MIG), by UUID, under CUDA's names."""
    parts, gpu = {}, ""
    for line in _driver_says("-L").splitlines():
        if found := re.match(r"GPU \d+: (.+) \(UUID: ", line):
            gpu = found[1]
        elif found := re.match(r"\s+(MIG \S*?(\d+)gb\S*)\s.*\(UUID: (MIG-\S+)\)", line):
            parts[found[3]] = Device("cuda", f"{gpu} {found[1]}", float(found[2]), found[3])
    return parts


def _driver_says(*question: str) -> str:
    """The output of the driver's own tool; empty if it is missing or fails."""
    try:
        answer = subprocess.run(["nvidia-smi", *question], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def _mebibytes(text: str) -> float | None:
    return float(text) * 2**20 / 1e9 if text.isdecimal() else None
