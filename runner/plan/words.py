"""A plan in words for people, and as plain data for programs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

from runner.cache.encodings import CacheWork
from runner.jobs.job import Job, common_overrides, own_overrides
from runner.plan.disk import Disk, too_full
from runner.plan.packs import Pack, Plan, shared_terms
from runner.plan.predict import Prediction
from runner.schema import Experiment
from runner.schema.method import NewTokens, TextualInversion
from runner.system.amounts import count
from runner.system.machine import Machine

WORTH_A_WORD_GB = 1.0


def plan_lines(plan: Plan, work: CacheWork | None, disks: Sequence[Disk] = ()) -> list[str]:
    """The lines that describe the plan."""
    jobs, packs = len(plan.todo), len(plan.packs)
    head = f"{count(jobs, 'job')} to run in {count(packs, 'pack')}"
    head += f", {len(plan.done)} already done" if plan.done else ""
    head += f", {len(plan.elsewhere)} worked on by another runner" if plan.elsewhere else ""
    head += f", {plan.repeated} repeated in the command and run once" if plan.repeated else ""
    lines = [head]
    common = common_overrides((*plan.todo, *plan.done, *plan.elsewhere))
    like = ""
    if plan.expected > jobs:
        at_once = max((pack.at_once * pack.workers for pack in plan.packs), default=1)
        lines.append(
            f"  up to {plan.expected} in all, {at_once} at once: the search chooses the others as results come in"
        )
        like = ", if every trial takes as long and none is pruned"
    if plan.packs:
        lines.append(f"  on {plan.machine.line()}")
    if len(plan.packs) > 1:
        lines.append(
            "  the jobs of a pack share base model, resolution, precision and what is trained in the text encoders"
        )
    for number, pack in enumerate(plan.packs, start=1):
        lines.append(f"  pack {number}: {_pack(pack)}")
        if pack.prediction is not None:
            encodes = work is None or work.captions_missing > 0
            found = pack.prediction if encodes else dataclasses.replace(pack.prediction, encoding_gb=0.0)
            lines.append(f"    {_prediction(found, max(len(pack.jobs), plan.expected))}{like}")
            lines += _too_large(pack, found, plan.machine)
        lines += _in_software(pack.jobs[0].settings.precision, plan.machine)
        lines += [f"    {job.id}  {_describe(job, common)}{_continues(job, plan)}" for job in pack.jobs]
    lines += [f"  done: {job.id}  {_describe(job, common)}" for job in plan.done]
    lines += [f"  elsewhere: {job.id}  {_describe(job, common)}" for job in plan.elsewhere]
    lines += [f"  {work.line()}"] if work is not None and plan.packs else []
    return lines + _disk_lines(disks)


def _pack(pack: Pack) -> str:
    text = shared_terms(pack.jobs[0])
    if len(pack.jobs) > 1:
        each = " per worker" if pack.workers > 1 else ""
        text += f"; {len(pack.jobs)} jobs, {pack.at_once} at once{each} ({pack.why})"
    text += f"; {pack.workers} workers" if pack.workers > 1 else ""
    return text + (f" of {pack.processes} processes" if pack.processes > 1 else "")


def _prediction(found: Prediction, jobs: int) -> str:
    source = "from steps measured here" if found.measured else "estimated; not measured here yet"
    text = f"about {_duration(found.seconds)} and {_size(found.memory_gb)}"
    if found.encoding_gb > found.memory_gb and _size(found.encoding_gb) != _size(found.memory_gb):
        text += f" ({_size(found.encoding_gb)} before, while captions are encoded)"
    if jobs > 1:
        text += f", or {_duration(found.alone_s)} one after the other"
    return f"{text} ({source})"


def _too_large(pack: Pack, found: Prediction, machine: Machine) -> list[str]:
    """What to do if a worker is likely to run out of memory; the estimate is too rough to reject the plan."""
    least_gb = min((device.memory_gb for device in machine.devices if device.memory_gb is not None), default=math.inf)
    there = f"more than the {least_gb:.0f} GB of {'a GPU' if machine.has_gpus else 'this machine'}"
    lines = []
    if found.encoding_gb > least_gb:
        instead = "the CPU encodes them" if machine.has_gpus else "provide a RUNNER_CACHE that holds their encodings"
        lines.append(f"    captions need {there}: {instead}")
    if found.memory_gb > least_gb:
        settings = pack.jobs[0].experiment
        less = ["launcher.pack=1"] if pack.at_once > 1 else []
        less += ["a higher accumulation"] if settings.accumulation < settings.batch_size else []
        less += [] if settings.launcher.gradient_checkpointing else ["launcher.gradient_checkpointing=true"]
        ended = "passes will be split" if machine.has_gpus else "the system may kill it"
        lines.append(f"    {there}, and {ended}: {' or '.join(less or ['a lower resolution'])} needs less memory")
    return lines


def _in_software(precision: str, machine: Machine) -> list[str]:
    # Convolutions of 32 channels took 40 times as long in bf16 and 57 times in fp16 (torch 2.13, AMD EPYC with AVX2).
    if precision not in machine.devices[0].in_software:
        return []
    return [f"    this processor has no instructions for {precision}: with precision=fp32 it is many times faster"]


def _disk_lines(disks: Sequence[Disk]) -> list[str]:
    """What is written, if it is worth mentioning, and whether there is no room for it; that rejects no plan either."""
    full = too_full(disks)
    if not full and sum(disk.gb for disk in disks) < WORTH_A_WORD_GB:
        return []
    # On a full disk, even a little is too much.
    told = [disk for disk in disks if disk.gb >= 0.05] or disks
    parts = [f"{_size(disk.gb)} of {disk.holds} ({_size(disk.free_gb)} free)" for disk in told]
    lines = [f"  on disk: up to {', '.join(parts)}"]
    if full:
        lines.append(
            "    not enough space: a lower checkpoint.keep takes less, and python -m runner.clean shows "
            "what could be freed"
        )
    return lines


def _size(gb: float) -> str:
    return f"{gb:.1f} GB" if gb >= 0.05 else f"{gb * 1000:.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _describe(job: Job, common: Collection[str]) -> str:
    elsewhere = [text for text in job.overrides if text.startswith(("launcher.", "launcher="))]
    chosen = own_overrides(job, {*common, *elsewhere}) or "defaults"
    if not job.trains:
        return chosen
    settings = job.experiment
    return f"{chosen}  ({count(settings.steps, 'step')} of {settings.batch_size}, {_trained(settings)})"


def _continues(job: Job, plan: Plan) -> str:
    step = plan.steps_done.get(job.folder, 0)
    return f", continues after step {step}" if step else ""


def _trained(settings: Experiment) -> str:
    words = list(settings.method.tokens) if isinstance(settings.method, NewTokens) else []
    rank = [] if isinstance(settings.method, TextualInversion) else [f"rank {settings.lora.rank}"]
    return ", ".join([*rank, *words])


def plan_data(plan: Plan, work: CacheWork | None, disks: Sequence[Disk] = ()) -> dict[str, Any]:
    """The plan as plain data."""
    return {
        "machine": dataclasses.asdict(plan.machine),
        "packs": [
            {
                "shares": shared_terms(pack.jobs[0]),
                "jobs": [
                    {
                        "id": job.id,
                        "folder": str(job.folder),
                        "overrides": job.overrides,
                        "steps_done": plan.steps_done.get(job.folder, 0),
                    }
                    for job in pack.jobs
                ],
                "at_once": pack.at_once,
                "workers": pack.workers,
                "processes": pack.processes,
                "why": pack.why,
                "prediction": None if pack.prediction is None else dataclasses.asdict(pack.prediction),
            }
            for pack in plan.packs
        ],
        "done": [job.id for job in plan.done],
        "elsewhere": [job.id for job in plan.elsewhere],
        "repeated": plan.repeated,
        "expected": plan.expected,
        "cache": None if work is None else dataclasses.asdict(work),
        "disks": [dataclasses.asdict(disk) for disk in disks],
    }
