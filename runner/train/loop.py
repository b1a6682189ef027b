"""The one training loop: load, cache, step, log, validate, checkpoint, finish; for a pack of jobs over one base.

Each round takes every job of the pack one optimizer step further. A job that ends or fails leaves; the others
do not notice. All processes of a pack run this file in step with each other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from runner.errors import DivergedError, Interrupted, RunnerError
from runner.job import Job, State, update_manifest
from runner.train.adapter import Adapter, find_sites
from runner.train.base import Base
from runner.train.job_run import JobRun
from runner.train.loss import squared_error, weigh
from runner.train.materials import Materials, prepare
from runner.train.packed import PackedAdapters
from runner.train.place import Place
from runner.train.progress import Progress
from runner.train.samples import join
from runner.train.validation import UseRows

log = logging.getLogger(__name__)


SaveArtifacts = Callable[[JobRun, UseRows, Mapping[str, float]], None]


def train_pack(
    jobs: Sequence[Job],
    place: Place,
    *,
    about: dict[str, Any],
    save: SaveArtifacts,
    stop_requested: Callable[[], bool],
) -> bool:
    """Train jobs that may share a pack (see `runner.plan.pack_key`) until each is done, failed or stopped.

    Args:
        about: what every manifest shall say of this process: versions, commit, device.
        save: writes and checks what a finished job leaves; a job is completed only after it.
        stop_requested: whether a signal has asked to save and end.

    Returns:
        Whether every job completed.

    Raises:
        Interrupted: after everything is saved, because `stop_requested`.
    """
    start = time.perf_counter()
    base = Base(jobs[0].experiment, place)
    prepared = _prepare_each(jobs, base)
    if not base.trains_text:
        base.free_text()
    if not any(materials.prompts for _, materials in prepared):
        base.free_vae()
    cached = time.perf_counter()
    runs = _start_each(prepared, base)
    loaded = time.perf_counter()
    for run in runs:
        run.timings |= {"cache": cached - start, "load": loaded - cached}
        if place.is_main:
            run.open_record(about)
    pack = Pack(runs, base)
    completed = len(runs) == len(jobs)
    with Progress(runs, enabled=place.is_main) as progress:
        pack.each(lambda run: run.validate(pack.rows_of(run)) if run.step == 0 else None)
        while pack.runs:
            pack.each(partial(_finish_if_done, pack, save))
            if not pack.runs:
                break
            if place.any(stop_requested()):
                pack.each(JobRun.interrupt)
                raise Interrupted("stopped by a signal; every job saved a checkpoint")
            pack.step()
            pack.each(partial(_after_step, pack))
            progress.update(pack.runs)
    return completed and not pack.failed


def _prepare_each(jobs: Sequence[Job], base: Base) -> list[tuple[Job, Materials]]:
    """Encode every job's data; one whose data is bad fails alone."""
    prepared = []
    for job in jobs:
        materials = _tried(partial(prepare, job, base))
        if _failed_before_start(job, materials, base.place):
            continue
        prepared.append((job, materials))
    return prepared


def _start_each(prepared: Sequence[tuple[Job, Materials]], base: Base) -> list[JobRun]:
    runs = []
    for job, materials in prepared:
        run = _tried(partial(_start, job, materials, base))
        if not _failed_before_start(job, run, base.place):
            runs.append(run)
    return runs


def _start(job: Job, materials: Materials, base: Base) -> JobRun:
    sites = find_sites(job.experiment.lora, base.components())
    adapter = Adapter(job.experiment.lora, sites, seed=job.experiment.seed, device=base.place.device)
    run = JobRun(job, materials, adapter, base)
    run.resume()
    return run


def _tried(action: Callable[[], Any]) -> Any:
    """What an action for one job gives, or the error that is this job's own affair."""
    try:
        return action()
    except (RunnerError, OSError, ValueError, RuntimeError) as error:
        return error


def _reason(outcome: Any) -> str:
    if isinstance(outcome, RunnerError):
        return str(outcome)
    if isinstance(outcome, Exception):
        return f"{type(outcome).__name__}: {outcome}"
    return "another process of the job failed; its log says why"


def _failed_before_start(job: Job, outcome: Any, place: Place) -> bool:
    """Whether the job failed, here or in another process: then it starts nowhere."""
    if not place.any(isinstance(outcome, Exception)):
        return False
    log.error("%s: %s", job.id, _reason(outcome))
    if place.is_main:
        update_manifest(job.folder, state=State.FAILED, error=_reason(outcome))
    return True


