"""What a plan will cost, before it costs anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from runner.aws.prices import SPOT_PAID, Price
from runner.plan import Pack, Plan
from runner.schema import SageMakerLauncher

STARTING_S = 240.0
"""Billed before training starts: inputs are copied and the image is pulled (its size is unknown here)."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The cost of a whole plan."""

    instance_hours: float
    usd_on_demand: float
    usd: float
    """The expected bill: less than on demand if spot instances are used."""
    usd_apart: float
    """The bill for the same jobs, each in its own training job, on the same terms."""
    measured: bool
    """Whether steps have been measured on such a device before."""
    training_jobs: int
    price: Price

    def line(self, settings: SageMakerLauncher) -> str:
        """The estimate in words."""
        basis = "from steps measured on this GPU" if self.measured else "estimated, never measured on this GPU"
        text = f"cost: about ${self.usd:.2f} for {self.instance_hours:.1f} hours of {settings.instance}"
        if settings.spot:
            text += f" with spot instances (${self.usd_on_demand:.2f} on demand)"
        if self.usd_apart > self.usd * 1.05:
            text += f"; ${self.usd_apart:.2f} with a training job for each job"
        return f"{text}; ${self.price.usd:.3f} an hour on demand ({self.price.source}); time {basis}"


def estimate(plan: Plan, settings: SageMakerLauncher, price: Price) -> Estimate | None:
    """What the packs of a plan will cost; None if the time of any of them is unknown.

    Args:
        plan: the plan before it is divided among training jobs.
    """
    hours, apart_hours, count, measured = 0.0, 0.0, 0, True
    for pack in plan.packs:
        if pack.prediction is None:
            return None
        jobs = max(len(pack.jobs), plan.expected * len(pack.jobs) // len(plan.todo))  # for a search, also those to come
        number = min(settings.concurrency or 1, jobs)
        hours += _hours([pack.prediction.seconds] * number, settings)
        apart_hours += _hours([pack.prediction.alone_s / jobs] * jobs, settings)
        count += number
        measured = measured and pack.prediction.measured
    if not plan.packs:
        return None
    paid = SPOT_PAID if settings.spot else 1.0
    whole = hours * price.usd
    return Estimate(hours, whole, whole * paid, apart_hours * price.usd * paid, measured, count, price)


def _hours(seconds: Sequence[float], settings: SageMakerLauncher) -> float:
    return sum(each + STARTING_S for each in seconds) * settings.instances / 3600


def does_not_fit(pack: Pack, settings: SageMakerLauncher, gpu_memory_gb: float) -> str | None:
    """The message if, by estimate, even a single job is too large for the GPU."""
    found = pack.prediction
    if found is None or not gpu_memory_gb or pack.at_once > 1 or found.memory_gb <= gpu_memory_gb:
        return None
    fix = "launcher.gradient_checkpointing=true, or "
    return (
        f"launcher.instance = {settings.instance!r}: {pack.jobs[0].id} needs about {found.memory_gb:.0f} GB, and its "
        f"GPU holds {gpu_memory_gb:.0f}; set {'' if settings.gradient_checkpointing else fix}a larger instance, "
        "precision=bf16, or a higher accumulation"
    )
