"""From jobs to packs, before anything starts. Pure: it reads no file and starts nothing.

A pack is a set of jobs that are trained together over one frozen base; what they must agree on is what the
base forward pass is made of. Everything else may differ inside a pack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.job import Job, State
from runner.schema import LocalLauncher

AUTO_PACK_JOBS = 8


@dataclasses.dataclass(frozen=True)
class Pack:
    """Jobs that one process (group) trains together."""

    jobs: tuple[Job, ...]
    processes: int | None
    """Processes it is spread over; None leaves it to the machine: every GPU, or one process on the CPU."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a command will do."""

    packs: tuple[Pack, ...]
    done: tuple[Job, ...]
    """Jobs that are completed already and are left alone."""
    repeated: int
    """Jobs of the command that are the same as another of it, and run once."""

    @property
    def todo(self) -> tuple[Job, ...]:
        """The jobs that will run, in the order of the packs."""
        return tuple(job for pack in self.packs for job in pack.jobs)

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "packs": [{"jobs": [job.id for job in pack.jobs], "processes": pack.processes} for pack in self.packs],
            "done": [job.id for job in self.done],
            "repeated": self.repeated,
        }

    def lines(self) -> list[str]:
        """The plan in words, a line each."""
        jobs, packs = len(self.todo), len(self.packs)
        head = f"{jobs} job{'s' * (jobs != 1)} to run in {packs} pack{'s' * (packs != 1)}"
        head += f", {len(self.done)} completed already" if self.done else ""
        head += f", {self.repeated} repeated in the command and run once" if self.repeated else ""
        lines = [head]
        for number, pack in enumerate(self.packs, start=1):
            first = pack.jobs[0].experiment
            base = f"{first.model.path}, {first.resolution} px, {first.precision}"
            places = {None: "", 1: ", 1 process"}.get(pack.processes, f", {pack.processes} processes")
            lines.append(f"  pack {number}: {base}{places}")
            lines += [f"    {job.id}  {_describe(job)}" for job in pack.jobs]
        lines += [f"  done: {job.id}  {_describe(job)}" for job in self.done]
        return lines


def _describe(job: Job) -> str:
    settings = job.experiment
    chosen = " ".join(job.overrides) or "defaults"
    return f"{chosen}  ({settings.steps} steps of {settings.batch_size}, rank {settings.lora.rank})"


def make_plan(jobs: Sequence[Job], states: Mapping[Path, State], launcher: LocalLauncher) -> Plan:
    """Sort jobs into packs.

    Args:
        jobs: the command's jobs, in its order.
        states: the state of each job's folder.
        launcher: says how many jobs a pack may hold and how many processes it gets.
    """
    distinct = {job.folder: job for job in jobs}
    done = tuple(job for job in distinct.values() if states.get(job.folder) is State.COMPLETED)
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in distinct.values():
        if job not in done:
            groups.setdefault(pack_key(job), []).append(job)
    size = AUTO_PACK_JOBS if launcher.pack == "auto" else launcher.pack
    packs = tuple(
        Pack(tuple(group[start : start + size]), launcher.processes)
        for group in groups.values()
        for start in range(0, len(group), size)
    )
    return Plan(packs, done, repeated=len(jobs) - len(distinct))


def pack_key(job: Job) -> tuple[Any, ...]:
    """What the jobs of one pack must agree on: the frozen base, its precision, the shape of the latents."""
    settings = job.experiment
    return (
        job.identity["model"],
        settings.model.prediction_type,
        settings.precision,
        settings.resolution,
        settings.lora.text_encoder,
    )
