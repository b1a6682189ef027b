"""What an experiment took: time, memory and money, and how much it saved over running its jobs one after the other.

Takes job records. Facts missing from their manifests are left out, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from runner.report.record import JobRecord, finite
from runner.system.amounts import count, duration, number


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The figures as (label, value), and a note that explains them."""

    facts: list[tuple[str, str]]
    note: str


def cost_of(jobs: Sequence[JobRecord]) -> Cost:
    """What the jobs took together, whatever state they are in."""
    spent = [job.total_s for job in jobs if job.total_s is not None]
    # Older jobs counted the whole time of their process instead of a share of it: such times do not add up.
    shares = all(job.section("cost") for job in jobs if job.total_s is not None)
    wall_s, alone_s = _wall_s(jobs), _alone_s(jobs)
    packed = max((size for job in jobs if (size := finite(job.section("cost").get("packed_with")))), default=0)
    memory_gb = max((size for job in jobs if (size := _cost(job, "peak_memory_gb")) is not None), default=None)
    prices = [price for job in jobs if (price := _cost(job, "price_usd")) is not None]
    facts: list[tuple[str, str]] = []
    notes: list[str] = []
    if spent:
        facts.append(("machine time" if shares else "time in jobs", duration(sum(spent))))
        if shares:
            notes.append("Machine time is each job's own share of the time of its process, added up.")
    if wall_s is not None:
        going_on = any(job.state == "running" for job in jobs)
        facts.append(("wall time so far" if going_on else "wall time", duration(wall_s)))
        notes.append("Wall time is from the first start to the last end, pauses between commands included.")
    # Jobs that each had a process to themselves were not packed, and saved nothing.
    if alone_s is not None and shares and packed > 1:
        done = [job for job in jobs if job.state == "completed"]
        which = "" if len(done) == len(jobs) else f"{count(len(done), 'completed job')} "
        facts += _compared(which, alone_s, sum(job.total_s or 0.0 for job in done))
        notes.append(
            "One after the other is what the completed jobs would have taken as processes of their own, "
            "predicted from a step measured alone."
        )
    if packed > 1:
        facts.append(("most jobs at once", number(packed)))
    if memory_gb is not None:
        facts.append(("peak memory", f"{number(memory_gb, 3)} GB"))
    if prices:
        facts.append(("price", f"${sum(prices):,.2f}"))
        if len(prices) < len(jobs):
            notes.append(f"The price is that of {count(len(prices), 'job')}; the others name none.")
    return Cost(facts=facts, note=" ".join(notes))


def _cost(job: JobRecord, name: str) -> float | None:
    return finite(job.section("cost").get(name))


def _compared(which: str, alone_s: float, together_s: float) -> list[tuple[str, str]]:
    """How the completed jobs' time compares with the time they would have taken one after the other.

    Args:
        which: names the completed jobs if they are not all jobs, since the times of all are shown beside it.
    """
    if together_s <= 0 or alone_s <= 0:
        return []
    faster = alone_s / together_s
    word = "faster" if faster >= 1 else "slower"
    return [
        (f"{which}one after the other", duration(alone_s)),
        ("packed", f"{number(max(faster, 1 / faster), 2)} times {word}"),
    ]


def _alone_s(jobs: Sequence[JobRecord]) -> float | None:
    """Seconds the completed jobs would have taken one after the other; None unless all of them recorded it."""
    done = [job for job in jobs if job.state == "completed"]
    known = [seconds for job in done if job.total_s is not None and (seconds := _cost(job, "alone_s")) is not None]
    return sum(known) if known and len(known) == len(done) else None


def _wall_s(jobs: Sequence[JobRecord]) -> float | None:
    """Seconds from the first start to the last end, or to the last logged line of a job that is still running."""
    starts = [moment for job in jobs if (moment := _moment(job.manifest.get("started"))) is not None]
    ends = [moment for job in jobs if (moment := _moment(job.manifest.get("finished"))) is not None]
    ends += [logged for job in jobs if job.state == "running" and (logged := job.numbers.last_time) is not None]
    if not starts or not ends or max(ends) < min(starts):
        return None
    return max(ends) - min(starts)


def _moment(written: object) -> float | None:
    try:
        return datetime.fromisoformat(str(written)).timestamp()
    except ValueError:
        return None
