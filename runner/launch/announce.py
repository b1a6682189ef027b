"""What a command says before it starts anything: its plan, the data it uses, and the free space on the disks.

Takes a plan and the checker that knows the jobs' data; writes to the log, or prints the plan as JSON on stdout.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence

from runner.cache.encodings import CacheWork, Need, cache_work
from runner.check import Checker
from runner.data.buckets import bucket_lines
from runner.data.views import buckets_of, held_out_lines
from runner.jobs.job import Job
from runner.launch.left_behind import left_behind
from runner.paths import cache_dir, outputs_dir
from runner.plan import Plan
from runner.plan.disk import Disk
from runner.plan.words import plan_data, plan_lines
from runner.schema.launchers import APART
from runner.system.machine import disk_of

log = logging.getLogger(__name__)


def show(plan: Plan, checker: Checker, preview: Sequence[str] = (), *, as_json: bool = False) -> None:
    """Print the plan, which part of each data set is used, and what would be sent."""
    trainings = [job for job in plan.todo if job.trains]
    needs = [Need(job, checker.dataset_of(job).items, checker.prior_of(job)) for job in trainings]
    work = cache_work(needs) if trainings else None
    disks = _disks(plan, work)
    if as_json:
        sys.stdout.write(json.dumps(plan_data(plan, work, disks) | {"preview": list(preview)}, indent=2) + "\n")
        return
    for line in [*plan_lines(plan, work, disks), *left_behind(plan)]:
        log.info("%s", line)
    for line in _data_lines(trainings, checker):
        log.info("%s", line)
    for line in preview:
        log.info("%s", line)


def _disks(plan: Plan, work: CacheWork | None) -> list[Disk]:
    """What the trainings of a plan write, if they run on disks of this machine."""
    if not plan.todo or plan.todo[0].settings.launcher.name in APART:
        return []
    results_gb = sum(pack.prediction.results_gb for pack in plan.packs if pack.prediction is not None)
    return [
        Disk("results", results_gb, *disk_of(outputs_dir())),
        Disk("encodings", 0.0 if work is None else work.missing_gb, *disk_of(cache_dir())),
    ]


def _data_lines(trainings: Sequence[Job], checker: Checker) -> Iterator[str]:
    """Which part of each data set is used, and how; said once for jobs that use the same data in the same way."""
    shown: set[object] = set()

    def is_new(*what: object) -> bool:
        known = what in shown
        shown.add(what)
        return not known

    for job in trainings:
        dataset, settings, prior = checker.dataset_of(job), job.experiment, checker.prior_of(job)
        if is_new("files", dataset.fingerprint, settings.resolution, settings.dataset.buckets):
            yield from dataset.report.lines()
        # Looking at a large data set takes a second, and there may be a hundred jobs.
        cut = dataset.fingerprint, settings.dataset, settings.validation.held_out
        if is_new("held out", *cut):
            held_out = tuple(held_out_lines(dataset.items, settings))
            yield from held_out if is_new("held out", held_out) else ()
        if is_new("buckets", *cut, settings.resolution, settings.batch_size, settings.steps):
            buckets = tuple(bucket_lines(buckets_of(dataset.items, settings)))
            yield from buckets if is_new("buckets", buckets) else ()
        classes = tuple(prior.lines()) if prior else ()
        yield from classes if is_new("classes", classes) else ()
