"""Which job did best: the order of the jobs, their places, and the colour each has across the page.

Takes job records, returns them best first. Only completed jobs get a place; equal results share one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from runner.report.record import JobRecord, finite
from runner.report.words import loss_name
from runner.schema.comparing import MEASURED_BY
from runner.schema.metrics import HELD_OUT

COLOURS = 8
"""How many of the best jobs have their own colour."""

STATE_ORDER = ("completed", "pruned", "running", "submitted", "pending", "interrupted", "cancelled", "failed")

# Jobs that have not reached their end are compared by the last value that they logged.
UNDER_WAY = frozenset({"pruned", "running", "interrupted"})


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What the jobs are compared by, and which way is better."""

    name: str = HELD_OUT
    maximize: bool = False

    @classmethod
    def of(cls, jobs: Sequence[JobRecord]) -> Aim:
        """The aim that most of the jobs name in their manifests."""
        said = Counter(
            (str(job.manifest["objective_name"]), job.manifest.get("objective_direction") == "maximize")
            for job in jobs
            if job.manifest.get("objective_name")
        )
        if not said:
            return cls()
        (name, maximize), _ = said.most_common(1)[0]
        return cls(name=name, maximize=maximize)

    @property
    def direction(self) -> str:
        """The word for the better direction in manifests and exports."""
        return "maximize" if self.maximize else "minimize"

    def cost(self, value: float) -> float:
        """A number that is smaller for a better value."""
        return -value if self.maximize else value

    def label(self, job: JobRecord) -> str:
        """The name of the aim on the page."""
        return loss_name(job) if self.name == HELD_OUT else self.name

    def result(self, job: JobRecord) -> float | None:
        """The result of a completed job, if it was measured by this aim."""
        same = job.manifest.get("objective_name", self.name) == self.name
        return job.objective if same and job.state == "completed" else None

    def latest(self, job: JobRecord) -> tuple[int, float] | None:
        """The last (step, value) of a job that has not reached its end."""
        if job.state not in UNDER_WAY:
            return None
        points = [(int(step), value) for step, value in job.curve(self.name) if finite(value) is not None]
        if not points and job.objective is not None:
            points = [(job.steps_done, job.objective)]
        return points[-1] if points else None


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A job with its place (None if it has none), its colour, and the value that it is compared by.

    `step` is the step after which a job that has not reached its end had this value; it is None for a result.
    """

    job: JobRecord
    place: int | None
    style: str
    value: float | None
    step: int | None
    is_best: bool = False
    """Whether it did better than all others. That is unknown for jobs that have not reached their end, and for jobs
    that were not measured alike."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The jobs, best first, and what they are compared by."""

    aim: Aim
    entries: list[Ranked]

    @property
    def placed(self) -> list[Ranked]:
        """The jobs that have a place."""
        return [entry for entry in self.entries if entry.place is not None]

    @property
    def measured(self) -> list[Ranked]:
        """The jobs whose value can depend on their settings: before the first step, it is that of the base model."""
        return [entry for entry in self.entries if entry.value is not None and entry.step != 0]

    @property
    def first(self) -> list[Ranked]:
        """The jobs in first place, several if their results are equal; empty if the results cannot be compared."""
        return [] if self.unlike else [entry for entry in self.placed if entry.place == 1]

    @property
    def best(self) -> Ranked | None:
        """The job that did better than all others, if one is known to have."""
        return next((entry for entry in self.entries if entry.is_best), None)

    @property
    def unlike(self) -> list[str]:
        """In what respects jobs with a place were not measured alike, so that their figures do not make one better."""
        identities = [each for entry in self.placed if (each := entry.job.section("identity"))]
        differing = [part for part in MEASURED_BY if len({str(each.get(part)) for each in identities}) > 1]
        return [part.removeprefix("settings.") for part in differing]


def rank(jobs: Sequence[JobRecord]) -> Ranking:
    """Order the jobs: results from best to worst, then stopped jobs by how far they got, then by state and name.

    Jobs that only draw or measure come after the trainings: having no curve, they would take a colour from those
    that have one.
    """
    aim = Aim.of(jobs)

    def order(job: JobRecord) -> tuple[bool, int, bool, float, float, str]:
        state = STATE_ORDER.index(job.state) if job.state in STATE_ORDER else len(STATE_ORDER)
        result, latest = aim.result(job), aim.latest(job)
        if result is not None:
            return False, state, False, 0.0, aim.cost(result), job.name
        if latest is not None:
            return False, state, False, -latest[0], aim.cost(latest[1]), job.name
        return not job.trains, state, True, 0.0, 0.0, job.name

    ordered = sorted(jobs, key=order)
    results = [aim.result(job) for job in ordered]
    entries: list[Ranked] = []
    for index, (job, result) in enumerate(zip(ordered, results, strict=True)):
        step, value = aim.latest(job) or (None, result)
        entries.append(
            Ranked(
                job=job, place=results.index(result) + 1 if result is not None else None, value=value, step=step,
                style=f"c{index}" if index < COLOURS else "other",
            )
        )  # fmt: skip
    ranking = Ranking(aim=aim, entries=entries)
    if len(ranking.first) == 1:
        entries[0] = replace(entries[0], is_best=True)
    return ranking
