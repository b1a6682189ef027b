"""Which jobs are trained together, how many at once, and over how many places.

A pack is a set of jobs that share one frozen base; they must agree on everything that determines the base's forward
pass. All else may differ inside a pack. Workers take a pack's jobs one after another, the longest first: when a job
ends, the next one takes its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.jobs.job import Job, State
from runner.plan.predict import Prediction, Predictor, images_of, without_adapter
from runner.schema import LauncherSettings, LocalLauncher, QueuedLauncher
from runner.system.machine import Machine, named_threads

MOST_AT_ONCE = {"cpu": 8, "cuda": 16}
"""The most jobs that `launcher.pack=auto` trains together. Fewer are enough to keep a CPU busy."""
JOBS_PER_WORKER = 4
"""Jobs per additional worker on a CPU: this many keep most of what packing saves, and cores that work on their own
packs get more done than the threads of one."""


@dataclasses.dataclass(frozen=True)
class Pack:
    """Jobs over one base, and how to work through them."""

    jobs: tuple[Job, ...]
    at_once: int
    """The most jobs that a worker trains together."""
    workers: int
    """How many workers share the jobs, each on its own places."""
    processes: int
    """Processes of each worker, that is, the places over which one batch is spread."""
    why: str
    """The reason for `at_once`."""
    prediction: Prediction | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a command will do."""

    packs: tuple[Pack, ...]
    machine: Machine
    places: int = 1
    """How many places can train at the same time: GPUs, or shares of the one CPU."""
    done: tuple[Job, ...] = ()
    """Jobs that are already completed or pruned, and are left alone."""
    elsewhere: tuple[Job, ...] = ()
    """Jobs that another runner is working on right now."""
    repeated: int = 0
    """How many jobs of the command duplicate another one; each runs only once."""
    expected: int = 0
    """How many jobs there will be in all, if a search chooses the others later."""
    steps_done: Mapping[Path, int] = dataclasses.field(default_factory=dict)
    """Folder of a job that continues -> the step of its newest checkpoint."""

    @property
    def todo(self) -> tuple[Job, ...]:
        """The jobs that will run, in pack order."""
        return tuple(job for pack in self.packs for job in pack.jobs)


