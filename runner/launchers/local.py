"""`launcher=local`: each pack in its own process on this machine, so that a crash takes nothing else down."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from runner.jobs.job import Job
from runner.launchers import MoreJobs
from runner.launchers.schedule import Schedule
from runner.plan import Plan
from runner.schema import LocalLauncher
from runner.system.amounts import count
from runner.system.machine import Machine, find_gpus, this_machine


def check(settings: LocalLauncher) -> list[str]:
    """Check that the requested GPUs exist."""
    gpus = len(find_gpus()) if settings.device != "cpu" else 0
    if settings.device == "cuda" and not gpus:
        return ["launcher.device = 'cuda': this machine has no NVIDIA GPU; set launcher.device=cpu or auto"]
    torch = metadata.version("torch")  # torch itself says so too, but only once loaded
    if settings.device == "cuda" and torch.endswith("+cpu"):
        return [f"launcher.device = 'cuda': torch {torch} is a build without CUDA; install one with it, or set cpu"]
    faults = []
    if gpus and (settings.processes or 1) > gpus:
        faults.append(f"launcher.processes = {settings.processes}: this machine has {count(gpus, 'GPU')}; lower it")
    if gpus and (settings.concurrency or 1) > gpus:
        faults.append(
            f"launcher.concurrency = {settings.concurrency}: this machine has {count(gpus, 'GPU')}, and each holds "
            "one pack at a time; lower it, or raise launcher.pack"
        )
    return faults


def machine(settings: LocalLauncher) -> Machine:
    """This machine."""
    return this_machine(settings.device)


def collect(jobs: Sequence[Job], settings: LocalLauncher) -> None:
    """Nothing: workers write into the job folders themselves."""


def cluster(settings: LocalLauncher) -> None:
    """None: workers end with the command."""


def preview(plan: Plan, settings: LocalLauncher) -> list[str]:
    """Nothing: the plan says everything."""
    return []


def launch(plan: Plan, settings: LocalLauncher, more: MoreJobs | None = None) -> None:
    """Run every pack on the places of this machine, and wait for all of them."""
    Schedule(plan, settings, more).run()
