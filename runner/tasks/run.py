"""Works through the jobs of a queue one by one; a failed job does not stop the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from runner.errors import Interrupted, RunnerError, in_words, refusal
from runner.jobs.job import Job, State, known_manifest, now, update_manifest
from runner.jobs.queue import Claims
from runner.schema.experiment import OF_EVALUATION
from runner.tasks import work_of
from runner.track import MetricsFile, mirror_folder
from runner.train.cost import peak_memory_gb
from runner.train.pack import unless_disk_is_full
from runner.train.place import Place

log = logging.getLogger(__name__)

POLL_S = 0.2


def run_tasks(claims: Claims, place: Place, *, about: Mapping[str, Any], stop_requested: Callable[[], bool]) -> bool:
    """Do every job that can be claimed; returns whether all of them completed.

    Args:
        about: what is recorded with each job: versions, device.

    Raises:
        Interrupted: a signal asked to stop; what was made so far stays and is not made again.
    """
    good = True
    while True:
        jobs = claims.take(1)
        if stop_requested():
            for job in jobs:
                update_manifest(job.folder, state=State.INTERRUPTED)
            raise Interrupted("stopped")
        if not jobs and not claims.more_may_come:
            return good
        if not jobs:
            time.sleep(POLL_S)
        for job in jobs:
            good &= _run(job, place, about, stop_requested)
            claims.release(job)


def _run(job: Job, place: Place, about: Mapping[str, Any], stop_requested: Callable[[], bool]) -> bool:
    known, began = known_manifest(job.folder), time.perf_counter()
    try:
        update_manifest(
            job.folder,
            state=State.RUNNING,
            started=known.get("started") or now(),
            attempts=known.get("attempts", 0) + 1,
            error=None,
            **about,
        )
        log.info("%s: task=%s begins", job.id, job.task)
        found = work_of(job.task)(job.settings, job.paths, place, stop=stop_requested)
        _complete(job, found, known.get("timings_s", {}).get("total", 0.0) + time.perf_counter() - began)
    except Interrupted:
        update_manifest(job.folder, state=State.INTERRUPTED, finished=now())
        raise
    except Exception as error:
        # Whatever the error was, the folder must record it, and the next jobs must not suffer from it.
        if not isinstance(error, RunnerError) and refusal(error) is None:
            log.exception("%s failed", job.id)
        reason = in_words(error)
        log.error("%s: %s", job.id, reason)
        with unless_disk_is_full(job):
            update_manifest(job.folder, state=State.FAILED, error=reason, finished=now())
        return False
    with unless_disk_is_full(job):
        if url := mirror_folder(job.settings.logger, job.folder):
            update_manifest(job.folder, wandb_url=url)
    return True


def _complete(job: Job, found: Mapping[str, Any], spent_s: float) -> None:
    """Record the results of the work, and that it is done."""
    if figures := found.get("figures"):
        record = MetricsFile(job.paths.metrics)
        record.truncate_after(-1)
        record.append(0, {f"{OF_EVALUATION}{name}": figure["value"] for name, figure in figures.items()})
        record.close()
    update_manifest(
        job.folder,
        state=State.COMPLETED,
        finished=now(),
        timings_s={"total": round(spent_s, 3)},
        cost={"peak_memory_gb": round(peak_memory_gb(), 2)},
        **found,
    )
