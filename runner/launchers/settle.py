"""What happens to jobs whose worker is gone: they continue in smaller packs, or fail with the reason.

Knows how a worker ended and what it wrote; does not know where it ran.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence
from pathlib import Path

from runner.jobs.job import Job, State, known_manifest, update_manifest
from runner.jobs.lock import is_held
from runner.launchers.cluster import Gone
from runner.plan import Pack

LAST_WORDS_LENGTH = 400


def is_dead(job: Job) -> bool:
    """Whether a job's worker is gone and left it unfinished."""
    manifest = known_manifest(job.folder)
    state = manifest.get("state")
    if state == State.FAILED and manifest.get("crashed"):
        return True
    return state == State.RUNNING and not is_held(job.folder)


def fail(job: Job, reason: str) -> None:
    """Mark a dead job as failed; a reason that its worker managed to write takes precedence."""
    known = known_manifest(job.folder)
    error = known.get("error") if known.get("crashed") else None
    update_manifest(job.folder, state=State.FAILED, error=error or reason, crashed=False)


def take_up_again(jobs: Sequence[Job]) -> None:
    """Make dead jobs pending: the next worker continues them from their checkpoints."""
    for job in jobs:
        update_manifest(job.folder, state=State.PENDING, error=None, crashed=False)


def close(jobs: Sequence[Job], gone: Gone, how: str) -> None:
    """Record why a gone worker left these jobs, when nobody continues them now."""
    for job in jobs:
        state = known_manifest(job.folder).get("state")
        open_states = (State.PENDING, State.SUBMITTED, State.RUNNING, State.INTERRUPTED)
        if state not in open_states or is_held(job.folder):
            continue
        if gone.reason == "cancelled":
            update_manifest(job.folder, state=State.CANCELLED, error=how)
        elif state == State.INTERRUPTED or gone.reason == "taken" or (gone.began and state != State.RUNNING):
            update_manifest(job.folder, state=State.INTERRUPTED)
        else:
            fail(job, how)


def halved(pack: Pack, jobs: Sequence[Job]) -> Pack:
    """The jobs that died together, half as many at once; a job that crashes alone is to blame."""
    at_once = max(1, -(-len(jobs) // 2))
    return dataclasses.replace(
        pack, jobs=tuple(jobs), at_once=at_once, why="half of a pack that crashed", prediction=None
    )


def how_it_ended(code: int) -> str:
    """An exit code, as `subprocess` gives it, in words."""
    if code == -signal.SIGKILL:
        return "the process was killed by signal 9 (often: out of memory)"
    return f"the process was killed by signal {-code}" if code < 0 else f"the process ended with code {code}"


def last_words(log: Path | None) -> str:
    """The last line of a worker's log; empty if its output was not kept."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace") if log is not None else ""
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:LAST_WORDS_LENGTH] if lines else ""
