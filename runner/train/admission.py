"""How jobs join a pack: their data is encoded, their adapters created or resumed, their records opened.

A job that fails on the way fails alone, and in every process of the pack.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from runner.cache.measured import Conditions
from runner.families.files import check_fetched
from runner.families.prediction import check_noise
from runner.jobs.job import Job, State, update_manifest
from runner.schema.method import NewTokens, TextualInversion
from runner.train.adapters.adapter import Adapter, find_sites
from runner.train.base import Base
from runner.train.inputs.materials import Materials, prepare
from runner.train.inputs.tokens import first_vectors
from runner.train.job_run import JobRun
from runner.train.pack import Pack, reason_of, tried, unless_disk_is_full
from runner.train.place import Place
from runner.train.start import start_from

log = logging.getLogger(__name__)


class Source(Protocol):
    """Where a pack's jobs come from (`runner.jobs.queue.Claims`)."""

    def take(self, count: int) -> list[Job]:
        """Up to `count` more jobs, held until they are released."""

    def release(self, job: Job) -> None:
        """Let go of a job that has left the pack."""

    @property
    def more_may_come(self) -> bool:
        """Whether more jobs may come although none are available now."""


class SharedSource:
    """One source for all processes of a pack: the main process takes jobs and tells the others.

    Args:
        source: where the main process takes jobs from.
        read: given a folder of the main process, returns the job for another process, maybe on another machine.
    """

    def __init__(self, source: Source | None, place: Place, read: Callable[[Path], Job]) -> None:
        assert (source is not None) == place.is_main
        self._source, self._place, self._read = source, place, read

    def take(self, count: int) -> list[Job]:
        """Up to `count` more jobs, the same in every process.

        Raises:
            RunnerError: a process cannot read one of them.
        """
        place = self._place
        jobs = self._source.take(count) if self._source is not None else []
        folders = place.from_main(lambda: [job.folder for job in jobs])
        return place.together(
            lambda: jobs if place.is_main else [self._read(folder) for folder in folders], what="read its jobs"
        )

    def release(self, job: Job) -> None:
        """Let go of a job."""
        if self._source is not None:
            self._source.release(job)

    @property
    def more_may_come(self) -> bool:
        """Whether more jobs may come."""
        return self._place.any(self._source is not None and self._source.more_may_come)


def admit(pack: Pack, source: Source, places: int, about: Mapping[str, Any]) -> int:
    """Fill the free places of a pack from a source; returns how many jobs were taken, including failed ones."""
    jobs = source.take(places) if places > 0 else []
    if not jobs:
        return 0
    runs: list[JobRun] = []
    base = pack.base or tried(partial(_base, jobs[0], pack.place))
    if isinstance(base, Base):
        if pack.base is None:
            pack.found(base, Conditions.of(jobs[0], device=pack.place.device_name, processes=pack.place.world))
        started = _start_each(_prepare_each(jobs, base, pack), base, pack)
        runs = [run for run in started if not _failed(run.job, tried(partial(_open, run, about)), base.place)]
    else:
        for job in jobs:
            _fail(job, base, pack.place)
    for job in jobs:
        if job.folder not in {run.job.folder for run in runs}:
            pack.failed += 1
            source.release(job)
    pack.join(runs)
    return len(jobs)


def _prepare_each(jobs: Sequence[Job], base: Base, pack: Pack) -> list[tuple[Job, Materials, float]]:
    """Encode every job's data, with the seconds each took. The encoders are freed before the denoiser is loaded."""
    prepared = []
    with pack.preparing(jobs):
        for job in jobs:
            spent = _Spent()
            with pack.clock.charging("cache", [spent]):
                materials = tried(partial(prepare, job, base))
            if not _failed(job, materials, base.place):
                prepared.append((job, materials, spent.timings["cache"]))
    if not base.live_text:
        base.free_text()
    drawing = [run.materials for run in pack.runs] + [materials for _, materials, _ in prepared]
    if not any(materials.prompts for materials in drawing):
        base.free_vae()
    return prepared


def _start_each(prepared: Sequence[tuple[Job, Materials, float]], base: Base, pack: Pack) -> list[JobRun]:
    runs: list[JobRun] = []
    loading = _Spent()
    with pack.clock.charging("load", [loading]):
        for job, materials, _ in prepared:
            run = tried(partial(_start, job, materials, base, pack))
            if not _failed(job, run, base.place):
                runs.append(run)
    cached_s = {job.folder: seconds for job, _, seconds in prepared}
    if not pack.load_s:
        pack.load_s = loading.timings["load"]
    for run in runs:
        run.timings["cache"] += cached_s[run.job.folder]
        run.timings["load"] += loading.timings["load"] / len(runs)
    return runs


def _base(job: Job, place: Place) -> Base:
    def planned() -> Base:
        base = Base.of(job.experiment, place)
        check_fetched(job.experiment.model, job.identity["model"])
        check_noise(base.folder, job.experiment.model)
        return base

    return place.together(planned, what="load the base model")


def _start(job: Job, materials: Materials, base: Base, pack: Pack) -> JobRun:
    def fresh() -> JobRun:
        lora, parts = job.experiment.lora, base.components()
        method = job.experiment.method
        sites = []
        if not isinstance(method, TextualInversion):
            sites = find_sites(lora, parts, base.family.target_presets)
        words = first_vectors(base.family, base.text, method) if isinstance(method, NewTokens) else {}
        adapter = Adapter(
            lora, sites, seed=job.experiment.seed, device=base.place.device, components=parts, words=words
        )
        if materials.earlier is not None:
            start_from(materials.earlier, adapter)
        return JobRun(job, materials, adapter, base, pack.clock)

    run = base.place.together(fresh, what="start the job")
    run.resume()
    return run


def _open(run: JobRun, about: Mapping[str, Any]) -> None:
    if run.is_main:
        run.open_record(about)


class _Spent:
    """Collects time that is charged before there is a run to charge it to."""

    def __init__(self) -> None:
        self.timings = {"load": 0.0, "cache": 0.0}
        self.trained_s = 0.0


def _failed(job: Job, outcome: Any, place: Place) -> bool:
    """Whether the job failed, in this process or another; if so, it starts in none."""
    if not place.any(isinstance(outcome, Exception)):
        return False
    _fail(job, outcome, place)
    return True


def _fail(job: Job, outcome: Any, place: Place) -> None:
    log.error("%s: %s", job.id, reason_of(outcome))
    if place.is_main:
        with unless_disk_is_full(job):
            update_manifest(job.folder, state=State.FAILED, error=reason_of(outcome))
