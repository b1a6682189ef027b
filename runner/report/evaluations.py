"""Figures of `task=evaluate`: a table of the measurements, and columns for the measured trainings.

Takes job records. A training gets each figure from the newest completed evaluation that measured it on its adapter
alone, at weight 1: another weight or a mix measures something else and appears only in the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.report.differences import differing_settings
from runner.report.pictures import Picture, PictureBox, prompt_of
from runner.report.record import JobRecord, as_mapping, finite
from runner.report.words import plain
from runner.system.amounts import number

TASK = "evaluate"
LABELS = {
    "fid_score": "FID",
    "kid_score": "KID",
    "clip_text_score": "CLIP text",
    "clip_image_score": "CLIP image",
    "dino_score": "DINO",
    "base_drift": "base drift",
}
"""In the order of the columns; any other figures of a manifest follow under their own names."""
LESS_IS_BETTER = ("FID", "KID", "base drift")
MAX_PICTURES = 4
NOT_HOW = ("adapter", "adapter_weight", "metrics", "confidence", "bootstrap")
"""Settings for what is measured and how it is presented, not for how it is measured."""
MAX_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured value, the ends of its interval if it has one, and the number of images behind it."""

    value: float
    low: float | None
    high: float | None
    images: int | None

    @property
    def text(self) -> str:
        """The value, formatted as in other tables."""
        return number(self.value)

    @property
    def interval(self) -> str:
        """`1.1 to 2.03`; empty if there is none."""
        return "" if self.low is None or self.high is None else f"{number(self.low, 3)} to {number(self.high, 3)}"


Figures = Mapping[str, Figure]


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One evaluation as shown on the page."""

    job: JobRecord
    adapter: str
    href: str
    weight: str
    cells: list[Figure | None]
    pictures: list[Picture]


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """The table; `columns` are the names of its figures."""

    columns: list[str]
    rows: list[EvaluationRow]
    note: str


def apart(jobs: Sequence[JobRecord]) -> tuple[list[JobRecord], list[JobRecord]]:
    """(jobs that the page is about, evaluations); if there are only evaluations, they are both."""
    evaluations = [job for job in jobs if job.task == TASK]
    others = [job for job in jobs if job.task != TASK]
    return others or evaluations, sorted(evaluations, key=_finished, reverse=True)


def figures_of(job: JobRecord) -> dict[str, Figure]:
    """The finite figures in an evaluation's manifest, in the order of the columns."""
    found = {}
    for name, said in job.section("figures").items():
        parts = as_mapping(said)
        if (value := finite(parts.get("value"))) is not None:
            count = finite(parts.get("n"))
            found[name] = Figure(
                value=value,
                low=finite(parts.get("low")),
                high=finite(parts.get("high")),
                images=None if count is None else int(count),
            )
    return {name: found[name] for name in sorted(found, key=_order)}


def figures_by_job(jobs: Iterable[JobRecord], evaluations: Sequence[JobRecord]) -> dict[str, Figures]:
    """The figures of each job, by its id: an evaluation has its own; a training takes each figure from the newest
    evaluation that measured it, or else from its own manifest.

    Args:
        evaluations: newest first.
    """
    completed = [job for job in evaluations if job.state == "completed"]
    newest: dict[str, Figures] = {}
    for job in completed:
        if job.manifest.get("of") and set(_weights(job)) <= {1.0}:
            of = str(job.manifest["of"])
            newest[of] = {**figures_of(job), **newest.get(of, {})}
    return {job.id: {**figures_of(job), **newest.get(job.id, {})} for job in jobs}


def named_columns(figures: Iterable[Figures]) -> list[str]:
    """The names of all figures, in the order of the columns."""
    return sorted({name for each in figures for name in each}, key=_order)


def label_of(name: str) -> str:
    """The name of a figure on the page."""
    return LABELS.get(name, name.replace("_", " "))


def exported(figures: Figures) -> dict[str, float | None]:
    """Plain numbers by name: each value, and the ends of its interval as `<name>.low` and `<name>.high`."""
    return {
        key: value
        for name, each in figures.items()
        for key, value in ((name, each.value), (f"{name}.low", each.low), (f"{name}.high", each.high))
    }


