"""What to do with the jobs that a worker of a cluster left unfinished; decides, and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from runner.jobs.job import Job, State, known_manifest
from runner.jobs.lock import last_holder
from runner.launchers.cluster import Gone
from runner.launchers.lots import Lot
from runner.launchers.settle import is_dead


@dataclass(frozen=True, kw_only=True)
class Leftovers:
    """The jobs that a worker left, by what happens to them next."""

    was_stopped: bool = False
    """Whether somebody ended it and wants nothing in its place."""
    cancelled: Sequence[Job] = ()
    taken_away: Sequence[Job] = ()
    """Those it was training when its cluster took it away: they resume from their checkpoints."""
    crashed: Sequence[Job] = ()
    """Those of which one made it crash."""
    not_begun: Sequence[Job] = ()
    """Those left by a worker that ended by itself before starting any job: another worker would fare no better."""
    go_on: Sequence[Job] = ()
    """Those for another worker."""


def leftovers_of(lot: Lot, worker: str, gone: Gone, *, shares_files: bool) -> Leftovers:
    """Look through the jobs of a lot, one of whose workers has ended.

    Args:
        lot: as its folders say now, with the worker no longer counted as alive.
        shares_files: whether the worker's locks can be seen from here.
    """
    manifests = {job.folder: known_manifest(job.folder) for job in lot.jobs}
    dead = [job for job in lot.jobs if manifests[job.folder].get("worker") not in lot.alive and is_dead(job)]
    # What its other workers can still take is left to them.
    left = [] if lot.alive else lot.in_state(State.PENDING, State.SUBMITTED, *lot.given_up)
    interrupted = [] if lot.alive else lot.in_state(State.INTERRUPTED)
    if lot.was_stopped or (gone.reason == "cancelled" and not lot.is_ending):
        return Leftovers(was_stopped=True, cancelled=[*dead, *left, *interrupted])
    if gone.reason == "taken" or lot.is_ending:
        return Leftovers(taken_away=dead, go_on=[*left, *interrupted, *([] if lot.alive else dead)])
    began = gone.began
    if began is None:
        works = any(manifest.get("worker") == worker for manifest in manifests.values())
        # A worker from an earlier command may have been about to end when a job was put back into its list.
        began = lot.is_earlier or len(left) < len(lot.jobs) or works
    taken = _taken(left) if shares_files and gone.began is None and not lot.is_earlier else []
    left = [job for job in left if job not in taken]
    if began or taken:
        return Leftovers(crashed=[*dead, *taken], go_on=[*left, *interrupted])
    return Leftovers(crashed=dead, not_begun=left, go_on=interrupted)


def _taken(left: Sequence[Job]) -> list[Job]:
    """What a worker had taken but not started to train: it was still loading or encoding."""
    # Their last holder is a process other than this one, which submitted them.
    return [job for job in left if last_holder(job.folder) not in (None, os.getpid())]
