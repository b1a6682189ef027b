"""The one training loop: load, cache, step, log, validate, checkpoint, finish; for a pack of jobs over one base.

Each round trains every job of the pack for one optimizer step. A job that ends, fails or is pruned leaves, and the next
one takes its place; the others are not affected. All processes of a pack run this file in step with each other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import torch

from runner.cache.measured import record
from runner.errors import DivergedError, Interrupted
from runner.jobs.job import State
from runner.train.admission import Source, admit
from runner.train.drawing import UseRows
from runner.train.job_run import JobRun
from runner.train.pack import LEAVES, Pack
from runner.train.place import FAULTS, Place
from runner.train.progress import Progress
from runner.train.pruning import falls_behind
from runner.train.validation import validate

log = logging.getLogger(__name__)

SaveArtifacts = Callable[[JobRun, UseRows, Mapping[str, float]], None]
POLL_S = 0.2
ROUNDS_PER_LOOK = 50
"""How often a pack with free places looks for new jobs."""


def train(
    source: Source,
    place: Place,
    *,
    at_once: int,
    startup_s: float,
    about: Mapping[str, Any],
    save: SaveArtifacts,
    stop_requested: Callable[[], bool],
) -> bool:
    """Train the jobs of a source, which may share a pack (see `runner.plan.pack_key`), until none are left.

    Args:
        source: where jobs come from; each is released when it has completed, failed, or been pruned or stopped.
        at_once: the most jobs to train together.
        about: what every manifest records about this process: versions, commit, device.
        save: writes and checks the files of a finished job, which is completed only afterwards. It may raise
            Interrupted when `stop_requested` returns True.

    Returns:
        Whether every job succeeded.

    Raises:
        Interrupted: `stop_requested` returned True, and everything is saved.
    """
    pack = Pack(place, startup_s=startup_s, on_leave=lambda run: source.release(run.job))
    try:
        with place.hearing(stop_requested):
            _rounds(pack, source, at_once, about, save, stop_requested)
    finally:
        if place.is_main and pack.conditions is not None:
            record(pack.conditions, pack.measured())
    return not pack.failed


def _rounds(
    pack: Pack,
    source: Source,
    at_once: int,
    about: Mapping[str, Any],
    save: SaveArtifacts,
    stop_requested: Callable[[], bool],
) -> None:
    place, rounds, unfilled = pack.place, 0, 0
    with Progress(enabled=place.is_main) as progress:
        while True:
            if place.any(stop_requested()):
                _stop(pack)
            idle = not pack.runs
            # Looking for jobs reads files, so it does not happen in every round while nobody has left.
            free = at_once - len(pack.runs)
            asks = idle or free != unfilled or rounds % ROUNDS_PER_LOOK == 0
            try:
                taken = admit(pack, source, free, about) if asks else 0
            except Interrupted:
                _stop(pack)
            unfilled, rounds = free - taken, rounds + 1
            _measure(pack)  # jobs that have just begun, or were stopped before they were measured
            pack.each(partial(_finish_if_done, pack, save))
            if any(run.done or run.unmeasured for run in pack.runs):
                continue  # a signal came while one was being measured or saved
            if pack.runs:
                progress.begin()
                _round(pack)
                progress.update(pack.runs)
            elif idle and not taken:
                if not place.any(source.more_may_come):
                    return
                time.sleep(POLL_S)


def _stop(pack: Pack) -> NoReturn:
    pack.each(_interrupt)
    raise Interrupted("stopped by a signal; every job saved a checkpoint")


def _round(pack: Pack) -> None:
    pack.step()
    pack.each(_log)
    _measure(pack)
    pack.each(_checkpoint)


def _measure(pack: Pack) -> None:
    # All processes agree on what is due, so in most rounds they need not ask each other.
    if any(run.unmeasured for run in pack.runs):
        pack.each(partial(_validate, pack))
        pack.each(_prune)


def _log(run: JobRun) -> None:
    settings = run.settings
    if run.due(settings.logger.every) or run.done or run.due(settings.checkpoint.every):
        run.log_step()


def _validate(pack: Pack, run: JobRun) -> None:
    if run.unmeasured:
        run.unmeasured = not run.base.place.from_main(lambda: _measures(run, pack.rows_of(run)))


def _measures(run: JobRun, use_rows: UseRows) -> bool:
    """Validate a job; False if a signal came before that finished, which its checkpoint then records."""
    try:
        validate(run, use_rows, pictures=run.draws)
    except Interrupted:
        return False
    return True


def _prune(run: JobRun) -> object:
    """Runs after all jobs of the pack were measured, so that they are judged together."""
    if not run.at_rung or run.unmeasured:
        return None
    run.at_rung, place = False, run.base.place
    # Only the main process reads the other folders; if it fails, all must know before any of them raises.
    reason = place.together(
        lambda: falls_behind(run.job, run.step) if run.is_main else None, what="compare the job with the others"
    )
    leaves = place.any(reason is not None)
    if leaves:
        log.info("%s is pruned: %s", run.job.id, reason or "others do better")
        run.prune(reason or "")
    return LEAVES if leaves else None


def _checkpoint(run: JobRun) -> None:
    if not run.done and run.due(run.settings.checkpoint.every):
        run.checkpoint()


def _interrupt(run: JobRun) -> object:
    run.interrupt()
    return LEAVES


def _finish_if_done(pack: Pack, save: SaveArtifacts, run: JobRun) -> object:
    if not run.done:
        return None
    if not bool(torch.isfinite(run.adapter.weights).all()):
        raise DivergedError("the trained weights are not finite; try a lower optimizer.lr")
    try:
        saved = run.base.place.from_main(lambda: _saves(save, run, pack.rows_of(run)))
    except FAULTS:
        # The next process retries what failed, without repeating the training before it.
        with suppress(*FAULTS):
            run.checkpoint()
        raise
    if not saved:
        return None  # it stays, and is interrupted with the others
    if run.is_main:
        if run.mirror is not None:
            run.mirror.adapter(run.paths.lora, {"rank": run.settings.lora.rank, "base": run.settings.model.path})
        run.close(State.COMPLETED, objective=run.objective(), **run.kept_of_earlier())
    return LEAVES


def _saves(save: SaveArtifacts, run: JobRun, use_rows: UseRows) -> bool:
    """Measure a job for the last time and save its files; False if a signal came before that finished."""
    try:
        losses = validate(run, use_rows)
        with run.clock.charging("artifacts", [run]):
            save(run, use_rows, losses)
    except Interrupted:
        return False
    return True