class Pack:
    """The jobs that are still training, and their adapters on the frozen base."""

    def __init__(self, runs: Sequence[JobRun], base: Base) -> None:
        self.runs, self.base = list(runs), base
        self.failed: list[JobRun] = []
        self.adapters: PackedAdapters | None = None
        self._assemble()

    def _assemble(self) -> None:
        if self.adapters is not None:
            self.adapters.detach()
        self.adapters = (
            PackedAdapters(self.base.components(), [run.adapter for run in self.runs], dtype=self.base.dtype)
            if self.runs
            else None
        )

    def rows_of(self, run: JobRun) -> Callable[[int], AbstractContextManager[None]]:
        """A context maker: within it, so many rows of a forward pass belong to this job alone."""

        def use_rows(count: int) -> AbstractContextManager[None]:
            assert self.adapters is not None
            return self.adapters.using([(self.runs.index(run), count)])

        return use_rows

    def each(self, action: Callable[[JobRun], Any]) -> None:
        """Do something for every job; one that fails at it leaves the pack with its reason, alone.

        The main process validates and writes files, so only it can fail at that: all must hear of it, or they
        would go on with different packs and wait for each other for ever.
        """
        outcomes = [_tried(partial(action, run)) for run in self.runs]
        failed = self.base.place.any_of([isinstance(outcome, Exception) for outcome in outcomes])
        leaving = []
        for run, outcome, has_failed in zip(self.runs, outcomes, failed, strict=True):
            if has_failed:
                log.error("%s failed: %s", run.job.id, _reason(outcome))
                run.close(State.FAILED, error=_reason(outcome))
                self.failed.append(run)
            if has_failed or outcome is LEAVES:
                leaving.append(run)
        if leaving:
            self.runs = [run for run in self.runs if run not in leaving]
            self._assemble()

    def step(self) -> None:
        """One optimizer step of every job."""
        assert self.adapters is not None
        for part in range(max(run.settings.accumulation for run in self.runs)):
            self._backward(part)
            self.adapters.collect()
        self.base.place.sum(self.adapters.joint_gradient)
        for run in self.runs:
            run.update()
        self.adapters.refresh()

    def _backward(self, part: int) -> None:
        """Forward and backward of one accumulated part: every job's slice, stacked along the batch."""
        assert self.adapters is not None
        base, device = self.base, self.base.place.device
        slices = [(index, run, run.positions(part)) for index, run in enumerate(self.runs)]
        slices = [(index, run, positions) for index, run, positions in slices if len(positions)]
        if not slices:
            return
        batches = [run.materials.samples.batch(run.step, positions) for _, run, positions in slices]
        batch = join(batches).to(device)
        noisy = base.noise.add_noise(batch.latents, batch.noise, batch.timesteps)
        rows = [(index, len(positions)) for index, _, positions in slices]
        # Recomputed activations must find the same rows, so the backward pass belongs inside too.
        with self.adapters.using(rows, [each.sample_ids for each in batches]):
            text = _text_of(slices, batches, self.adapters)
            predicted = base.family.predict(base.denoiser, noisy, batch.timesteps, text, batch.time_ids)
            error_B = squared_error(predicted, batch, base.noise)
            parts = zip(
                slices,
                error_B.split([length for _, length in rows]),
                batch.timesteps.split([length for _, length in rows]),
                strict=True,
            )
            losses = [
                run.loss_of(weigh(error, timesteps, run.settings.loss, base.noise))
                for (_, run, _), error, timesteps in parts
            ]
            torch.stack(losses).sum().backward()


def _text_of(slices: Sequence[Any], batches: Sequence[Any], adapters: PackedAdapters) -> dict[str, torch.Tensor]:
    """The captions' embeddings, each job's from its own conditioner, stacked in the order of the batch."""
    if len(slices) == 1:
        return slices[0][1].materials.conditioner.text(batches[0].captions)  # type: ignore[no-any-return]
    texts = []
    for (index, run, positions), batch in zip(slices, batches, strict=True):
        with adapters.using([(index, len(positions))], [batch.sample_ids]):
            texts.append(run.materials.conditioner.text(batch.captions))
    return {name: torch.cat([text[name] for text in texts]) for name in texts[0]}


LEAVES = object()
"""Returned by an action after which a job is no longer in the pack."""


def _after_step(pack: Pack, run: JobRun) -> None:
    settings = run.settings
    if run.due(settings.logger.every) or run.done or run.due(settings.checkpoint.every):
        run.log_step()
    if run.done:
        return
    if run.due(settings.validation.every):
        run.validate(pack.rows_of(run))
    if run.due(settings.checkpoint.every):
        run.checkpoint()


def _finish_if_done(pack: Pack, save: SaveArtifacts, run: JobRun) -> object:
    if not run.done:
        return None
    if not bool(torch.isfinite(run.adapter.weights).all()):
        raise DivergedError("the trained weights are not finite; try a lower optimizer.lr")
    use_rows = pack.rows_of(run)
    losses = run.validate(use_rows)
    if run.is_main:
        with run.timed("artifacts"):
            save(run, use_rows, losses)
        if run.mirror is not None:
            run.mirror.adapter(run.paths.lora, {"rank": run.settings.lora.rank, "base": run.settings.model.path})
        run.close(State.COMPLETED, objective=losses["validation/loss"], objective_name="validation/loss")
    return LEAVES
