"""Finds what is in the folder: experiments, their jobs, the adapters to draw with. Changes nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from runner.errors import RunnerError
from runner.families.known import FAMILIES
from runner.job_folders import find_jobs, is_job_folder
from runner.paths import JobPaths, named_like
from runner.report.differences import labelled
from runner.report.evaluations import Figures, apart, figures_by_job
from runner.report.ranking import Aim, Ranking, rank
from runner.report.record import JobRecord, finite, read_briefly, read_job
from runner.report.words import subject
from runner.schema import ModelSettings
from runner.schema.family import TRANSFORMERS

DEPTH = 4
"""Experiments deeper in the folder are not found."""
PICTURES, ROW = 6, 3
FILE = "file:"
"""Prefix for the paths of adapters from outside the folder."""


class NotThere(Exception):
    """The name of something that is not in the folder."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A folder with jobs in it."""

    name: str
    path: str
    """Relative to the shelf's folder, as in URLs."""
    folders: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Cover:
    """How an experiment is shown among others: the states of its jobs, and a few of its pictures."""

    experiment: Experiment
    about: str
    states: list[tuple[str, int]]
    evaluations: list[tuple[str, int]]
    """States of the jobs that evaluate its trainings, with their counts."""
    pictures: list[str]


@dataclass(frozen=True, kw_only=True)
class Usable:
    """A trained adapter to draw with."""

    path: str
    folder: Path
    name: str
    experiment: str
    words: tuple[str, ...]
    """New words that it brings."""
    precision: str | None
    """Precision of its training; unknown for a plain file."""


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A base model, and the adapters in this folder that were trained on it."""

    key: str
    settings: ModelSettings
    precision: str
    """Precision of the first of these trainings; used to draw with the base alone."""
    resolution: int
    sampler: str
    steps: int
    guidance: float
    guidance_rescale: float
    prompt: str
    adapters: list[Usable]

    @property
    def name(self) -> str:
        """Its name on the page."""
        path = self.settings.path
        return "the embedded miniature" if path == "embedded" else path.rstrip("/").split("/")[-1]

    @property
    def rescales(self) -> bool:
        """Whether its sampler supports `guidance_rescale`."""
        return self.settings.family not in TRANSFORMERS


class Shelf:
    """A folder with experiments somewhere in it.

    Args:
        files: further adapters to draw with, from anywhere; whether they fit a base model shows only in use.
    """

    def __init__(self, root: Path, files: Sequence[Path] = ()) -> None:
        self.root = root.resolve()
        self._files = [
            Usable(
                path=f"{FILE}{file.resolve()}",
                folder=file.resolve(),
                name=file.stem,
                experiment="a file",
                words=(),
                precision=None,
            )
            for file in files
        ]

    def experiments(self) -> list[Experiment]:
        """All experiments, most recently changed first."""
        if is_job_folder(self.root):
            return [self._experiment(self.root, (self.root,))]
        found = [self._experiment(folder, jobs) for folder, jobs in _with_jobs(self.root, DEPTH)]
        return sorted(found, key=lambda one: max(map(_changed, one.folders)), reverse=True)

    def _experiment(self, folder: Path, jobs: Iterable[Path]) -> Experiment:
        return Experiment(name=folder.name, path=self.path_of(folder), folders=tuple(jobs))

    def cover(self, experiment: Experiment) -> Cover:
        """How an experiment is shown among others."""
        found = [read_briefly(folder) for folder in experiment.folders]
        jobs = apart(found)[0]
        evaluations = [job for job in found if job not in jobs]
        aim = Aim.of(jobs)
        results = [(job, aim.result(job)) for job in jobs]
        results.sort(key=lambda each: (each[0].state != "completed", each[1] is None, aim.cost(each[1] or 0.0)))
        best = results[0][0]
        folders = [job.folder for job, _ in results] + [job.folder for job in evaluations]
        drawn = (list(filter(None, map(self.picture_path, _last_pictures(folder)))) for folder in folders)
        pictures = next(filter(None, drawn), [])
        return Cover(
            experiment=experiment,
            about=subject(best) if best.trains else f"task={best.task}",
            states=list(Counter(job.state for job in jobs).items()),
            evaluations=list(Counter(job.state for job in evaluations).items()),
            pictures=pictures[: len(pictures) // ROW * ROW or None],
        )

    def ranking(self, paths: Sequence[str]) -> Ranking:
        """The jobs, best first, with titles that tell them apart.

        Raises:
            NotThere: one is not a job in the folder.
        """
        return rank(labelled([read_job(self.job_folder(path)) for path in dict.fromkeys(paths)]))

    def experiment(self, path: str) -> Experiment:
        """The experiment in a folder.

        Raises:
            NotThere: there is none.
        """
        for each in self.experiments():
            if each.path == (path or "."):  # browsers leave out the dot
                return each
        raise NotThere(path)

    def job(self, path: str) -> tuple[JobRecord, Figures]:
        """A job, with a title that tells it apart from its neighbors, and what was measured of its result.

        Raises:
            NotThere: there is none.
        """
        folder = self.job_folder(path)
        beside = [folder] if folder == self.root else find_jobs(folder.parent)
        jobs, evaluations = apart([read_briefly(each) for each in beside])
        titles = {each.folder: each.label for each in labelled(jobs)}
        job = replace(read_job(folder), label=titles.get(folder, ""))
        return job, figures_by_job([job], evaluations)[job.id]

    def job_folder(self, path: str) -> Path:
        """The folder of a job."""
        folder = self.inside(path)
        if not is_job_folder(folder):
            raise NotThere(path)
        return folder

    def inside(self, path: str) -> Path:
        """Resolve a path relative to the folder; links that lead out of the folder are not followed.

        Raises:
            NotThere: it does not exist, or is not inside the folder.
        """
        try:
            found = (self.root / path).resolve()
            if found.is_relative_to(self.root) and found.exists():
                return found
        except (OSError, ValueError, RuntimeError):  # RuntimeError: circular links, up to Python 3.12
            pass
        raise NotThere(path)

    def path_of(self, path: Path) -> str:
        """The path relative to the folder, as in URLs; `.` is the folder itself."""
        return path.resolve().relative_to(self.root).as_posix()

    def picture_path(self, path: Path) -> str:
        """The path of a picture; empty if a link leads out of the folder, since nothing outside it is shown."""
        try:
            return self.path_of(path)
        except ValueError:
            return ""

    def bases(self) -> list[BaseModel]:
        """The base models of the completed trainings here, each with its adapters."""
        found: dict[str, BaseModel] = {}
        for experiment in sorted(self.experiments(), key=lambda one: one.name):
            jobs = labelled([read_briefly(folder) for folder in experiment.folders])
            for job in sorted(jobs, key=lambda one: one.name):
                if (usable := self._usable(job, experiment)) is not None and (base := _base_of(job)) is not None:
                    found.setdefault(base.key, base).adapters.append(usable)
        for base in found.values():
            base.adapters.extend(self._files)
        return list(found.values())

    def _usable(self, job: JobRecord, experiment: Experiment) -> Usable | None:
        if not self.is_usable(job):
            return None
        return Usable(
            path=self.path_of(job.folder),
            folder=job.folder,
            name=job.name if len(experiment.folders) > 1 else experiment.name,
            experiment=experiment.name,
            words=_words_of(job),
            precision=_precision_of(job),
        )

    @staticmethod
    def is_usable(job: JobRecord) -> bool:
        """Whether the job has an adapter to draw with."""
        return job.state == "completed" and (JobPaths(job.folder).weights.is_file() or bool(_words_of(job)))


def _precision_of(job: JobRecord) -> str:
    return str(job.setting("precision") or "fp32")


def _words_of(job: JobRecord) -> tuple[str, ...]:
    """The new words that a training taught."""
    words = job.setting("method.tokens")
    return tuple(map(str, words)) if isinstance(words, list) else ()


def _base_of(job: JobRecord) -> BaseModel | None:
    """The base model that a job was trained on; None if its settings are from another version."""
    given = job.setting("model")
    try:
        settings = ModelSettings.model_validate(given if isinstance(given, dict) else {})
    except (ValidationError, RunnerError):
        return None
    prompts, guidance = _prompts_of(job), finite(job.setting("validation.guidance_scale"))
    return BaseModel(
        key=settings.model_dump_json(exclude={"resolution", "precision"}),
        settings=settings,
        precision=_precision_of(job),
        resolution=int(finite(job.setting("resolution")) or settings.resolution),
        sampler=str(job.setting("scheduler.name") or "model"),
        steps=int(finite(job.setting("validation.inference_steps")) or 25),
        guidance=FAMILIES[settings.family].guidance(guidance),
        guidance_rescale=finite(job.setting("validation.guidance_rescale")) or 0.0,
        prompt=prompts[0] if prompts else "",
        adapters=[],
    )


def _prompts_of(job: JobRecord) -> list[str]:
    prompts = job.setting("validation.prompts")
    return [str(prompt) for prompt in prompts] if isinstance(prompts, list) else []


def _last_pictures(folder: Path) -> list[Path]:
    """Pictures from the end of a training, or drawn by a task; one of each prompt first."""
    steps = sorted(each for each in named_like("step-*", JobPaths(folder).samples) if each.is_dir())
    found = sorted(named_like("p*-s*.png", steps[-1])) if steps else []
    first = {each.name.partition("-")[0]: each for each in reversed(found)}
    return sorted(found, key=lambda each: (first[each.name.partition("-")[0]] != each, each.name))[:PICTURES]


def _with_jobs(folder: Path, depth: int) -> Iterable[tuple[Path, list[Path]]]:
    """(folder, jobs in it) for each folder that has any."""
    try:
        entries = sorted(
            Path(entry.path)
            for entry in os.scandir(folder)
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        )
    except OSError:
        return
    jobs = [each for each in entries if is_job_folder(each)]
    if jobs:
        yield folder, jobs
    if depth > 1:
        for each in entries:
            if each not in jobs:
                yield from _with_jobs(each, depth - 1)


def _changed(folder: Path) -> float:
    try:
        return JobPaths(folder).manifest.stat().st_mtime
    except OSError:
        return 0.0