def exported_rows(evaluations: Sequence[JobRecord]) -> list[dict[str, Any]]:
    """The evaluations for sweep.json, newest first."""
    return [
        {
            "id": job.id,
            "state": job.state,
            "of": job.manifest.get("of"),
            "adapter": _adapters(job),
            "adapter_weight": _weights(job),
            "figures": exported(figures_of(job)),
        }
        for job in evaluations
    ]


def view_evaluations(
    evaluations: Sequence[JobRecord], trainings: Sequence[JobRecord], box: PictureBox
) -> Evaluations | None:
    """The table of evaluations; None if there are none.

    Args:
        evaluations: newest first.
        trainings: the jobs that the page is about; their adapters are shown under their names.
    """
    if not evaluations:
        return None
    known = {job.id: job for job in trainings if job.trains}
    found = {job.id: figures_of(job) for job in evaluations}
    columns = named_columns(found.values())
    rows = []
    for job in evaluations:
        of = known.get(str(job.manifest.get("of")))
        rows.append(
            EvaluationRow(
                job=job,
                adapter=of.name if of else " + ".join(_shown(each) for each in _adapters(job)) or "no adapter",
                href=f"#job-{of.id}" if of and len(trainings) > 1 else "",
                weight=", ".join(number(weight) for weight in _weights(job)) if _adapters(job) else "",
                cells=[found[job.id].get(name) for name in columns],
                pictures=_pictures(job, box),
            )
        )
    return Evaluations(columns=[label_of(name) for name in columns], rows=rows, note=_note(columns, evaluations))


def expected_pictures(evaluations: Sequence[JobRecord]) -> int:
    """The number of pictures that the table will show."""
    return sum(min(len(job.shots), MAX_PICTURES) for job in evaluations)


def _pictures(job: JobRecord, box: PictureBox) -> list[Picture]:
    return [
        box.picture(by_step[max(by_step)], f"{prompt_of(job, row)}, seed {row.seed}")
        for row, by_step in list(job.shots.items())[:MAX_PICTURES]
    ]


def _note(columns: Sequence[str], evaluations: Sequence[JobRecord]) -> str:
    less = [label_of(name) for name in columns if label_of(name) in LESS_IS_BETTER]
    others = "; more for the others" if len(less) < len(columns) else ""
    parts = [f"Less is better for {', '.join(less)}{others}."] if less else []
    shares = {finite(job.setting("confidence")) for job in evaluations} - {None}
    if columns and len(shares) == 1:
        parts.append(f"Below each figure is its interval of {100 * (shares.pop() or 0):.3g} % over the images.")
    if "fid_score" in columns:
        parts.append("FID can only be compared between equal numbers of images.")
    if unlike := _unlike([job for job in evaluations if job.state == "completed"]):
        said = f"{', '.join(unlike[:MAX_NAMED])} {'differ' if len(unlike) > 1 else 'differs'}"
        parts.append(f"Not all were measured alike: {said}. Compare only figures that were.")
    return " ".join(parts)


def _unlike(evaluations: Sequence[JobRecord]) -> list[str]:
    """The settings in which the measurements differ: in value, or in the content under the same name."""
    differing, _ = differing_settings(evaluations)
    keys = [one.key for one in differing if one.key not in NOT_HOW]
    contents: dict[str, set[str]] = {}
    for job in evaluations:
        identity = job.section("identity")
        networks = {f"features.{name}": each for name, each in as_mapping(identity.get("networks")).items()}
        for key, content in {"real": identity.get("real"), **networks}.items():
            if content is not None:
                contents.setdefault(key, set()).add(str(content))
    return keys + [key for key, each in contents.items() if len(each) > 1 and key not in keys]


def _order(name: str) -> tuple[int, str]:
    known = list(LABELS)
    return (known.index(name) if name in known else len(known)), name


def _finished(job: JobRecord) -> tuple[str, str]:
    return str(job.manifest.get("finished") or job.manifest.get("created") or ""), job.id


def _adapters(job: JobRecord) -> list[str]:
    given = job.setting("adapter")
    return [str(each) for each in given] if isinstance(given, list) else [plain(given)] if given else []


def _weights(job: JobRecord) -> list[float]:
    given = job.setting("adapter_weight")
    found = [finite(each) for each in (given if isinstance(given, list) else [given])]
    return [each for each in found if each is not None] or [1.0]


def _shown(adapter: str) -> str:
    """The last parts of a path: the experiment and the job, or a file."""
    return "/".join(adapter.rstrip("/").split("/")[-2:])
