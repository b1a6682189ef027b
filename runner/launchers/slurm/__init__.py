"""`launcher=slurm`: workers in a Slurm cluster's queue, through submitit; without Slurm, in the background here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.jobs.job import Job
from runner.launchers import MoreJobs, lots
from runner.launchers.dispatch import Dispatch
from runner.launchers.slurm.preflight import check
from runner.launchers.slurm.text import NAMES, submission_text
from runner.plan import Plan
from runner.schema import SlurmLauncher
from runner.system.amounts import count
from runner.system.machine import Device, Machine, this_machine

if TYPE_CHECKING:
    from runner.launchers.cluster import Cluster

__all__ = ["check", "cluster", "collect", "launch", "machine", "preview"]

UNNAMED_GPU = "a GPU that launcher.gpu_name does not name"


def machine(settings: SlurmLauncher) -> Machine:
    """What the settings say about the nodes; the machine this runs on is rarely one of them."""
    if settings.cluster == "local":
        here = this_machine("auto" if settings.gpus_per_node else "cpu")
        return Machine(here.devices[: max(1, settings.gpus_per_node)], here.cores)
    workers, cores = settings.concurrency or 1, settings.cpus_per_task or 1
    if settings.gpus_per_node:
        gpu = Device("cuda", settings.gpu_name or UNNAMED_GPU, settings.gpu_memory_gb)
        return Machine((gpu,) * (settings.fixed_processes * workers), cores)
    name = f"a node, {count(cores, 'core')}" if settings.cpus_per_task else "a node"
    return Machine((Device("cpu", name, settings.mem_gb),), cores)


def launch(plan: Plan, settings: SlurmLauncher, more: MoreJobs | None = None) -> None:
    """Submit what is missing, and wait for it unless told not to; see `Dispatch.run`."""
    Dispatch(plan, settings, cluster(settings), more).run()


def collect(jobs: Sequence[Job], settings: SlurmLauncher) -> None:
    """Nothing: workers write into the job folders themselves."""


def preview(plan: Plan, settings: SlurmLauncher) -> list[str]:
    """The files that would be passed to sbatch, line by line."""
    lines: list[str] = []
    if settings.cluster != "slurm":
        return lines
    for number, pack in enumerate(plan.packs, start=1):
        lot = lots.Lot(pack, NAMES[settings.cluster])
        lines.append(f"sbatch, {count(pack.workers, 'time')} for pack {number}:")
        lines += [f"  {line}" for line in submission_text(settings, lot.order(settings.device)).splitlines()]
    return lines


def cluster(settings: SlurmLauncher) -> Cluster:
    """The queue that the settings select."""
    # submitit is imported only when something is submitted.
    from runner.launchers.slurm.clusters import BackgroundCluster, SlurmCluster

    return SlurmCluster(settings) if settings.cluster == "slurm" else BackgroundCluster(settings)
