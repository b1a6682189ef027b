"""The machine that jobs would run on: its GPUs or its CPU, as plain facts; asked without importing torch."""

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
    """What it holds in all (1e9 bytes): of the host for a CPU; None where that is not known."""
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
        """What each of so many workers has of the memory of a CPU; GPUs are not shared."""
        if self.has_gpus or count == 1:
            return self
        shares = [
            dataclasses.replace(cpu, memory_gb=None if cpu.memory_gb is None else cpu.memory_gb / count)
            for cpu in self.devices
        ]
        return dataclasses.replace(self, devices=tuple(shares))

    def line(self) -> str:
        """In words."""
        first, count = self.devices[0], len(self.devices)
        memory = "" if first.memory_gb is None else f", {first.memory_gb:.0f} GB" + (" each" if count > 1 else "")
        return f"{count} x {first.name}{memory}" if count > 1 else f"{first.name}{memory}"


def this_machine(device: Literal["auto", "cpu", "cuda"]) -> Machine:
    """The machine this runs on, as far as `device` lets it be used."""
    gpus = () if device == "cpu" else find_gpus()
    cpu = Device("cpu", cpu_name(), host_memory_gb(), in_software=_in_software())
    return Machine(gpus or (cpu,), cores())


def with_threads(cpu: str, threads: int) -> str:
    """A CPU and how much of it a process uses, which is what measurements on it are known by."""
    return f"{cpu}, {count(threads, 'thread')}"


CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""Which this process is in, and where they are."""


def cores() -> int:
    """Processors that this process may use; of a container with a quota, as many as the quota is worth."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for text in _limits("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota != "max":
            found = min(found, max(1, int(quota) // int(period)))
    return found


def _limits(name: str) -> list[str]:
    """What the control groups (version 2) that this process is in say, from its own up to the root."""
    mine, root = CONTROL_GROUPS
    try:
        line = next(line for line in mine.read_text(encoding="utf-8").splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    own = root / line.removeprefix("0::").lstrip("/")
    # In a container the names above its own are not there.
    folders = [each for each in (own, *own.parents) if each.is_relative_to(root)]
    found = []
    for folder in folders:
        try:
            found.append((folder / name).read_text(encoding="utf-8").strip())
        except OSError:
            continue
    return found


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
    return int(named) if named.isdecimal() and int(named) else None


CPU_FACTS = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """The processor's name and how many cores of it may be used."""
    name = _cpu_fact("model name") or platform.processor() or platform.machine()
    return f"{name}, {count(cores(), 'core')}"


def _in_software() -> tuple[str, ...]:
    """The precisions that the processor has no instructions for; none where it does not say what it has."""
    has = _cpu_fact("flags").split()
    return ("bf16", "fp16") if has and not any(each.startswith("avx512") for each in has) else ()


def _cpu_fact(name: str) -> str:
    """What Linux says of the first processor; nothing elsewhere."""
    try:
        found = re.search(rf"^{name}\s*:\s*(.+)$", CPU_FACTS.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def host_memory_gb() -> float | None:
    """Memory of the host in 1e9 bytes, or what a container may have of it; None where the system does not say."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    return min([found, *(int(text) for text in _limits("memory.max") if text != "max")]) / 1e9


def standing(folder: Path) -> Path:
    """A folder, or of one that does not exist yet the nearest above it that does."""
    # Path.exists raises below a folder that may not be entered.
    return next(each for each in (folder, *folder.parents) if os.path.exists(each))


def folder_fault(folder: Path) -> str:
    """Why this user cannot keep results in a folder, which may not exist yet; empty where that can be done."""
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
    """What a file system has left for this user, in 1e9 bytes, and its number; of one for a folder that may not exist
    yet.
    """
    there = standing(folder)
    return shutil.disk_usage(there).free / 1e9, there.stat().st_dev


def find_gpus() -> tuple[Device, ...]:
    """The NVIDIA GPUs that a process started here may use, as the driver's own tool lists them."""
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
    # As CUDA does: the beginning of a UUID may stand for it, what follows an entry that is no device is not seen, and a
    # process sees one part of a GPU at most.
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
    """The instances that GPUs are divided into (MIG), by UUID; named as CUDA names them."""
    parts, gpu = {}, ""
    for line in _driver_says("-L").splitlines():
        if found := re.match(r"GPU \d+: (.+) \(UUID: ", line):
            gpu = found[1]
        elif found := re.match(r"\s+(MIG \S*?(\d+)gb\S*)\s.*\(UUID: (MIG-\S+)\)", line):
            parts[found[3]] = Device("cuda", f"{gpu} {found[1]}", float(found[2]), found[3])
    return parts


def _driver_says(*question: str) -> str:
    """What the driver's own tool answers; nothing where there is none, or it fails."""
    try:
        answer = subprocess.run(["nvidia-smi", *question], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def _mebibytes(text: str) -> float | None:
    return float(text) * 2**20 / 1e9 if text.isdecimal() else None
