"""The job folders of a container: made from what was sent, or taken up again where an earlier container left them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import RunnerError
from runner.job import FINAL, Job, State, read_manifest, register, update_manifest, write_config

log = logging.getLogger(__name__)


def take_up(job: Job, sent: Mapping[str, Any]) -> bool:
    """Make a job's folder ready for a worker; whether there is anything left to do.

    What SageMaker has restored of an earlier container is kept, but for the paths in config.yaml.

    Args:
        sent: the manifest that came with the job; what else it says is kept.

    Raises:
        RunnerError: the folder holds another job.
    """
    known = read_manifest(job.folder)
    if not known:
        update_manifest(job.folder, **sent)
        register(job)
        return True
    if known.get("id") != job.id:
        raise RunnerError(f"{job.folder} holds the job {known.get('id')!r}")
    write_config(job)
    state = State(known["state"])
    if state in FINAL and not (state is State.COMPLETED and not job.has_result):
        log.info("%s: %s already", job.id, state.value)
        return False
    log.info("%s: was %s after %d steps, goes on", job.id, state.value, known.get("steps_done", 0))
    update_manifest(job.folder, state=State.PENDING, error=None, crashed=False)
    return True


def lay_beside(job: Job, folder: Path) -> Job:
    """The same job in a folder that nothing is written to but what it is: for the hosts that write no results."""
    beside = Job(job.id, job.settings, job.identity, folder / job.id, job.overrides)
    register(beside)
    return beside
