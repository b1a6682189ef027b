"""The trials of a tuning job: training jobs created by SageMaker, each with one job whose folder is here.

A known trial can be updated from its job's folder alone; `runner.search.tuning` finds out which trials exist and which
jobs they stand for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from runner.aws.account import understood
from runner.aws.names import Location
from runner.jobs.job import Job, State, read_manifest, register, state_of, update_manifest
from runner.jobs.lock import LockedError, lock
from runner.jobs.submission import Submission
from runner.launchers.cluster import Gone
from runner.launchers.sagemaker.logs import LogTail
from runner.launchers.sagemaker.record import CLUSTER, log_file, record, recorded
from runner.launchers.sagemaker.request import CHECKPOINTS
from runner.launchers.sagemaker.training_jobs import RUNNING, SageMakerCluster, gone_of
from runner.launchers.settle import fail

log = logging.getLogger(__name__)

ENDED_EARLY = "ended early by SageMaker, others do better"


def begin(job: Job, tuning: str, training_job: str) -> None:
    """Record in a job's folder that a trial trains it, unless it is done or that was recorded before."""
    try:
        with lock(job.folder):
            manifest = read_manifest(job.folder)
            known = Submission.of(manifest)
            if manifest.get("state") == State.COMPLETED or training_job in known.ids:
                return
            if known.tuning == tuning and manifest["state"] in (State.SUBMITTED, State.RUNNING):
                # A search may choose the same values twice.
                update_manifest(job.folder, submission=replace(known, ids=(*known.ids, training_job)).data)
                return
            register(job)
            submission = Submission(CLUSTER, tuning=tuning, ids=(training_job,))
            update_manifest(job.folder, state=State.SUBMITTED, submission=submission.data)
    except LockedError:
        log.info("%s: another runner is training it here too", job.id)


def collect_trials(jobs: Sequence[Job], reached: SageMakerCluster) -> None:
    """Bring what known trials have written; the search finds out how those ended that could not say so."""
    with understood("what launcher=sagemaker needs (docs/sagemaker.md)"):
        for job in jobs:
            submission = Submission.of(read_manifest(job.folder))
            trials = Trials(reached, submission.tuning, job.settings.name)
            for training_job in submission.ids:
                trials.bring(job, training_job)


class Trials:
    """Brings what the trials of one tuning job have written."""

    def __init__(self, reached: SageMakerCluster, tuning: str, experiment: str) -> None:
        self.reached, self.tuning = reached, tuning
        self.place = reached.places.training_job(experiment, tuning)
        self._tails: dict[str, LogTail] = {}

    def look(self, job: Job, training_job: str) -> None:
        """Bring what is new from a running trial."""
        self._tail(job, training_job).look()
        self.bring(job, training_job)

    def end(self, job: Job, training_job: str, *, may_be_early: bool) -> bool:
        """Bring everything from a trial that has ended, and settle its job; returns whether it has really ended.

        Args:
            may_be_early: whether a stopped trial was stopped by the search rather than by a person.
        """
        if recorded(job.folder.parent, training_job) is not None:
            return True
        described = self.reached.account.sagemaker.describe_training_job(TrainingJobName=training_job)
        if described["TrainingJobStatus"] in RUNNING:
            return False
        self._tail(job, training_job).look()
        kept = self.bring(job, training_job, everything=True)
        gone = gone_of(described, began=kept is not None)
        if kept is not None:
            self.reached.collector.keep_cache([job], kept)
        self._settle(job, training_job, gone, may_be_early=may_be_early)
        price = self.reached.prices.per_hour(described["ResourceConfig"]["InstanceType"])
        record([job], described, gone, usd_per_hour=price.usd if price else None)
        return True

    def bring(self, job: Job, training_job: str, *, everything: bool = False) -> Location | None:
        """Bring what exists and return where it was: all trials share a folder, or SageMaker made one for each."""
        for kept in (self.place / CHECKPOINTS, self.place / f"{CHECKPOINTS}{training_job}/"):
            if self.reached.collector.look_at(job, kept, everything=everything):
                return kept
        return None

    def _settle(self, job: Job, training_job: str, gone: Gone, *, may_be_early: bool) -> None:
        if state_of(job.folder) in (State.COMPLETED, State.FAILED, State.PRUNED):
            return  # its worker recorded that itself
        how = f"{CLUSTER} {training_job} {gone.words}"
        if gone.reason == "cancelled" and may_be_early:
            update_manifest(job.folder, state=State.PRUNED, reason=ENDED_EARLY)
        elif gone.reason == "cancelled":
            update_manifest(job.folder, state=State.CANCELLED, error=how)
        else:
            # A tuning job counts it as tried: nothing would continue it.
            fail(job, how)

    def _tail(self, job: Job, training_job: str) -> LogTail:
        if training_job not in self._tails:
            prefix = None if self.reached.settings.logs == "file" else training_job
            file = log_file(job.folder.parent, training_job)
            self._tails[training_job] = LogTail(self.reached.account.logs, training_job, file, prefix)
        return self._tails[training_job]
