"""Ends a training job: puts results where SageMaker collects them, prints the objective, writes any failure reason."""

from __future__ import annotations

import logging
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from runner.container.objective import objective_line
from runner.container.tree import FAILURE_CHARACTERS, Tree
from runner.jobs.job import GOOD, Job, State, read_manifest

log = logging.getLogger(__name__)

LEAST_CHARACTERS = 80
"""Minimum per job in a reason, if many jobs have failed."""


def conclude(tree: Tree, jobs: Sequence[Job], *, interrupted: bool) -> int:
    """Put the results in place and report how it went; returns the exit code.

    Args:
        interrupted: whether a signal ended the training; unfinished jobs then continue in another container.
    """
    manifests = [read_manifest(job.folder) for job in jobs]
    for job, manifest in zip(jobs, manifests, strict=True):
        log.info("%s  %s  %s", job.id, manifest["state"], " ".join(job.overrides))
        if manifest["state"] == State.COMPLETED:
            _put_into_model(tree, job)
    if len(jobs) == 1:
        _say_objective(manifests[0])
    bad = [manifest for manifest in manifests if manifest["state"] not in (*GOOD, State.INTERRUPTED)]
    if interrupted or not bad:
        return 0
    tree.write_failure(reason([(manifest["id"], _why(manifest)) for manifest in bad], of=len(jobs)))
    return 1


def how_far(jobs: Sequence[Job]) -> str:
    """The jobs' states and steps, in one line."""
    manifests = [read_manifest(job.folder) for job in jobs]
    states = Counter(manifest["state"] for manifest in manifests)
    steps = sum(manifest.get("steps_done") or 0 for manifest in manifests)
    total = sum(job.experiment.steps for job in jobs if job.trains)
    text = ", ".join(f"{count} {state}" for state, count in states.items())
    return f"{text}; {steps} of {total} steps are saved" if total else text


def reason(failed: Sequence[tuple[str, str]], *, of: int) -> str:
    """Why a training job fails, in no more characters than SageMaker shows."""
    head = f"{len(failed)} of {of} jobs failed\n" if of > 1 else ""
    shown = list(failed)
    while len(shown) > 1 and _room(shown, head) < LEAST_CHARACTERS:
        shown.pop()
    lines = [f"{job_id}: {error}"[: _room(shown, head)] for job_id, error in shown]
    return (head + "\n".join(lines))[:FAILURE_CHARACTERS]


def _room(shown: Sequence[object], head: str) -> int:
    return (FAILURE_CHARACTERS - len(head)) // len(shown) - 1


def _why(manifest: dict[str, object]) -> str:
    return str(manifest.get("error") or f"is {manifest['state']}")


def _put_into_model(tree: Tree, job: Job) -> None:
    folder = tree.model / job.id
    folder.mkdir(parents=True, exist_ok=True)
    if job.paths.lora.is_dir():  # other tasks may make something else, which is in the job's folder as always
        shutil.copytree(job.paths.lora, folder / job.paths.lora.name, dirs_exist_ok=True)
    shutil.copyfile(job.paths.config, folder / job.paths.config.name)


def _say_objective(manifest: dict[str, Any]) -> None:
    """Print the line that a tuner's regular expression finds."""
    value = manifest.get("objective")
    if manifest["state"] in GOOD and value is not None:
        sys.stdout.write(objective_line(str(manifest["objective_name"]), value) + "\n")
        sys.stdout.flush()