def make_plan(
    jobs: Sequence[Job],
    states: Mapping[Path, State],
    launcher: LauncherSettings,
    *,
    machine: Machine,
    costs: Predictor,
    elsewhere: Collection[Path] = (),
    expected: int = 0,
    steps_done: Mapping[Path, int] | None = None,
) -> Plan:
    """Sort jobs into packs and packs onto places.

    Args:
        launcher: the user's choices about packs and processes.
        elsewhere: folders that another runner holds.
        expected: how many jobs there will be in all, if that is more: packs are sized for that many.
        steps_done: folder -> the step that a job continues after.
    """
    steps_done = steps_done or {}
    distinct = {job.folder: job for job in jobs}
    done = [job for job in distinct.values() if is_done(job, states.get(job.folder, State.PENDING))]
    held = [job for job in distinct.values() if job.folder in elsewhere and job not in done]
    left = [job for job in distinct.values() if job not in done and job not in held]
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in left:
        groups.setdefault(pack_key(job), []).append(job)
    sized = [(group, max(len(group), expected * len(group) // len(left))) for group in groups.values()]
    places, total = places_of(sized, launcher, machine, costs), max(len(left), expected)
    packs = [
        size_pack(group, launcher, machine, costs, places=places, count=count, share_of=total) for group, count in sized
    ]
    if not machine.has_gpus:  # all the workers share the cores
        places = max(1, min(places, sum(pack.workers for pack in packs)))
    packs = [
        dataclasses.replace(pack, prediction=costs.predict(pack, machine, places, count, steps_done))
        for pack, (_, count) in zip(packs, sized, strict=True)
    ]
    repeated = len(jobs) - len(distinct)
    return Plan(tuple(packs), machine, places, tuple(done), tuple(held), repeated, expected, steps_done)


def is_done(job: Job, state: State) -> bool:
    """Whether nothing is left to do; only a command that does not prune continues a pruned job."""
    return state is State.COMPLETED or (state is State.PRUNED and job.trains and job.experiment.pruning.name != "none")


def size_pack(
    jobs: Sequence[Job],
    launcher: LauncherSettings,
    machine: Machine,
    costs: Predictor,
    *,
    places: int,
    count: int,
    share_of: int,
) -> Pack:
    """How to work through the jobs over one base.

    Args:
        places: where workers may train at the same time.
        count: how many jobs there are, or will be.
        share_of: the number of jobs in the whole command, which share the places.
    """
    if not jobs[0].trains:
        workers = max(1, min(count, places))
        why = f"shared among {workers} workers" if workers > 1 else "one after the other over one loaded base"
        return Pack(tuple(jobs), 1, workers, 1, why)
    processes = launcher.fixed_processes or _spread(jobs, places, machine, share_of)
    if machine.has_gpus and isinstance(launcher, QueuedLauncher):  # a worker there has its own GPUs and no others
        processes = max(1, min(processes, len(machine.devices) // (launcher.concurrency or 1)))
    if machine.has_gpus:
        workers = max(1, min(count, places // processes))
    else:
        workers = max(1, min(count if launcher.concurrency else count // JOBS_PER_WORKER, places))
    # A worker from a queue has a machine of its own.
    share = machine if isinstance(launcher, QueuedLauncher) else machine.shared_by(places)
    most, why = _most_at_once(jobs, launcher, share, costs, processes)
    at_once = min(most, -(-count // workers))
    if at_once < most and workers > 1:
        why = f"shared among {workers} workers"
    elif count == at_once == 1:
        why = ""
    elif at_once == count:
        why = "all together"
    return Pack(tuple(dealt(jobs, workers, at_once)), at_once, workers, processes, why)


def dealt(jobs: Sequence[Job], workers: int, at_once: int) -> list[Job]:
    """The order in which workers take jobs: the longest first, so that none trains alone at the end.

    The first jobs that each worker takes add up to about the same amount of work. If only their adapters make them
    differ, similar ranks go together, because a pack pads all of them to its largest; equal ones stay in the order of
    the command.
    """
    if len({without_adapter(job) for job in jobs}) == 1:
        return sorted(jobs, key=images_of, reverse=True)
    amounts = {job.folder: images_of(job) for job in jobs}
    ordered = sorted(jobs, key=lambda job: amounts[job.folder], reverse=True)
    first = ordered[: workers * at_once]
    # Each worker takes as many as it may, so only the last one is left with fewer.
    full, rest = divmod(len(first), at_once)
    hands = [(size, list[Job]()) for size in [at_once] * full + [rest] * (rest > 0)]
    for job in first:
        open_hands = [hand for size, hand in hands if len(hand) < size]
        min(open_hands, key=lambda hand: sum(amounts[each.folder] for each in hand)).append(job)
    return [job for _, hand in hands for job in hand] + ordered[workers * at_once :]


def shared_out(jobs: Sequence[Job], count: int) -> list[list[Job]]:
    """The jobs divided into `count` parts with equal amounts of work, for parts that are separate from the start.

    If all jobs are equally long, they are dealt to the parts in turn.
    """
    amounts = {job.folder: images_of(job) if job.trains else 1.0 for job in jobs}
    shares: list[list[Job]] = [[] for _ in range(count)]
    for job in sorted(jobs, key=lambda job: amounts[job.folder], reverse=True):
        min(shares, key=lambda share: sum(amounts[each.folder] for each in share)).append(job)
    return shares


def places_of(
    groups: Sequence[tuple[Sequence[Job], int]], launcher: LauncherSettings, machine: Machine, costs: Predictor
) -> int:
    """How many places can train at the same time: GPUs, or shares of the one CPU.

    Args:
        groups: for each base, its jobs and how many there are, or will be.
    """
    # For a queue, the machine consists of all its workers' GPUs.
    chosen = None if machine.has_gpus and isinstance(launcher, QueuedLauncher) else launcher.concurrency
    if machine.has_gpus:
        most = len(machine.devices)
        return most if chosen is None else min(chosen * (launcher.fixed_processes or 1), most)
    if chosen is not None or not isinstance(launcher, LocalLauncher):
        return chosen or 1
    each = (launcher.fixed_processes or 1) * (named_threads() or 1)
    places = min(machine.cores // each, sum(count for _, count in groups) // JOBS_PER_WORKER)
    while places > 1 and not all(_fit(jobs, count, places, launcher, machine, costs) for jobs, count in groups):
        places -= 1
    return max(1, places)


def _fit(
    jobs: Sequence[Job], count: int, places: int, launcher: LocalLauncher, machine: Machine, costs: Predictor
) -> bool:
    """Whether a share of the CPU's memory is known to hold the jobs a worker is to train, or enough to be worth it."""
    if not jobs[0].trains:
        return False
    wanted = JOBS_PER_WORKER if launcher.pack == "auto" else min(launcher.pack, count)
    fitting = costs.fitting(jobs, machine.shared_by(places), launcher.fixed_processes or 1)
    return fitting is not None and fitting[0] >= min(wanted, count)


def _spread(jobs: Sequence[Job], places: int, machine: Machine, share_of: int) -> int:
    """Processes of each worker if the user leaves it open: GPUs that would otherwise have no job help out."""
    if not machine.has_gpus:
        return 1
    smallest = min(job.experiment.smallest_part for job in jobs)
    return max(1, min(places // max(1, share_of), smallest))


def _most_at_once(
    jobs: Sequence[Job], launcher: LauncherSettings, machine: Machine, costs: Predictor, processes: int
) -> tuple[int, str]:
    if launcher.pack != "auto":
        return launcher.pack, f"launcher.pack={launcher.pack}"
    most = MOST_AT_ONCE[machine.devices[0].kind]
    fitting = costs.fitting(jobs, machine, processes)
    if fitting is not None and fitting[0] < most:
        return max(1, fitting[0]), fitting[1]
    return most, f"at most {most} on a {'GPU' if machine.has_gpus else 'CPU'}"


def pack_key(job: Job) -> tuple[Any, ...]:
    """What the jobs of a pack must agree on: the frozen base, its precision, the shape of the latents.

    Jobs of tasks other than training are done one by one, and share what is loaded.
    """
    if not job.trains:
        return (job.task, job.identity.get("model"), job.settings.precision)
    settings = job.experiment
    return (
        job.identity["model"],
        settings.model.prediction_type,
        settings.model.zero_terminal_snr,
        settings.model.quantization,
        settings.precision,
        settings.resolution,
        settings.lora.text_encoder,
        settings.live_text,
    )


def shared_terms(job: Job) -> str:
    """What a job shares with its pack, in words."""
    if not job.trains:
        return f"{job.task}, {job.settings.model.path}, {job.settings.precision}"
    settings = job.experiment
    model = settings.model
    revision = "" if model.revision is None else f" at {model.revision}"
    quantized = "" if model.quantization == "none" else f" over {model.quantization}"
    terms = [f"{model.path}{revision}", f"{settings.resolution} px", f"{settings.precision}{quantized}"]
    predicted = ("prediction_type", "zero_terminal_snr")
    terms += [f"model.{name}={each}".lower() for name in predicted if (each := getattr(model, name)) is not None]
    if settings.live_text:
        terms.append("text encoders trained too" if settings.lora.text_encoder else "new words trained")
    return ", ".join(terms)
