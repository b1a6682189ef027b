"""Divides jobs among training jobs: one, or as many as `launcher.concurrency` allows at a time."""

from __future__ import annotations

import dataclasses

from runner.plan import Pack, Plan
from runner.plan.packs import shared_out
from runner.schema import SageMakerLauncher


def divided(plan: Plan, settings: SageMakerLauncher) -> Plan:
    """The same plan with one pack per training job, whose instances work through its jobs by themselves."""
    return dataclasses.replace(plan, packs=tuple(part for pack in plan.packs for part in parts(pack, settings)))


def parts(pack: Pack, settings: SageMakerLauncher) -> list[Pack]:
    """A pack's jobs, divided among the training jobs."""
    count = min(settings.concurrency or 1, len(pack.jobs))
    return [dataclasses.replace(pack, jobs=tuple(jobs), workers=1) for jobs in shared_out(pack.jobs, count)]
